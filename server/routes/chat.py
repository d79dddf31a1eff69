"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import UNSET, UnsetType
from starlette.types import Receive, Scope, Send

from engine.types import SamplingParams, TokenDelta
from server.answers import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    CompletionUsage,
    Delta,
)
from server.context import Vocabulary
from server.disconnect import DisconnectWatch
from server.envelope import record_of
from server.generation import Answer, Call, build_requests, off_loop_if_long
from server.logprobs import chat_logprobs
from server.sampling import check_text_length, completion_budget, requested_max_tokens, sampling_params, seed_of
from server.schemas import ChatRequest
from server.service import CompletionService, new_id
from server.validation import parse_chat

_PRIORITIES = {"priority": -1, "auto": 0, "default": 0, "flex": 1}


class ChatCompletions:
    """ASGI endpoint: a conversation in, the assistant's next turn out."""

    def __init__(self, service: CompletionService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        service, arrived_at_s = self._service, time.monotonic()
        body = await service.read_body(scope, receive)
        request = await off_loop_if_long(len(body), lambda: parse_chat(body))
        ready = service.check(request)
        messages = [{"role": _template_role(m.role), "content": m.text} for m in request.messages]
        num_chars = sum(len(message["content"]) for message in messages)
        check_text_length(num_chars, ready, service.context.max_chars_per_token, "messages")
        requested, n, seed = requested_max_tokens(request), request.n or 1, seed_of(request)
        with service.admission.reserve(n):
            async with DisconnectWatch(receive):
                prompt_ids = await off_loop_if_long(num_chars, lambda: service.context.prompts.chat(messages))
                budget = completion_budget(len(prompt_ids), requested, ready, "messages")
                call = _call(request, prompt_ids, _sampling(request, budget, seed), scope, arrived_at_s)
                answer_format = ChatFormat(call.id, request, service.context.vocabulary)
                await service.answer(call, answer_format, scope, send)


def _template_role(role: str) -> str:
    """Templates know the developer under the older name."""
    return "system" if role == "developer" else role


def _sampling(request: ChatRequest, max_tokens: int, seed: int) -> SamplingParams:
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return sampling_params(request, max_tokens=max_tokens, logprobs=logprobs, seed=seed)


def _call(
    request: ChatRequest, prompt_ids: list[int], sampling: SamplingParams, scope: Scope, arrived_at_s: float
) -> Call:
    call_id, n = new_id("chatcmpl-"), request.n or 1
    requests = build_requests(
        call_id,
        [(prompt_ids, sampling)],
        n=n,
        priority=_PRIORITIES[request.service_tier or "default"],
        tenant=record_of(scope).tenant,
        arrived_at_s=arrived_at_s,
    )
    include_usage = bool(request.stream_options and request.stream_options.include_usage)
    return Call(
        id=call_id, requests=requests, choices_per_prompt=n, stream=bool(request.stream), include_usage=include_usage
    )


class ChatFormat:
    """Chat answers and chunks; one for each request."""

    def __init__(self, call_id: str, request: ChatRequest, vocabulary: Vocabulary) -> None:
        self._id = call_id
        self._created = int(time.time())
        self._model = request.model
        self._logprobs = bool(request.logprobs)
        self._vocabulary = vocabulary
        tier = request.service_tier
        self._service_tier: str | UnsetType = UNSET if tier is None else "default" if tier == "auto" else tier
        self._begun: set[int] = set()
        include_usage = request.stream_options and request.stream_options.include_usage
        self._no_usage: UnsetType | None = None if include_usage else UNSET

    def chunk(self, index: int, delta: TokenDelta) -> ChatCompletionChunk | None:
        """See ``AnswerFormat.chunk``."""
        first = index not in self._begun
        entries = (delta.logprobs or ()) if self._logprobs else None
        if not (first or delta.text or entries or delta.finish):
            return None
        if first:
            self._begun.add(index)
            shown = Delta("assistant", delta.text)
        else:
            shown = Delta(content=delta.text) if delta.text or not delta.finish else Delta()
        logprobs = None if entries is None else chat_logprobs(entries, self._vocabulary)
        choice = ChunkChoice(index, shown, logprobs, delta.finish.value if delta.finish else None)
        return self._chunk([choice], self._no_usage)

    def usage_chunk(self, usage: CompletionUsage) -> ChatCompletionChunk:
        """See ``AnswerFormat.usage_chunk``."""
        return self._chunk([], usage)

    def whole(self, answers: Sequence[Answer], usage: CompletionUsage) -> ChatCompletion:
        """See ``AnswerFormat.whole``."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(index, answer) for index, answer in enumerate(answers)],
            usage=usage,
            service_tier=self._service_tier,
        )

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        logprobs = chat_logprobs(answer.logprobs, self._vocabulary) if self._logprobs else None
        finish = answer.finish.value if answer.finish else "stop"
        return ChatChoice(index, AnswerMessage(content="".join(answer.text)), logprobs, finish)

    def _chunk(self, choices: list[ChunkChoice], usage: CompletionUsage | UnsetType | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            service_tier=self._service_tier,
        )
