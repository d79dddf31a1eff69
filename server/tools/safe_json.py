"""Schemas whose values can stand between tags: none of their texts, however deep, has what may begin a closing tag.

Used for the families whose calls are not JSON, for parameters that are objects or arrays. Their values end at the first
closing tag, wherever it stands; so ``</`` is kept out of texts and names.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

SAFE = r"^(?:[^<]|<+[^<\/])*<*$"
"""Texts without ``</``."""
MAX_LEVELS = 8
"""Of values in values, where a schema has references: the library puts two schemas together, and does not end if both
refer to themselves."""


def documents(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The definitions of a schema and, as ``0``, itself: with them each of its parts can be a document of its own.

    Args:
        schema: which ``checked_schema`` has given.
    """
    root = {word: value for word, value in schema.items() if word != "$defs"}
    return {name: part_of(each) for name, each in {"0": root, **schema.get("$defs", {})}.items()}


def part_of(schema: Any) -> Any:
    """A part of a schema, for a document with the definitions of ``documents``."""
    if isinstance(schema, list):
        return [part_of(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {word: value if word in ("const", "enum") else part_of(value) for word, value in schema.items()}
    return {**made, "$ref": "#/$defs/0"} if made.get("$ref") == "#" else made


def safe(schema: Any, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A schema for those values that can stand between tags.

    Args:
        schema: of the values, as ``part_of`` has made it.
        definitions: what its references lead to.
    """
    has_references = "'$ref'" in str(schema)
    levels = _levels() if has_references else {"safe": _any_of("safe")}
    used = definitions if has_references else {}
    return {"allOf": [schema, {"$ref": "#/$defs/safe"}], "$defs": {**used, **levels}}


def _any_of(deeper: str) -> dict[str, Any]:
    """Any JSON, but for unsafe texts, whose items and members are of another such schema."""
    reference = {"$ref": f"#/$defs/{deeper}"}
    return {"pattern": SAFE, "items": reference, "patternProperties": {SAFE: reference}, "additionalProperties": False}


def _levels() -> dict[str, Any]:
    names = ["safe", *(f"safe{level}" for level in range(2, MAX_LEVELS + 1))]
    levels = {name: _any_of(deeper) for name, deeper in pairwise(names)}
    return {**levels, names[-1]: {"type": ["null", "boolean", "number", "string"], "pattern": SAFE}}
