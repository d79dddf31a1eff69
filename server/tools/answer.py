"""What the readers of calls have made of an answer so far, collected until it is taken."""

from __future__ import annotations

from server.tools.parts import CallDelta, Parts
from server.tools.source import WHITESPACE


class Answer:
    """Content and calls of one answer.

    Whitespace in the content waits until it is known to be neither at its beginning nor at its end, or not next to a
    call there.

    Attributes:
        num_calls: how many there are so far.
        has_content: there has been some that is no whitespace.
        call_came_last: nothing else has come since, but whitespace.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._content: list[str] = []
        self._calls: list[tuple[int, str | None, list[str]]] = []
        self._blanks: list[str] = []
        self.has_content = False
        self.call_came_last = False

    def content(self, text: str) -> None:
        """More content."""
        if self.call_came_last and not self.has_content:
            text = text.lstrip(WHITESPACE)
        end = len(text.rstrip(WHITESPACE))
        if end:
            self._content += [*self._blanks, text[:end]]
            self._blanks.clear()
            self.has_content, self.call_came_last = True, False
        if end < len(text):
            self._blanks.append(text[end:])

    def open_call(self, name: str) -> None:
        """A call begins; its name is certain."""
        self._calls.append((self.num_calls, name, []))
        self.num_calls += 1
        self.call_came_last = True
        if not self.has_content:
            self._blanks.clear()

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if not self._calls:
            self._calls.append((self.num_calls - 1, None, []))
        self._calls[-1][2].append(text)

    def end(self) -> None:
        """Nothing follows."""
        if not self.call_came_last:
            self._content += self._blanks
        self._blanks.clear()

    def take(self) -> Parts:
        """What has been added since the last time."""
        calls = [CallDelta(index, name, "".join(pieces)) for index, name, pieces in self._calls]
        parts = Parts("".join(self._content), calls)
        self._content.clear()
        self._calls.clear()
        return parts
