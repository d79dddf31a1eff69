"""Words of a schema that hold no schemas: what the grammar library is handed for each.

Called by ``schema``, once for each word. A word becomes schemas that all have to hold, in the library's own terms; none
if there is nothing to keep.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from server.grammar import formats
from server.grammar.patterns import kept_patterns
from server.grammar.quantities import NotKept, kept_constant, kept_divisor, lower_bound, upper_bound

Kept = list[dict[str, Any]]
MAX_COUNT = 10_000
"""Of items, or of members, that must be there."""
MAX_LENGTH = 1_000_000
"""Of a text that must be as long."""
OUT_OF_REACH = 2**31
"""No answer has so many characters, and counting to it keeps nothing."""


def leaf(word: str, value: Any, types: frozenset[str]) -> Kept:
    """What is to be kept of a word, where values may be of ``types``.

    Raises:
        NotKept: the value is none for the word, or none that a grammar keeps.
    """
    if word == "format":
        return _format(value, types)
    if word == "pattern":
        return [{word: pattern} for pattern in kept_patterns(_text(value))]
    if word in _UPPER_LIMITS and _whole(value) > OUT_OF_REACH:
        return []
    return [{word: _LEAVES[word](value)}]


def _count(value: Any) -> int:
    number = _whole(value)
    if number > MAX_COUNT:
        raise NotKept(f"can be at most {MAX_COUNT}")
    return number


def _length(value: Any) -> int:
    number = _whole(value)
    if number > MAX_LENGTH:
        raise NotKept(f"can be at most {MAX_LENGTH}")
    return number


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or value < 0:
        raise NotKept("must be an integer that is not negative")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotKept("must be a number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NotKept("must be a text")
    return value


def _enum(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise NotKept("must be a list of at least one value")
    return [kept_constant(each) for each in value]


def _required(value: Any) -> list[str]:
    if isinstance(value, bool):
        raise NotKept("must be a list of names, in the object that has the properties")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise NotKept("must be a list of names")
    return list(dict.fromkeys(value))


def _format(value: Any, types: frozenset[str]) -> Kept:
    value = _text(value)
    is_text = "string" in types
    if value in formats.REMARKS:
        return []
    if value in formats.INTEGERS or value in formats.NUMBERS:
        if is_text:
            raise NotKept(f"says '{value}', which is kept of numbers; give the type, or a pattern for a text")
        bounds = formats.INTEGERS.get(value)
        return [{"minimum": lower_bound(bounds[0]), "maximum": upper_bound(bounds[1])}] if bounds else []
    if value in formats.HELD or not is_text:  # all others are of texts, and say nothing of what is none
        return formats.HELD[value] if is_text else []
    nearest = difflib.get_close_matches(value[:32], formats.HELD, n=1, cutoff=0.75)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else "; leave it out, or write a pattern."
    raise NotKept(f"says '{value[:32]}', which is not among the formats that are kept{hint}")


_LEAVES: dict[str, Callable[[Any], Any]] = {
    "const": kept_constant,
    "enum": _enum,
    "required": _required,
    "minLength": _length,
    "maxLength": _whole,
    "minItems": _count,
    "maxItems": _whole,
    "minProperties": _count,
    "maxProperties": _whole,
    "minimum": lambda value: lower_bound(_number(value)),
    "maximum": lambda value: upper_bound(_number(value)),
    "exclusiveMinimum": lambda value: lower_bound(_number(value)),
    "exclusiveMaximum": lambda value: upper_bound(_number(value)),
    "multipleOf": lambda value: kept_divisor(_number(value)),
}
_UPPER_LIMITS = frozenset({"maxLength", "maxItems", "maxProperties"})
WORDS = frozenset(_LEAVES) | {"format", "pattern"}
