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
from server.answers import CompletionUsage
from server.cost import account, usage_of
from server.engine_client import TokenStream
from server.envelope import RequestRecord
from server.errors import from_error_info
from server.metrics import Metrics
from server.request_effects import priority_of
from server.schemas import SamplingFields

T = TypeVar("T")

JSON_OF_A_TOKEN = 60
"""Characters that a token and its log probability take, about."""
LONG_TEXT_CHARS = 20_000
"""Longer bodies are parsed, and longer texts rendered and tokenised, on a thread: the event loop goes on meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One API request, ready for the engine.

    Attributes:
        requests: one for each choice of each prompt, in the order of the answer's indices.
        choices_per_prompt: the request's n.
        include_usage: whether a stream ends with its usage.
        explain_usage: whether the usage says where the time went.
    """

    id: str
    requests: Sequence[GenerateRequest]
    choices_per_prompt: int
    stream: bool
    include_usage: bool
    explain_usage: bool = False


@dataclass
class Answer:
    """One choice, as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason | None = None

    def num_chars(self, choices_per_prompt: int) -> int:
        """About as long as its JSON, log probabilities and all; those of the prompt are in each of its choices."""
        tokens = sum(1 + len(entry.top) for entry in self.logprobs)
        tokens += choices_per_prompt * sum(1 + len(entry.top) for entry in self.prompt_logprobs)
        return sum(map(len, self.text)) + JSON_OF_A_TOKEN * tokens


class AnswerFormat(Protocol):
    """How one kind of API writes its answers."""

    def chunk(self, index: int, delta: TokenDelta) -> msgspec.Struct | None:
        """The stream event for one delta, or None if it has nothing to show."""

    def usage_chunk(self, usage: CompletionUsage) -> msgspec.Struct:
        """The event that ends a stream with ``include_usage``."""

    def whole(self, answers: Sequence[Answer], usage: CompletionUsage) -> msgspec.Struct:
        """The body of an answer that is not streamed."""


def build_call(
    call_id: str,
    request: SamplingFields,
    record: RequestRecord,
    prompts: Sequence[tuple[list[int], SamplingParams]],
    *,
    grammar: str,
    prediction_ids: Sequence[int],
    shown_ids: tuple[int, ...] = (),
    thoughts: Thoughts | None = None,
    prompt_logprobs: int | None = None,
) -> Call:
    """A call with n engine requests for each prompt, as ``engine.types.GenerateRequest`` has them.

    A choice depends on its prompt, its seed and its index among the n.
    """
    n = request.n or 1
    requests = [
        GenerateRequest(
            f"{call_id}-{n * place + choice}",
            prompt_ids,
            msgspec.structs.replace(sampling, choice=choice),
            priority_of(request),
            record.tenant,
            record.arrived_at_s,
            grammar,
            shown_ids,
            thoughts,
            tuple(prediction_ids),
            keep_cached=bool(request.prompt_cache_key),
            group=f"{call_id}-{n * place}" if n > 1 else "",
            prompt_logprobs=None if choice else prompt_logprobs,
        )
        for place, (prompt_ids, sampling) in enumerate(prompts)
        for choice in range(n)
    ]
    return Call(
        id=call_id,
        requests=requests,
        choices_per_prompt=n,
        stream=bool(request.stream),
        include_usage=request.include_usage,
        explain_usage=request.explain_usage,
    )


async def off_loop_if_long(num_chars: int, encode: Callable[[], T]) -> T:
    """Run ``encode`` here if the text is short, else on a thread."""
    if num_chars > LONG_TEXT_CHARS:
        return await asyncio.to_thread(encode)
    return encode()


class CallProgress:
    """Takes a call's deltas: raises its errors, measures it, and knows which choice each belongs to.

    Made when the call is handed to the engine.
    """

    def __init__(self, call: Call, metrics: Metrics) -> None:
        self._call = call
        self._metrics = metrics
        self._index = {request.request_id: i for i, request in enumerate(call.requests)}
        self._last_at_s: list[float | None] = [None] * len(call.requests)
        self._usages: list[Usage | None] = [None] * len(call.requests)
        self._last_usage: Usage | None = None
        self._num_open = len(call.requests)
        self._arrived_at_s = call.requests[0].arrived_at_s
        self._submitted_at_s = time.monotonic()

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
            self._usages[index] = self._last_usage = delta.usage
            self._metrics.finished(delta.finish.value, time.monotonic() - self._arrived_at_s, delta.usage)
        return index

    def give_up(self, reason: str) -> None:
        """Count every choice that has not finished as ended for ``reason``."""
        self._metrics.ended_early(reason, self._num_open)
        self._num_open = 0

    def usage(self) -> CompletionUsage:
        """What the call has cost so far; where its time went is told up to now, if it was asked for."""
        n = self._call.choices_per_prompt
        usage = usage_of(self._usages, n)
        if not self._call.explain_usage or self._last_usage is None:
            return usage
        explained = account(
            self._usages,
            n,
            self._last_usage,
            arrived_at_s=self._arrived_at_s,
            submitted_at_s=self._submitted_at_s,
            now_s=time.monotonic(),
        )
        return msgspec.structs.replace(usage, upwell=explained)


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
            answer.prompt_logprobs.extend(delta.prompt_logprobs or ())
            answer.finish = delta.finish
    return answers
