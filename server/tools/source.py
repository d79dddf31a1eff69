"""The text of an answer as the readers of calls see it: one stream, with no sign of where it was cut.

Readers are generators, written as if the whole text were there: ``yield from`` one of the functions of a ``Source``
waits until there is enough of it. What they do depends on the text alone, so it is the same for every way to cut it.
Invariant: between two pieces no more is left unread than the longest marker has characters, so reading is linear.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Reading: TypeAlias = Generator[None, None, T]
"""Yields when it needs more of the text (or its end), and returns a T."""

WHITESPACE = " \t\r\n"
BLANKS = re.compile(rf"[{WHITESPACE}]+")


class Markers:
    """Some texts to look for. None of them may begin with another, but one may end with another."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.longest = max(map(len, texts))
        self._any = re.compile("|".join(map(re.escape, texts)))
        self._first = re.compile("|".join({re.escape(text[0]) for text in texts}))

    def search(self, text: str, start: int) -> tuple[int, str]:
        """The first of the texts from ``start`` on: where it begins, and which it is.

        Without one: where what may become one begins (at the latest, the end of the text), and "".
        """
        found = self._any.search(text, start)
        end = found.start() if found else len(text)
        begin = max(start, len(text) - self.longest + 1)
        while first := self._first.search(text, begin, end):
            if self._may_become_one(text[first.start() :]):
                return first.start(), ""
            begin = first.start() + 1
        return end, found.group() if found else ""

    def match(self, text: str, start: int) -> str | None:
        """Which of the texts stands at ``start``; "" if none does; None if that is not known yet."""
        found = self._any.match(text, start)
        if found:
            return found.group()
        return None if self._may_become_one(text[start : start + self.longest]) else ""

    def _may_become_one(self, tail: str) -> bool:
        return any(len(tail) < len(text) and text.startswith(tail) for text in self.texts)


class Source:
    """What came of an answer, and how far it is read.

    What is read can be held, in case that it turns out to be something else: ``hold``, then ``drop`` or ``release``.

    Attributes:
        text: what is left of it, and some of what has been read.
        at: where in it the unread begins.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self._has_ended = False
        self._held: list[str] | None = None

    def feed(self, text: str) -> None:
        """The next piece of the text."""
        self.text = self.text[self.at :] + text
        self.at = 0

    def end(self) -> None:
        """No more will come."""
        self._has_ended = True

    def hold(self) -> None:
        """Keep what is read from here on; if it is held already, go on so."""
        if self._held is None:
            self._held = []

    def drop(self) -> None:
        """Hold no longer, and forget what was held."""
        self._held = None

    def release(self) -> str:
        """Hold no longer. Returns what was held."""
        held, self._held = self._held, None
        return "".join(held or ())

    def skip(self, count: int) -> str:
        """Read so many characters, which are known to be there."""
        text = self.text[self.at : self.at + count]
        self.at += count
        if self._held is not None:
            self._held.append(text)
        return text

    def peek(self) -> Reading[str]:
        """The next character, unread; "" at the end."""
        while self.at == len(self.text) and not self._has_ended:
            yield
        return self.text[self.at : self.at + 1]

    def run(self, characters: re.Pattern[str], limit: int | None = None) -> Reading[str]:
        """Read the characters that come next and are of a kind, ``limit`` at most.

        Args:
            characters: matches one or more of them; whether a character is one must not depend on its neighbours.
            limit: how many to read.
        """
        pieces: list[str] = []
        left = limit
        while left != 0 and (yield from self.peek()):
            end = len(self.text) if left is None else self.at + left
            found = characters.match(self.text, self.at, end)
            if not found:
                break
            pieces.append(self.skip(found.end() - self.at))
            left = None if left is None else left - len(pieces[-1])
        return "".join(pieces)

    def blanks(self) -> Reading[None]:
        """Read whitespace."""
        yield from self.run(BLANKS)

    def ahead(self, markers: Markers) -> Reading[str]:
        """Which marker comes next, unread; "" if none does."""
        while (found := markers.match(self.text, self.at)) is None and not self._has_ended:
            yield
        return found or ""

    def read(self, markers: Markers) -> Reading[str]:
        """Read the marker that comes next; "" if none does."""
        found = yield from self.ahead(markers)
        self.skip(len(found))
        return found

    def until(self, markers: Markers, sink: Callable[[str], None]) -> Reading[str]:
        """Read up to the first marker, giving the text to ``sink`` as it comes.

        Returns:
            The marker, unread; "" if the text ended without one.
        """
        while True:
            end, found = markers.search(self.text, self.at)
            if self._has_ended and not found:
                end = len(self.text)
            if end > self.at:
                sink(self.skip(end - self.at))
            if found or self._has_ended:
                return found
            yield
