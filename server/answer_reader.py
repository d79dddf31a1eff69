"""One choice's text as clients get it: thoughts, content and tool calls, streamed and whole by the same steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.reasoning import ThoughtSplitter
from server.tools.parts import CallDelta, CallParser


@dataclass
class AnswerParts:
    """What a piece of an answer adds."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.reasoning or self.content or self.calls)


class AnswerReader:
    """Reads one answer, which comes in pieces.

    Attributes:
        num_calls: tool calls begun so far.
    """

    def __init__(self, thoughts: ThoughtSplitter | None = None, calls: CallParser | None = None) -> None:
        """Without ``thoughts`` there are none apart; without ``calls`` what looks like one is content."""
        self._thoughts, self._calls = thoughts, calls
        self.num_calls = 0

    @property
    def may_call(self) -> bool:
        """Whether tool calls are looked for."""
        return self._calls is not None

    def read(self, text: str, *, is_end: bool, is_cut: bool = False) -> AnswerParts:
        """The next piece, after which there is no other if ``is_end``, although there would have been if ``is_cut``."""
        if self._thoughts is None and self._calls is None:
            return AnswerParts(content=text)
        parts = AnswerParts(content=text)
        if self._thoughts is not None:
            parts.reasoning, parts.content = self._thoughts.feed(text)
            if is_end:
                more = self._thoughts.finish()
                parts.reasoning, parts.content = parts.reasoning + more.reasoning, parts.content + more.content
        if self._calls is not None:
            self._read_calls(parts, self._calls, is_end=is_end, is_cut=is_cut)
        return parts

    def _read_calls(self, parts: AnswerParts, calls: CallParser, *, is_end: bool, is_cut: bool) -> None:
        found = calls.feed(parts.content)
        parts.content, parts.calls = found.content, found.calls
        if is_end:
            rest = calls.finish(is_cut=is_cut)
            parts.content, parts.calls = parts.content + rest.content, merged([*parts.calls, *rest.calls])
        self.num_calls = max([self.num_calls, *(call.index + 1 for call in parts.calls)])


def merged(deltas: list[CallDelta]) -> list[CallDelta]:
    """One delta for each call, in order."""
    by_index: dict[int, CallDelta] = {}
    for delta in deltas:
        known = by_index.setdefault(delta.index, CallDelta(delta.index))
        known.name = known.name or delta.name
        known.arguments += delta.arguments
    return [by_index[index] for index in sorted(by_index)]
