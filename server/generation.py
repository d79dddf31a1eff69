"""One API request on its way through the engine: what is submitted, and what its deltas add up to.

Called by the routes. Invariants: every call ends in exactly one of a complete answer, an error event inside its
stream, an HTTP error, or the client's leaving; whichever it is, nothing of the call is left in the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from engine.types import FinishReason, GenerateRequest, SamplingParams, Thoughts, TokenDelta, TokenLogprobs, Usage
from server.answers import CompletionTokensDetails, CompletionUsage, PromptTokensDetails
from server.engine_client import TokenStream
from server.errors import from_error_info
from server.metrics import Metrics

T = TypeVar("T")

LONG_TEXT_CHARS = 20_000
"""Longer bodies are parsed, and longer texts rendered and tokenised, on a thread: the event loop goes on meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One API request, ready for the engine.

    Attributes:
        requests: one for each choice of each prompt, in the order of the answer's indices.
        choices_per_prompt: the request's n.
    """

    id: str
    requests: Sequence[GenerateRequest]
    choices_per_prompt: int
    stream: bool
    include_usage: bool


@dataclass
class Answer:
    """One choice, as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason | None = None


class AnswerFormat(Protocol):
    """How one kind of API writes its answers."""

    def chunk(self, index: int, delta: TokenDelta) -> msgspec.Struct | None:
        """The stream event for one delta, or None if it has nothing to show."""

    def usage_chunk(self, usage: CompletionUsage) -> msgspec.Struct:
        """The event that ends a stream with ``include_usage``."""

    def whole(self, answers: Sequence[Answer], usage: CompletionUsage) -> msgspec.Struct:
        """The body of an answer that is not streamed."""


def build_requests(
    call_id: str,
    prompts: Sequence[tuple[list[int], SamplingParams]],
    *,
    n: int,
    priority: int,
    tenant: str,
    arrived_at_s: float,
    grammar: str = "",
    shown_ids: tuple[int, ...] = (),
    thoughts: Thoughts | None = None,
) -> list[GenerateRequest]:
    """``n`` engine requests for each prompt. A choice depends on its prompt, its seed and its index among the n."""
    requests: list[GenerateRequest] = []
    for prompt_ids, sampling in prompts:
        for choice in range(n):
            requests.append(
                GenerateRequest(
                    f"{call_id}-{len(requests)}",
                    prompt_ids,
                    msgspec.structs.replace(sampling, choice=choice),
                    priority,
                    tenant,
                    arrived_at_s,
                    grammar,
                    shown_ids,
                    thoughts,
                )
            )
    return requests


async def off_loop_if_long(num_chars: int, encode: Callable[[], T]) -> T:
    """Run ``encode`` here if the text is short, else on a thread."""
    if num_chars > LONG_TEXT_CHARS:
        return await asyncio.to_thread(encode)
    return encode()


class CallProgress:
    """Takes a call's deltas: raises its errors, measures it, and knows which choice each belongs to."""

    def __init__(self, call: Call, metrics: Metrics) -> None:
        self._call = call
        self._metrics = metrics
        self._index = {request.request_id: i for i, request in enumerate(call.requests)}
        self._last_at_s: list[float | None] = [None] * len(call.requests)
        self._usages: list[Usage | None] = [None] * len(call.requests)
        self._num_open = len(call.requests)
        self._arrived_at_s = call.requests[0].arrived_at_s

    def take(self, delta: TokenDelta) -> int:
        """Count ``delta`` in; returns the index of its choice.

        Raises:
            UpwellError: the request ended with an error, as ``errors.from_error_info`` has it.
        """
        index = self._index[delta.request_id]
        if delta.error is not None:
            raise from_error_info(delta.error)
        if delta.token_ids:
            now_s = time.monotonic()
            last_s = self._last_at_s[index]
            if last_s is None:
                self._metrics.first_token(now_s - self._arrived_at_s)
            else:
                self._metrics.next_tokens(now_s - last_s, len(delta.token_ids))
            self._last_at_s[index] = now_s
        if delta.finish is not None:
            self._num_open -= 1
            self._usages[index] = delta.usage
            queue_s = delta.usage.queue_s if delta.usage else 0.0
            self._metrics.finished(delta.finish.value, time.monotonic() - self._arrived_at_s, queue_s)
        return index

    def give_up(self, reason: str) -> None:
        """Count every choice that has not finished as ended for ``reason``."""
        self._metrics.ended_early(reason, self._num_open)
        self._num_open = 0

    def usage(self) -> CompletionUsage:
        """Tokens over all choices so far; what the engine found cached is told by each prompt's first choice."""
        firsts = [usage for usage in self._usages[:: self._call.choices_per_prompt] if usage]
        num_prompt = sum(usage.prompt_tokens for usage in firsts)
        ended = [usage for usage in self._usages if usage]
        num_answer = sum(usage.completion_tokens for usage in ended)
        details = CompletionTokensDetails(reasoning_tokens=sum(usage.reasoning_tokens for usage in ended))
        cached = PromptTokensDetails(sum(usage.cached_tokens for usage in firsts))
        return CompletionUsage(num_prompt, num_answer, num_prompt + num_answer, cached, details)


async def collect(deltas: TokenStream, progress: CallProgress, num_choices: int) -> list[Answer]:
    """All choices, complete.

    Raises:
        UpwellError: the engine died, or one of the choices ended with an error.
    """
    answers = [Answer() for _ in range(num_choices)]
    async for batch in deltas:
        for delta in batch:
            answer = answers[progress.take(delta)]
            answer.text.append(delta.text)
            answer.logprobs.extend(delta.logprobs or ())
            answer.finish = delta.finish
    return answers
