"""What a parameter's text stands for, by its schema: families whose calls are not JSON write values without quotes.

Schemas are clients' and unchecked here: whatever they hold, a set of types comes out, in bounded time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import NoReturn

from server.tools.json_scanner import escaped
from server.tools.source import WHITESPACE

ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
STRING = frozenset({"string"})
MAX_SCHEMAS, MAX_DEPTH = 1000, 32
"""So many parts of a schema are looked at for one parameter's types, and so deep; what lies beyond may be of any."""
MAX_WORD_CHARS = 64
"""A longer text is a string, if it may be one, and is no object or array."""
_WORDS = {
    "true": ("true", "boolean"),
    "false": ("false", "boolean"),
    "null": ("null", "null"),
    "none": ("null", "null"),
}
_DIGITS = "-0123456789"


class ParameterTypes:
    """Of which types the parameters of one function may be.

    Args:
        schema: of the function's arguments; None if nothing is known of it.
    """

    def __init__(self, schema: Mapping[str, object] | None) -> None:
        self._root: object = schema
        self._known: dict[str, frozenset[str]] = {}
        self._left = 0

    def of(self, name: str) -> frozenset[str]:
        """JSON Schema's names of types. A parameter that the schema does not know is a string."""
        if name not in self._known:
            self._left = MAX_SCHEMAS
            self._known[name] = self._types(self._schema_of(name)) or STRING
        return self._known[name]

    def _schema_of(self, name: str) -> object:
        root = self._resolved(self._root)
        if not isinstance(root, Mapping):
            return {"type": "string"}
        properties = root.get("properties")
        if isinstance(properties, Mapping) and name in properties:
            return properties[name]
        others = root.get("additionalProperties")
        return others if isinstance(others, Mapping) and others else {"type": "string"}

    def _types(self, schema: object, depth: int = 0) -> frozenset[str]:
        self._left -= 1
        schema = self._resolved(schema)
        if not isinstance(schema, Mapping) or self._left < 0 or depth > MAX_DEPTH:
            return ALL_TYPES
        types = _named(schema.get("type"))
        if "const" in schema:
            types &= _type_of(schema["const"])
        if isinstance(values := schema.get("enum"), list):
            types &= frozenset().union(*map(_type_of, values))
        for keyword in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(keyword), list) and branches:
                types &= frozenset().union(*(self._types(branch, depth + 1) for branch in branches))
        if isinstance(branches := schema.get("allOf"), list):
            types = types.intersection(*(self._types(branch, depth + 1) for branch in branches))
        return types

    def _resolved(self, schema: object) -> object:
        """Follow references within the schema; None where they lead nowhere."""
        for _ in range(8):
            if not isinstance(schema, Mapping) or not isinstance(reference := schema.get("$ref"), str):
                return schema
            if not reference.startswith("#"):
                return None
            schema = self._root
            for part in reference[1:].split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                schema = schema.get(key) if isinstance(schema, Mapping) else None
        return None


class TypedValue:
    """One value, of which the text comes in pieces; given to a sink as JSON.

    A string goes out as it comes in. What may be something else waits for its end, and so does what may be a string or
    something else, for as long as its beginning allows both.

    Args:
        types: that it may be of.
        sink: gets the JSON text.
    """

    def __init__(self, types: frozenset[str], sink: Callable[[str], None]) -> None:
        self._types = types
        self._sink = sink
        self._pieces: list[str] = []
        self._head = ""
        self._is_string = types == STRING
        self._waits = "string" not in types
        if self._is_string:
            sink('"')

    def feed(self, text: str) -> None:
        """The next piece."""
        if self._is_string:
            self._sink(escaped(text))
            return
        self._pieces.append(text)
        if not self._waits:
            self._head = (self._head + text).lstrip(WHITESPACE)
            self._waits = _begins_container(self._head, self._types)
            if not self._waits and not _may_be_word(self._head, self._types):
                self.cut_off()
                self._is_string = True

    def end(self) -> None:
        """The value is complete."""
        self._sink('"' if self._is_string else _as_json("".join(self._pieces), self._types))

    def cut_off(self) -> None:
        """The answer has ended within the value: what was held back goes out as it is."""
        if not self._is_string:
            text = "".join(self._pieces)
            self._sink('"' + escaped(text) if "string" in self._types else text.lstrip(WHITESPACE))


def _begins_container(text: str, types: frozenset[str]) -> bool:
    return (text[:1] == "{" and "object" in types) or (text[:1] == "[" and "array" in types)


def _may_be_word(text: str, types: frozenset[str]) -> bool:
    """Whether a text that begins so, and not with whitespace, may be a number, a truth value or null of the types."""
    if len(text) > MAX_WORD_CHARS:
        return False
    if text[:1] in _DIGITS:
        return not text or not types.isdisjoint({"number", "integer"})
    begin = text.rstrip(WHITESPACE).lower()
    return any(word.startswith(begin) and kind in types for word, (_, kind) in _WORDS.items())


def _as_json(text: str, types: frozenset[str]) -> str:
    """As it stands if it is JSON of one of the types; else a string.

    Templates write truth values and null as Python does, and so do models: those spellings count as well.
    """
    literal = text.strip(WHITESPACE)
    if len(literal) <= len("false"):
        literal, _ = _WORDS.get(literal.lower(), (literal, ""))
    return literal if _has_type(literal, types) else json.dumps(text, ensure_ascii=False)


def _has_type(text: str, types: frozenset[str]) -> bool:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return not types.isdisjoint(_type_of(value))


def _type_of(value: object) -> frozenset[str]:
    """The types that a value is of."""
    if value is None or isinstance(value, bool):
        return frozenset({"null" if value is None else "boolean"})
    if isinstance(value, int | float):
        is_integer = isinstance(value, int) or (math.isfinite(value) and value.is_integer())
        return frozenset({"number", "integer"} if is_integer else {"number"})
    if isinstance(value, str):
        return STRING
    return frozenset({"object" if isinstance(value, Mapping) else "array"})


def _named(names: object) -> frozenset[str]:
    """What ``type`` says; anything, if it says nothing that is known."""
    listed = [names] if isinstance(names, str) else names if isinstance(names, list) else []
    return frozenset(name for name in listed if isinstance(name, str)) & ALL_TYPES or ALL_TYPES


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
