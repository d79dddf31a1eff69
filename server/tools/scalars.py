"""Numbers, truth values and null of a schema, as parts of terminals: for parameters that may be texts as well.

A terminal has to tell a number from a text that begins like one; so it cannot be JSON's own, and bounds are not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.grammar.quantities import NotKept
from server.grammar.rewrites import CannotSay
from server.tools.lark import quoted
from server.tools.raw_texts import MAX_LEVELS

_WORDS = (("null", None, "null"), ("boolean", True, "true"), ("boolean", False, "false"))
_INTEGER = "/-?(?:0|[1-9][0-9]{0,14})/"
_NUMBER = r"/-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,2})?/"
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


class Scalars:
    """Finds what values of these types a schema allows.

    Args:
        definitions: what its references lead to, by their names in ``$defs``.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def allowed(self, schema: Any) -> list[str]:
        """Parts of a terminal, one of which each of them matches.

        Raises:
            NotKept: a bound, or a reference without an end.
        """
        words = [quoted(text) for type_, value, text in _WORDS if self._permits(schema, type_, value)]
        listed = {
            each for part in self._parts(schema, 0) for each in (part.get("enum", ()) or ()) if _is_number(each)
        } | {part["const"] for part in self._parts(schema, 0) if _is_number(part.get("const"))}
        if listed:
            return words + [quoted(repr(each)) for each in sorted(listed) if self._permits(schema, "number", each)]
        kinds = [kind for kind in ("integer", "number") if self._permits(schema, kind, ...)]
        if kinds and (bound := self._bound(schema)):
            raise CannotSay(bound, "is not kept in this model's calls for numbers that may be texts as well")
        return words + ([_NUMBER if "number" in kinds else _INTEGER] if kinds else [])

    def _permits(self, schema: Any, type_: str, value: Any, level: int = 0) -> bool:
        """Whether a value is valid; ``...`` is any of the type."""
        if isinstance(schema, bool):
            return schema
        if level > MAX_LEVELS:
            raise NotKept("refers to itself without an end")
        types = schema.get("type", type_)
        names = {types} if isinstance(types, str) else {*types}
        if type_ not in names and not ("number" in names and type_ == "integer") and not _fits(value, names):
            return False
        constants = [schema["const"]] if "const" in schema else schema.get("enum")
        if constants is not None and not any(type(each) is type(value) and each == value for each in constants):
            return False
        if isinstance(reference := schema.get("$ref"), str):
            target = self._definitions[reference.rpartition("/")[2]]
            if not self._permits(target, type_, value, level + 1):
                return False
        if not all(self._permits(each, type_, value, level + 1) for each in schema.get("allOf", ())):
            return False
        return "anyOf" not in schema or any(self._permits(each, type_, value, level + 1) for each in schema["anyOf"])

    def _bound(self, schema: Any) -> str | None:
        return next((word for part in self._parts(schema, 0) for word in _BOUNDS if word in part), None)

    def _parts(self, schema: Any, level: int) -> Iterator[Mapping[str, Any]]:
        """The schema, and those that describe the same value."""
        if not isinstance(schema, Mapping):
            return
        if level > MAX_LEVELS:
            raise NotKept("refers to itself without an end")
        yield schema
        if isinstance(reference := schema.get("$ref"), str):
            yield from self._parts(self._definitions[reference.rpartition("/")[2]], level + 1)
        for each in [*schema.get("allOf", ()), *schema.get("anyOf", ())]:
            yield from self._parts(each, level + 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(value: Any, types: set[str]) -> bool:
    """Whether a number of a list of constants is an integer, and they are wanted."""
    return "integer" in types and isinstance(value, int) and not isinstance(value, bool)
