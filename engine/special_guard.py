"""Keeps control tokens out of what clients write.

A chat template mixes the model's control tokens with texts of the client, and the result is one string. So that a
client's ``<|im_end|>`` stays ordinary text, it is broken up before rendering: ``SpecialGuard.protect`` puts a character
that occurs nowhere else, the mark, into every place where client text forms a control token, or could form one together
with what the template puts next to it. After rendering, only the template's own control tokens are still whole, and
``Tokenizer.encode_rendered`` takes the marks out again. Called by the server for each chat request; nearly always there
is nothing to mark, and the messages pass through untouched.

Limits: a template that cuts client text apart in the middle and joins the pieces anew could form a control token that
was not there; no family's template does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from engine.errors import InvalidRequest

_MARKS = [*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900)]
"""Noncharacters and the private use area, all in the Basic Multilingual Plane: JSON escapes each as ``\\uxxxx``."""
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_NAME = re.compile(r"[A-Za-z0-9_.-]*", re.ASCII)


@dataclass(frozen=True)
class Guarded:
    """Messages that are safe to render.

    Attributes:
        value: what was given, with marks in it where needed.
        mark: the character that ``encode_rendered`` has to take out, or None if there is none.
    """

    value: Any
    mark: str | None


class SpecialGuard:
    """Finds and breaks up the control tokens of one tokenizer.

    Args:
        specials: the texts of its control tokens.
    """

    def __init__(self, specials: Collection[str]) -> None:
        self._specials = [special for special in specials if special]
        self._starts = re.compile(f"(?=({alternatives(self._specials)}))")
        self._any_blank = any(special.isspace() for special in self._specials)
        self._joined = "\0".join(self._specials)
        self._longest = max(map(len, self._specials), default=0)
        self._heads = {special[:i] for special in self._specials for i in range(1, len(special))}
        self._tails = {special[i:] for special in self._specials for i in range(1, len(special))}
        self._first = frozenset(special[0] for special in self._specials)
        self._last = frozenset(special[-1] for special in self._specials)

    def protect(self, value: Any) -> Guarded:
        """Break up every control token in the client's texts.

        Args:
            value: plain JSON data: messages, tools, or a dict of both.

        Raises:
            InvalidRequest: the texts use every character that could serve as the mark.
        """
        if not any(self._places(text, key) for text, key in _texts(value)):
            return Guarded(value, None)
        mark = _unused_mark(value)
        return Guarded(self._marked(value, mark, None), mark)

    def _marked(self, value: Any, mark: str, key: str | None) -> Any:
        """A copy of ``value`` with the marks put in; ``key`` is the object key it stands under."""
        if isinstance(value, str):
            places = sorted(self._places(value, key))
            return mark.join(value[start:end] for start, end in pairwise([0, *places, len(value)]))
        if isinstance(value, dict):
            return {self._marked(k, mark, _KEY): self._marked(v, mark, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(item, mark, key) for item in value]
        return value

    def _places(self, text: str, key: str | None) -> list[int]:
        """Where a mark has to go into ``text``: two into each control token, one to an edge."""
        inside = [match.start() + self._inside(match[1]) for match in self._starts.finditer(text)]
        edges: set[int] = set()
        if not _is_name(text, key):
            end = len(text.rstrip())
            start = min(end, len(text) - len(text.lstrip()))
            for first, last in {(0, len(text)), (start, end)}:  # templates may trim white space
                edges.update(first + place for place in self._edges(text[first:last]))
        return [*inside, *inside, *edges]

    def _inside(self, special: str) -> int:
        """Where to break up a control token: behind its first character, but never apart from white space at its start.

        So trimming a marked text takes away what it would have taken away without the mark.
        """
        num_spaces = len(special) - len(special.lstrip())
        return num_spaces if num_spaces and not self._any_blank else 1

    def _edges(self, text: str) -> set[int]:
        """0 or the length of ``text``, or both: where it might form a control token with its neighbours."""
        longest = min(self._longest, len(text))
        lengths = range(1, longest + 1)
        places: set[int] = set()
        if not self._first.isdisjoint(text[-longest:]) and any(text[-i:] in self._heads for i in lengths):
            places.add(len(text))
        if not self._last.isdisjoint(text[:longest]) and any(text[:i] in self._tails for i in lengths):
            places.add(0)
        if 0 < len(text) < self._longest and text in self._joined:
            places |= {0, len(text)}
        return places


_KEY = "\0key"
"""Stands for "this text is itself an object key" where a text's own key is asked for."""


def _is_name(text: str, key: str | None) -> bool:
    """Whether templates compare the text, or look things up by it, so that only whole control tokens are broken up."""
    if key == "role":
        return text in _ROLES
    return key in {"type", _KEY} and _NAME.fullmatch(text) is not None


def _texts(value: Any, key: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Every text in ``value`` with the object key it stands under."""
    if isinstance(value, str):
        yield value, key
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name, _KEY
            yield from _texts(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, key)


def _unused_mark(value: Any) -> str:
    """A character that is in none of the texts, neither itself nor escaped as JSON would."""
    used = set().union(*(text for text, _ in _texts(value)))
    escaped = {code for text, _ in _texts(value) for code in re.findall(r"\\u([0-9a-f]{4})", text)}
    for code in _MARKS:
        if chr(code) not in used and f"{code:04x}" not in escaped:
            return chr(code)
    raise InvalidRequest(
        "The messages use every character of the private use area; leave those characters out.", param="messages"
    )


def is_broken_up(text: str, place: int, mark: str) -> bool:
    """Whether the control token of one character, too short for a mark inside, that ends at ``place`` is a client's."""
    return text.startswith((mark * 2, f"\\u{ord(mark):04x}" * 2), place)


def remove_mark(text: str, mark: str) -> str:
    """Take the marks out of a rendered text, those that a template's ``tojson`` escaped too."""
    return text.replace(mark, "").replace(f"\\u{ord(mark):04x}", "")


def alternatives(texts: Collection[str]) -> str:
    """A pattern for any of ``texts``, the longest first; one that never matches if there are none."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"
