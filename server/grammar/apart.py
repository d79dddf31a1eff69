"""Branches of ``oneOf`` that no value can satisfy two of: for them it says what ``anyOf`` does.

Called by ``schema``. What is told of a schema is what holds for every value that satisfies it, and no more is concluded
than that: branches may be apart without being seen to be. Each schema is looked at once, whoever refers to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = frozenset[str]
"""As JSON, by which alone 1 and true are not the same."""

ALL_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})
MAX_LEVELS = 64
_TYPE_OF = {
    **dict.fromkeys("-0123456789", "number"), '"': "string", "[": "array", "{": "object", "t": "boolean",
    "f": "boolean", "n": "null",
}  # fmt: skip
"""By the first character of a value's JSON."""


@dataclass(frozen=True)
class Facts:
    """What all values of a schema have in common.

    Attributes:
        types: they are of one of these; integers are numbers.
        values: they are among these, or nothing is known.
        members: of objects, among which values a member is, where there is one.
        required: the members that objects have.
    """

    types: frozenset[str] = ALL_TYPES
    values: Values | None = None
    members: dict[str, Values] = field(default_factory=dict)
    required: frozenset[str] = frozenset()

    def __and__(self, other: Facts) -> Facts:
        values = self.values if other.values is None else other.values
        if self.values is not None and other.values is not None:
            values = self.values & other.values
        shared = self.members.keys() & other.members.keys()
        both = {name: self.members[name] & other.members[name] for name in shared}
        return Facts(
            self.types & other.types, values, {**self.members, **other.members, **both}, self.required | other.required
        )

    def __or__(self, other: Facts) -> Facts:
        values = None if self.values is None or other.values is None else self.values | other.values
        if (
            "object" not in self.types or "object" not in other.types
        ):  # the one that has no objects says nothing of them
            source = self if "object" in self.types else other
            return Facts(self.types | other.types, values, source.members, source.required)
        shared = self.members.keys() & other.members.keys()
        members = {name: self.members[name] | other.members[name] for name in shared}
        return Facts(self.types | other.types, values, members, self.required & other.required)


class Apart:
    """Tells branches apart, by their types, by their constants, or by a member that is another constant in each."""

    def __init__(self, target: Callable[[str], object]) -> None:
        self._target = target
        self._known: dict[int, Facts] = {}

    def are_apart(self, branches: Sequence[object], tag: str | None) -> bool:
        """Whether no value satisfies two. A ``tag`` is a member that the objects of all branches are to have."""
        facts = [self._facts(branch, 0) for branch in branches]
        return all(self._differ([each for each in facts if type_ in each.types], type_, tag) for type_ in ALL_TYPES)

    def _differ(self, facts: list[Facts], type_: str, tag: str | None) -> bool:
        if len(facts) < 2 or _disjoint([each.values for each in facts]):
            return True
        if type_ != "object":
            return False
        return any(self._tells(name, facts, name == tag) for name in facts[0].members)

    def _tells(self, name: str, facts: list[Facts], is_required: bool) -> bool:
        """Of two objects that have the member at most one is valid; so all branches but one have to ask for it."""
        num_without = sum(name not in each.required for each in facts)
        return (is_required or num_without <= 1) and _disjoint([each.members.get(name) for each in facts])

    def _facts(self, schema: object, level: int) -> Facts:
        if schema is False:
            return Facts(types=frozenset())
        if not isinstance(schema, dict) or level > MAX_LEVELS:
            return Facts()
        if (known := self._known.get(id(schema))) is None:
            self._known[id(schema)] = Facts()  # of a schema that refers to itself nothing is known meanwhile
            known = self._known[id(schema)] = self._look(schema, level)
        return known

    def _look(self, schema: dict[str, Any], level: int) -> Facts:
        values = _values(schema)
        types = _types(schema) if values is None else _types(schema) & {_TYPE_OF[value[0]] for value in values}
        facts = Facts(types, values, self._members(schema, level), _names(schema.get("required")))
        if isinstance(reference := schema.get("$ref"), str):
            facts &= self._facts(self._target(reference), level + 1)
        for part in _list(schema.get("allOf")):
            facts &= self._facts(part, level + 1)
        for word in ("anyOf", "oneOf"):
            if branches := [self._facts(branch, level + 1) for branch in _list(schema.get(word))]:
                union = branches[0]
                for branch in branches[1:]:
                    union |= branch
                facts &= union
        return facts

    def _members(self, schema: dict[str, Any], level: int) -> dict[str, Values]:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        facts = {name: self._facts(member, level + 1).values for name, member in properties.items()}
        return {name: values for name, values in facts.items() if values is not None}


def _types(schema: dict[str, Any]) -> frozenset[str]:
    named = schema.get("type", list(ALL_TYPES))
    names = {"number" if name == "integer" else name for name in ([named] if isinstance(named, str) else _list(named))}
    return ALL_TYPES & {name for name in names if isinstance(name, str)}


def _values(schema: dict[str, Any]) -> Values | None:
    if "const" in schema:
        return frozenset({_written(schema["const"])})
    values = schema.get("enum")
    return frozenset(_written(value) for value in values) if isinstance(values, list) else None


def _written(value: object) -> str:
    """A value as JSON, the same for values that are equal."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _names(value: object) -> frozenset[str]:
    return frozenset(name for name in _list(value) if isinstance(name, str))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _disjoint(sets: Sequence[Values | None]) -> bool:
    known = [each for each in sets if each is not None]
    return len(known) == len(sets) and sum(map(len, known)) == len(frozenset().union(*known))
