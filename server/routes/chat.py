"""POST /v1/chat/completions."""

from __future__ import annotations

import time

from starlette.types import Receive, Scope, Send

from engine.types import SamplingParams
from server.answer_reader import AnswerReader
from server.chat_format import ChatFormat
from server.chat_profile import ChatProfile
from server.chat_schemas import ChatRequest
from server.conversation import conversation_of
from server.disconnect import DisconnectWatch
from server.envelope import record_of
from server.generation import Call, build_requests, off_loop_if_long
from server.grammar.answers import grammar_of
from server.reasoning import ThoughtSplitter
from server.sampling import check_text_length, completion_budget, requested_max_tokens, sampling_params, seed_of
from server.service import CompletionService, new_id
from server.tools.families import parser
from server.tools.parts import Tool
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
        profile = service.context.prompts.profile
        conversation = conversation_of(request, profile)
        check_text_length(conversation.num_content_chars, ready, service.context.max_chars_per_token, "messages")
        requested, n, seed = requested_max_tokens(request), request.n or 1, seed_of(request)
        with service.admission.reserve(n):
            async with DisconnectWatch(receive):
                grammar = await grammar_of(request.response_format, service.context.grammars)
                prompt = await off_loop_if_long(
                    conversation.num_chars, lambda: service.context.prompts.chat(conversation)
                )
                budget = completion_budget(len(prompt.token_ids), requested, ready, "messages")
                call = _call(request, prompt.token_ids, _sampling(request, budget, seed), grammar, scope, arrived_at_s)
                answer_format = ChatFormat(
                    call.id,
                    request,
                    service.context.vocabulary,
                    lambda: _reader(request, profile, is_thinking=prompt.is_thinking),
                    profile.new_call_id,
                )
                await service.answer(call, answer_format, scope, send)


def _reader(request: ChatRequest, profile: ChatProfile, *, is_thinking: bool) -> AnswerReader:
    """What reads one choice; calls are looked for only where the model was told of tools."""
    tools = [Tool(tool.function.name, tool.function.parameters) for tool in request.tools or ()]
    told = bool(tools) and request.tool_choice != "none"
    calls = parser(profile.family_name, tools) if profile.family_name and told else None
    thoughts = ThoughtSplitter(profile.thoughts, is_open=is_thinking) if profile.thoughts else None
    return AnswerReader(thoughts, calls)


def _sampling(request: ChatRequest, max_tokens: int, seed: int) -> SamplingParams:
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return sampling_params(request, max_tokens=max_tokens, logprobs=logprobs, seed=seed)


def _call(
    request: ChatRequest,
    prompt_ids: list[int],
    sampling: SamplingParams,
    grammar: str,
    scope: Scope,
    arrived_at_s: float,
) -> Call:
    call_id, n = new_id("chatcmpl-"), request.n or 1
    requests = build_requests(
        call_id,
        [(prompt_ids, sampling)],
        n=n,
        priority=_PRIORITIES[request.service_tier or "default"],
        tenant=record_of(scope).tenant,
        arrived_at_s=arrived_at_s,
        grammar=grammar,
    )
    include_usage = bool(request.stream_options and request.stream_options.include_usage)
    return Call(
        id=call_id, requests=requests, choices_per_prompt=n, stream=bool(request.stream), include_usage=include_usage
    )
