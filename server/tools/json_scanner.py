"""Finds the end of a JSON value in a text that comes in pieces, and passes the value on as it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from server.tools.source import BLANKS, Reading, Source

WORD = re.compile(r"[A-Za-z0-9_.+-]+")
_IN_STRING = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPES = frozenset('"\\/bfnrtu')
_VALUE, _KEY, _COLON, _NEXT, _STRING, _ESCAPE, _WORD, _DONE, _BROKEN = range(9)
_WITH_BLANKS = frozenset({_STRING, _ESCAPE, _WORD})
"""States in which whitespace is no filler."""


class JsonScanner:
    """One value, of any depth.

    Its structure must be JSON's: brackets that match, keys with colons, commas; one may be too many before a closing
    bracket. A word may spell anything (``None``, ``.5``) and be a key. In strings, which models like to write by hand,
    what JSON wants escaped is escaped: control characters, and a backslash that begins no escape. All else is passed
    on as it is.
    """

    def __init__(self) -> None:
        self._state = _VALUE
        self._after = _DONE  # the string or word at hand
        self._closers: list[str] = []

    @property
    def is_complete(self) -> bool:
        """Whether the value has ended. A word ends with the character after it."""
        return self._state == _DONE

    @property
    def is_open(self) -> bool:
        """Whether it may go on."""
        return self._state < _DONE

    def scan(self, text: str, start: int, sink: Callable[[str], None]) -> int:
        """Go on by a piece of the text.

        Returns:
            Up to where the text belongs to the value: its end, if the value may go on.
        """
        at = copied = start
        while at < len(text) and self._state < _DONE:
            if self._state not in _WITH_BLANKS and (blanks := BLANKS.match(text, at)):
                at = blanks.end()
                continue
            end, repair = _STEPS[self._state](self, text, at)
            if repair is not None:
                sink(text[copied:at] + repair)
                copied = end
            at = end
        if at > copied:
            sink(text[copied:at])
        return at

    def _value(self, text: str, at: int) -> tuple[int, str | None]:
        character = text[at]
        if character == "{":
            self._closers.append("}")
            self._state = _KEY
        elif character == "[":
            self._closers.append("]")
        elif character == '"':
            self._state, self._after = _STRING, _NEXT if self._closers else _DONE
        elif WORD.match(character):
            self._state, self._after = _WORD, _NEXT if self._closers else _DONE
        elif self._closers and character == self._closers[-1] == "]":
            return self._close(at)
        else:
            return self._break(at)
        return at + 1, None

    def _key(self, text: str, at: int) -> tuple[int, str | None]:
        character = text[at]
        if character == '"':
            self._state, self._after = _STRING, _COLON
        elif WORD.match(character):
            self._state, self._after = _WORD, _COLON
        elif character == "}":
            return self._close(at)
        else:
            return self._break(at)
        return at + 1, None

    def _colon(self, text: str, at: int) -> tuple[int, str | None]:
        if text[at] != ":":
            return self._break(at)
        self._state = _VALUE
        return at + 1, None

    def _next(self, text: str, at: int) -> tuple[int, str | None]:
        if text[at] == self._closers[-1]:
            return self._close(at)
        if text[at] != ",":
            return self._break(at)
        self._state = _KEY if self._closers[-1] == "}" else _VALUE
        return at + 1, None

    def _string(self, text: str, at: int) -> tuple[int, str | None]:
        if plain := _IN_STRING.match(text, at):
            return plain.end(), None
        character = text[at]
        if character == '"':
            self._state = self._after
        elif character == "\\":
            self._state = _ESCAPE
        else:
            return at + 1, escaped(character)
        return at + 1, None

    def _escape(self, text: str, at: int) -> tuple[int, str | None]:
        """After a backslash, which has been passed on already."""
        self._state = _STRING
        character = text[at]
        return at + 1, None if character in _ESCAPES else "\\" + escaped(character)

    def _word(self, text: str, at: int) -> tuple[int, str | None]:
        if word := WORD.match(text, at):
            return word.end(), None
        self._state = self._after
        return at, None

    def _close(self, at: int) -> tuple[int, str | None]:
        self._closers.pop()
        self._state = _NEXT if self._closers else _DONE
        return at + 1, None

    def _break(self, at: int) -> tuple[int, str | None]:
        self._state = _BROKEN
        return at, None


_STEPS = (
    JsonScanner._value,
    JsonScanner._key,
    JsonScanner._colon,
    JsonScanner._next,
    JsonScanner._string,
    JsonScanner._escape,
    JsonScanner._word,
)
"""What to do next, by state."""


def read_json(source: Source, sink: Callable[[str], None]) -> Reading[bool]:
    """Read one value, giving it to ``sink`` as it comes.

    Returns:
        Whether it is complete. If not, the text ended, or what comes next (unread) cannot be part of the value.
    """
    scanner = JsonScanner()
    while scanner.is_open and (yield from source.peek()):
        source.skip(scanner.scan(source.text, source.at, sink) - source.at)
    return scanner.is_complete


def escaped(text: str) -> str:
    """Part of a string, as JSON writes it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
