"""The parser of an answer, of any family: content up to markup, a call, what separates it from the next, and so on.

What a call looks like is its family's ``CallSyntax``; how content, calls, and what fails to be one follow each other is
the same for all, and here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from server.tools.answer import Answer
from server.tools.parts import Parts
from server.tools.source import Markers, Reading, Source

SEPARATORS = re.compile(r"[ \t\r\n,;]+")
"""What models write between two calls."""


class CallSyntax(Protocol):
    """How calls are written. One for each answer."""

    @property
    def openers(self) -> tuple[str, ...]:
        """What may begin calls."""

    @property
    def closers(self) -> tuple[str, ...]:
        """What may end them, the last of these for good. It is markup only after calls have begun."""

    def calls(self, opener: str) -> Reading[bool]:
        """Read what follows an opener, as far as it belongs to a call, or to several.

        Returns:
            True if there was a call. If not, the source still holds all that was read, the opener first.
        """


class CallReader:
    """A ``CallParser``.

    Args:
        syntax: makes the family's syntax, which reads from the source and writes to the answer.
        only_first: no call comes after content.
    """

    def __init__(self, syntax: Callable[[Source, Answer], CallSyntax], *, only_first: bool = False) -> None:
        self._only_first = only_first
        self._source = Source()
        self._answer = Answer()
        self._syntax = syntax(self._source, self._answer)
        self._reading = self._read()
        next(self._reading)

    def feed(self, text: str) -> Parts:
        """Take the next piece."""
        if text:
            self._source.feed(text)
            next(self._reading)
        return self._answer.take()

    def finish(self, *, is_cut: bool = False) -> Parts:
        """See ``CallParser.finish``."""
        amid_call = is_cut and self._answer.call_came_last
        self._source.end()
        next(self._reading, None)
        self._answer.end()
        parts = self._answer.take()
        if amid_call:
            parts.content = ""
        return parts

    def _read(self) -> Reading[None]:
        source, syntax = self._source, self._syntax
        outside = Markers(*syntax.openers)
        inside = Markers(*syntax.openers, *syntax.closers)
        markers = outside
        while marker := (yield from source.until(markers, self._answer.content)):
            if self._only_first and self._answer.has_content:
                break
            source.hold()
            source.skip(len(marker))
            while marker:
                if marker in syntax.closers:
                    source.drop()
                    markers = outside if marker == syntax.closers[-1] else inside
                elif (yield from syntax.calls(marker)):
                    markers = inside
                else:
                    break
                source.hold()
                yield from source.run(SEPARATORS)
                marker = yield from source.read(markers)
            self._answer.content(source.release())
        while (yield from source.peek()):
            self._answer.content(source.skip(len(source.text) - source.at))
