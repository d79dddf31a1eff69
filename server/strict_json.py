"""JSON as RFC 8259 and common sense have it: one meaning for every body, or a refusal.

Called by ``validation`` with a body that is already bounded in bytes. Beyond what ``json`` does, refused are: anything
but UTF-8, a byte order mark, objects that name a key twice, NaN and infinities (also as ``1e999``), lone surrogates,
more than ``MAX_DEPTH`` levels, and more than ``MAX_ITEMS`` strings and containers in a nested body.
"""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

from engine.errors import InvalidRequest

MAX_DEPTH = 64
MAX_ITEMS = 100_000

HUGE_INT = 2**100
"""Stands for every integer with too many digits to read: beyond the bounds of any field."""

_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> object:
    """The value that ``body`` holds.

    An integer with more digits than Python reads (4,300) becomes ``HUGE_INT`` or its negative, so that the check of
    the field's bounds can name the field.

    Raises:
        InvalidRequest: with the code ``invalid_json``; the message never quotes the body.
    """
    _check_shape(body)
    text = _decode_utf8(body)
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at character {error.pos}") from None
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def _decode(text: str) -> object:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer with too many digits; rare enough to read the body twice
        return _BOUNDED_DECODER.decode(text)


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not valid JSON: {reason}.", code="invalid_json")


def _check_shape(body: bytes) -> None:
    """Refuse bodies that are costly to parse, before they are parsed. The common body pays for two byte counts."""
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    depth = items = 0
    for match in _STRING_OR_BRACKET.finditer(body):
        first = body[match.start()]
        if first in b"]}":
            depth -= 1
            continue
        items += 1
        depth += first in b"[{"
        if depth > MAX_DEPTH:
            raise _invalid(f"it is nested more than {MAX_DEPTH} levels deep")
        if items > MAX_ITEMS:
            raise _invalid(f"it has more than {MAX_ITEMS} values")


def _decode_utf8(body: bytes) -> str:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise _invalid("it begins with a byte order mark; send plain UTF-8")
    return text


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _invalid("a string holds half of a surrogate pair") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _invalid("an object names the same key twice")
    return members


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _invalid("a number is too large")
    return number


def _refuse_constant(name: str) -> float:
    raise _invalid(f"{name} is not a JSON number")


def _bounded_int(digits: str) -> int:
    if len(digits) > sys.int_info.default_max_str_digits:
        return -HUGE_INT if digits.startswith("-") else HUGE_INT
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_float=_finite,
    parse_constant=_refuse_constant,
)
_BOUNDED_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_float=_finite,
    parse_constant=_refuse_constant,
    parse_int=_bounded_int,
)
