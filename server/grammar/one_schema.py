"""The words of one schema object, with the library handed what each asks for.

Made by ``schema.Walk`` for every object that it comes to, and asks it for the parts.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from server.grammar import keywords, leaves
from server.grammar.patterns import kept_patterns
from server.grammar.places import Path, Place, refused
from server.grammar.quantities import NotKept, next_above
from server.grammar.rewrites import Plain

if TYPE_CHECKING:
    from server.grammar.schema import Walk

Written = dict[str, Any]

APPLICATORS = ("$ref", "allOf", "anyOf", "const", "enum")
"""The library takes the other words of an object together, as far as none of these comes between them."""
_BOUNDS = (
    ("minLength", "maxLength", True),
    ("minItems", "maxItems", True),
    ("minProperties", "maxProperties", True),
    ("minimum", "maximum", True),
    ("exclusiveMinimum", "maximum", False),
    ("minimum", "exclusiveMaximum", False),
    ("exclusiveMinimum", "exclusiveMaximum", False),
)
NOT_APART = (
    "has branches that are not seen to exclude each other; give each a required property with a constant of its own, "
    "or use anyOf."
)


class OneSchema:
    """One schema object."""

    def __init__(self, walk: Walk, plain: Plain, place: Place) -> None:
        self._walk, self._words, self._place = walk, plain.words, place
        self._sources, self._plain_also = plain.sources, plain.also
        self._types = self._checked_types()
        self._out: Written = {}
        self._also: list[Any] = []

    def written(self) -> Written:
        """What the library is to be handed for it."""
        for word, value in self._words.items():
            if word in leaves.WORDS:
                self._leaf(word, value)
            elif word in _SCHEMAS:
                self._walk.found.append((word, self._path(word), None))
                _SCHEMAS[word](self, word, value)
        self._check_bounds()
        self._leave_out_bounds()
        for word, schema in self._plain_also:
            self._walk.compose()
            self._also.append(self._walk.walk(schema, self._place.beside(word, always=False)))
        for each in self._also:
            self._add(each)
        return self._in_order()

    def _check_bounds(self) -> None:
        """Refuse bounds that leave nothing, which would be allowed, and leave out what has them."""
        for least, most, may_meet in _BOUNDS:
            if least in self._out and most in self._out:
                lower, upper = self._out[least], self._out[most]
                if lower > upper or (lower == upper and not may_meet):
                    raise refused(self._path(least), f"leaves nothing below {self._source(most)}.")

    def _leave_out_bounds(self) -> None:
        """Write exclusive bounds as the numbers beside them, where the library needs that."""
        if "number" not in self._types:
            return
        for word, plain, sign in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
            bound = self._out.get(word)
            if bound is not None and bound == int(bound) and sign * bound >= 0:
                del self._out[word]
                self._also.append({plain: sign * next_above(abs(int(bound)))})

    def _add(self, also: Any) -> None:
        """One more schema that has to hold, among the words if they have place for it."""
        if isinstance(also, dict) and not also.keys() & self._out.keys():
            self._out.update(also)
        else:
            self._out.setdefault("allOf", []).append(also)

    def _in_order(self) -> Written:
        if any(word in self._out for word in APPLICATORS) and self._out.keys() & {"multipleOf", "patternProperties"}:
            self._walk.compose()
        applied = {word: value for word, value in self._out.items() if word in APPLICATORS}
        plain = {word: value for word, value in self._out.items() if word not in APPLICATORS}
        applies_first = next((word for word in self._out if word != "type"), None) in applied
        return {**applied, **plain} if applies_first else {**plain, **applied}

    def _path(self, word: str) -> Path:
        return self._place.path / self._source(word)

    def _source(self, word: str) -> str:
        return self._sources.get(word, word)

    def _checked_types(self) -> frozenset[str]:
        value = self._words.get("type", keywords.TYPES)
        named = [value] if isinstance(value, str) else value
        if not named or not isinstance(named, (list, tuple)):
            raise refused(self._path("type"), "must be the name of a type, or a list of such names.")
        for name in named:
            if name not in keywords.TYPES:
                nearest = difflib.get_close_matches(str(name)[:32], keywords.TYPES, n=1)
                hint = f"did you mean '{nearest[0]}'?" if nearest else f"types are {', '.join(keywords.TYPES)}."
                raise refused(self._path("type"), f"names no type of JSON Schema; {hint}")
        if isinstance(value, list):
            self._words["type"] = list(dict.fromkeys(value))
        return frozenset(named)

    def _leaf(self, word: str, value: Any) -> None:
        path = self._path(word)
        try:
            kept = leaves.leaf(word, value, self._types)
        except NotKept as problem:
            reason = str(problem)
            raise refused(path, reason if reason.endswith("?") else f"{reason.rstrip('.')}.") from None
        if word in ("const", "enum"):
            self._walk.count(path, constants=_num_values(value), chars=_num_chars(value))
        elif word in ("required", "pattern"):
            self._walk.count(path, chars=_num_chars(value))
        elif word == "multipleOf":
            self._walk.divide(kept[0][word], path)
        for each in kept:
            for name, its in each.items():
                self._walk.found.append((name, path, its))
        self._also += kept[1:]
        if kept and len(kept[0]) == 1 and word in kept[0]:
            self._out.update(kept[0])
        else:
            self._also += kept[:1]

    def _type(self, word: str, value: Any) -> None:
        self._out[word] = value

    def _properties(self, word: str, value: Any) -> None:
        required = self._words.get("required", [])
        must = set(required) if isinstance(required, list) and self._types == {"object"} else set()
        out = self._out[word] = {}
        for name, schema in self._object(word, value).items():
            self._walk.count(self._path(word), properties=1, chars=len(name))
            out[name] = self._part(schema, word, name, always=name in must)

    def _pattern_properties(self, word: str, value: Any) -> None:
        out: Written = {}
        for name, schema in self._object(word, value).items():
            path = self._path(word) if self._source(word) != word else self._path(word) / name
            self._walk.count(path, properties=1, chars=len(name))
            try:
                patterns = kept_patterns(name)
            except NotKept as problem:
                raise refused(path, f"{problem}.") from None
            if len(patterns) > 1 or patterns[0] in out:
                raise refused(path, "has look-ahead, or comes twice; neither is kept for names.")
            self._walk.found.append((word, path, patterns[0]))
            out[patterns[0]] = self._part(schema, word, name, always=False)
        if out:
            self._out[word] = out

    def _additional(self, word: str, value: Any) -> None:
        self._out[word] = self._part(value, word, always=False)

    def _items(self, word: str, value: Any) -> None:
        self._out[word] = self._part(value, word, always=self._has_item(len(self._words.get("prefixItems", ()))))

    def _prefix_items(self, word: str, value: Any) -> None:
        items = enumerate(self._list(word, value, least=0))
        self._out[word] = [self._part(schema, word, i, always=self._has_item(i)) for i, schema in items]

    def _has_item(self, index: int) -> bool:
        least = self._words.get("minItems", 0)
        return self._types == {"array"} and isinstance(least, (int, float)) and least > index

    def _all_of(self, word: str, value: Any) -> None:
        self._walk.compose()
        schemas = enumerate(self._list(word, value))
        self._out[word] = [self._walk.walk(each, self._place.beside(word, i)) for i, each in schemas]

    def _any_of(self, word: str, value: Any) -> None:
        self._also.append({"anyOf": self._branches(word, self._list(word, value))})

    def _one_of(self, word: str, value: Any) -> None:
        branches = self._list(word, value)
        tag = self._tag()
        if not self._walk.are_apart(branches, None):
            self._branches(word, branches)  # what is wrong in one of them is worth more to know
            if tag is None or not self._walk.are_apart(branches, tag):
                raise refused(self._path(word), NOT_APART, "unsupported_parameter")
            branches = [self._walk.tagged(branch, tag) for branch in branches]
        self._also.append({"anyOf": self._branches(word, branches)})

    def _branches(self, word: str, branches: list[Any]) -> list[Any]:
        place = self._place
        always = len(branches) == 1
        return [self._walk.walk(each, place.beside(word, i, always=always)) for i, each in enumerate(branches)]

    def _tag(self) -> str | None:
        """OpenAPI's word for the property that tells branches apart, which all of them then have."""
        value = self._words.get("discriminator")
        if value is None:
            return None
        if not isinstance(value, dict) or not isinstance(tag := value.get("propertyName"), str):
            raise refused(self._path("discriminator"), "must have the propertyName of the property that tells.")
        return tag

    def _reference(self, word: str, value: Any) -> None:
        self._out.update(self._walk.refer(value, self._place))

    def _part(self, schema: Any, word: str, *pieces: str | int, always: bool) -> Any:
        return self._walk.walk(schema, self._place.inside(self._source(word), *pieces, always=always))

    def _object(self, word: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refused(self._path(word), "must be an object, with a schema for each name.")
        return value

    def _list(self, word: str, value: Any, least: int = 1) -> list[Any]:
        if not isinstance(value, list) or len(value) < least:
            raise refused(self._path(word), "must be a list of schemas, with one at least.")
        return value


def _num_values(value: Any) -> int:
    return len(value) if isinstance(value, (list, dict)) else 1


def _num_chars(value: Any) -> int:
    """Characters in a constant; a loop, for it may be nested as deeply as a body."""
    waiting, number = [value], 0
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each
        else:
            number += len(each) if isinstance(each, str) else 8
    return number


_SCHEMAS = {
    "type": OneSchema._type,
    "properties": OneSchema._properties,
    "patternProperties": OneSchema._pattern_properties,
    "additionalProperties": OneSchema._additional,
    "items": OneSchema._items,
    "prefixItems": OneSchema._prefix_items,
    "allOf": OneSchema._all_of,
    "anyOf": OneSchema._any_of,
    "oneOf": OneSchema._one_of,
    "$ref": OneSchema._reference,
}
