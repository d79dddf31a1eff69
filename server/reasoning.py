"""Thoughts apart from the answer: what a reasoning model writes between two markers before it answers.

One splitter for each answer. Whether the answer begins amid the thoughts is told by the end of the rendered prompt,
which some templates close with the opening marker. Thoughts lose the whitespace around them, the answer that before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Markers(NamedTuple):
    """What stands before and after thoughts."""

    start: str
    end: str


THOUGHTS = {
    "think": Markers("<think>", "</think>"),
    "seed": Markers("<seed:think>", "</seed:think>"),
    "mistral": Markers("[THINK]", "[/THINK]"),
}
"""By the name that the flag takes."""


class Split(NamedTuple):
    """What a piece of text adds."""

    reasoning: str
    content: str


class ThoughtSplitter:
    """Splits one text that comes in pieces; however it is cut, the parts add up to the same.

    Only thoughts at the beginning count: a marker later on is content. Takes time in proportion to the text.
    """

    def __init__(self, markers: Markers, *, is_open: bool) -> None:
        """``is_open``: the prompt has the opening marker already."""
        self._markers = markers
        self._blank: list[str] = []
        self._held = ""
        self._take: Callable[[str], Split] = self._thought if is_open else self._beginning
        self._begun = False

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is a thought, as far as is known."""
        return self._take == self._thought

    def feed(self, text: str) -> Split:
        """Take the next piece."""
        return self._take(text) if text else Split("", "")

    def finish(self) -> Split:
        """The answer has ended: what was held back, which may be whitespace and part of a marker."""
        if not self.is_thinking:
            return Split("", "".join(self._blank) + self._held)
        return Split(self._after_blank(self._held), "") if self._held else Split("", "")

    def _beginning(self, text: str) -> Split:
        """Up to where it is certain whether the opening marker comes first."""
        start = self._markers.start
        if not self._held:
            seen = text.lstrip()
            self._blank.append(text[: len(text) - len(seen)])
        else:
            seen = self._held + text
        if len(seen) < len(start) and start.startswith(seen):
            self._held = seen
            return Split("", "")
        blank, self._held, self._blank = "".join(self._blank), "", []
        if seen.startswith(start):
            self._take = self._thought
            return self.feed(seen.removeprefix(start))
        self._take = self._answer
        return Split("", blank + seen)

    def _thought(self, text: str) -> Split:
        """Up to the closing marker; what may be part of it, and whitespace that it may follow, is held back."""
        end, text = self._markers.end, self._held + text
        place = text.find(end)
        if place >= 0:
            thought = self._after_blank(text[:place].rstrip())
            self._held, self._blank, self._take = "", [], self._gap
            return Split(thought, self.feed(text[place + len(end) :]).content)
        certain = len(text) - _overlap(text, end)
        self._held = text[certain:]
        shown = text[:certain].rstrip()
        blank = text[len(shown) : certain]
        shown = self._after_blank(shown)
        self._blank.append(blank)
        return Split(shown, "")

    def _after_blank(self, shown: str) -> str:
        """More of the thoughts, after the whitespace that was held back, unless they begin here."""
        if not shown:
            return ""
        shown = "".join([*self._blank, shown])
        self._blank = []
        if not self._begun:
            shown = shown.lstrip()
        self._begun = True
        return shown

    def _gap(self, text: str) -> Split:
        """Whitespace between thoughts and answer."""
        text = text.lstrip()
        if text:
            self._take = self._answer
        return Split("", text)

    def _answer(self, text: str) -> Split:
        return Split("", text)


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of a text a marker may begin with."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
