"""Chat answers and their chunks, made of what an ``AnswerReader`` finds in each choice's text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgspec import UNSET, UnsetType

from engine.types import FinishReason, TokenDelta
from server.answer_reader import AnswerParts, AnswerReader
from server.answers import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    CompletionUsage,
    Delta,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from server.chat_schemas import ChatRequest
from server.chosen_tools import names_one
from server.context import Vocabulary
from server.generation import Answer
from server.logprobs import chat_logprobs
from server.request_effects import SaidWithAnswer, without_metadata
from server.tools.parts import CallDelta

TOOL_CALLS = "tool_calls"
"""Why an answer with tool calls ended, where the engine says that it stopped."""


class ChatFormat:
    """The format of one request's answers; see ``generation.AnswerFormat``.

    A whole answer is what its chunks add up to, since both are read by the same steps.
    """

    def __init__(
        self,
        call_id: str,
        request: ChatRequest,
        vocabulary: Vocabulary,
        new_reader: Callable[[], AnswerReader],
        new_call_id: Callable[[], str],
        said: SaidWithAnswer,
    ) -> None:
        self._id = call_id
        self._created = int(time.time())
        self._model = request.model
        self._logprobs = bool(request.logprobs)
        self._names_one = names_one(request)
        self._vocabulary = vocabulary
        self._new_call_id = new_call_id
        self._said = said
        self._readers = [new_reader() for _ in range(request.n or 1)]
        self._begun: set[int] = set()
        self._with_content: set[int] = set()
        self._no_usage: UnsetType | None = None if request.include_usage else UNSET

    def chunk(self, index: int, delta: TokenDelta) -> ChatCompletionChunk | None:
        """See ``AnswerFormat.chunk``."""
        first = index not in self._begun
        entries = (delta.logprobs or ()) if self._logprobs else None
        reader = self._readers[index]
        parts = reader.read(delta.text, is_end=delta.finish is not None, is_cut=delta.finish is FinishReason.LENGTH)
        if not (first or parts or entries or delta.finish):
            return None
        self._begun.add(index)
        logprobs = None if entries is None else chat_logprobs(entries, self._vocabulary)
        finish = self._finish_of(delta.finish, reader) if delta.finish else None
        return self._chunk(
            [ChunkChoice(index, self._delta(index, parts, first=first, last=bool(finish)), logprobs, finish)]
        )

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
            **self._said,
        )

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        logprobs = chat_logprobs(answer.logprobs, self._vocabulary) if self._logprobs else None
        reader = self._readers[index]
        parts = reader.read("".join(answer.text), is_end=True, is_cut=answer.finish is FinishReason.LENGTH)
        calls = [
            ToolCall(id=self._new_call_id(), function=CalledFunction(call.name or "", call.arguments))
            for call in parts.calls
        ]
        message = AnswerMessage(
            content=parts.content if parts.content or not calls else None,
            reasoning_content=parts.reasoning or UNSET,
            tool_calls=calls or UNSET,
        )
        return ChatChoice(index, message, logprobs, self._finish_of(answer.finish or FinishReason.STOP, reader))

    def _delta(self, index: int, parts: AnswerParts, *, first: bool, last: bool) -> Delta:
        return Delta(
            role="assistant" if first else UNSET,
            content=self._content(index, parts, last=last),
            reasoning_content=parts.reasoning or UNSET,
            tool_calls=[self._call(call) for call in parts.calls] or UNSET,
        )

    def _content(self, index: int, parts: AnswerParts, *, last: bool) -> str | UnsetType:
        """What a delta has of the content: empty text where it has nothing else, as an answer without calls has some.

        Where the answer may turn out to be nothing but calls, and so to have none, empty text waits for its end.
        """
        reader, begun = self._readers[index], index in self._with_content
        if last:
            is_there = bool(parts.content) or not (begun or reader.num_calls)
        else:
            is_there = bool(parts.content) or not (parts.reasoning or parts.calls or (reader.may_call and not begun))
        if not is_there:
            return UNSET
        self._with_content.add(index)
        return parts.content

    def _call(self, call: CallDelta) -> ToolCallDelta:
        if call.name is None:
            return ToolCallDelta(index=call.index, function=FunctionDelta(arguments=call.arguments))
        function = FunctionDelta(name=call.name, arguments=call.arguments)
        return ToolCallDelta(index=call.index, id=self._new_call_id(), type="function", function=function)

    def _chunk(
        self, choices: list[ChunkChoice], usage: CompletionUsage | UnsetType | None = UNSET
    ) -> ChatCompletionChunk:
        said, self._said = self._said, without_metadata(self._said)
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage if choices == [] else self._no_usage,
            **said,
        )

    def _finish_of(self, finish: FinishReason, reader: AnswerReader) -> str:
        """As with OpenAI, a call of the function that the request named is no reason of its own."""
        has_ended = finish is FinishReason.STOP and reader.num_calls and not self._names_one
        return TOOL_CALLS if has_ended else finish.value
