"""JSON schemas of clients, as a grammar keeps them; what it cannot keep is refused by name.

Called by the routes with a schema out of a request's JSON; ``forms.of_schema`` writes down what comes out. Invariants:
every text that the grammar allows is JSON that is valid against the client's schema; no word that asks for something is
left out; every refusal is an ``InvalidRequest`` whose ``param`` is the path of the word. Remarks (titles, defaults,
examples) pass and are dropped. Time and size are linear in the schema, to a factor of ``MAX_DEPTH`` for parts that are
referred to from within themselves.

All drafts from 4 to 2020-12 are read as 2020-12, with what older ones wrote in another way as they wrote it
(``definitions``, items one by one, ``dependencies``, ``exclusiveMinimum: true``, ``id``). Where they differ, 2020-12
asks for more: it keeps what stands beside ``$ref``. So what is valid by it is valid by the draft that is named.

An answer is one of the valid values, not any of them: members come in the order of ``properties``, integers are written
without fraction and exponent, printable characters as they are; a number without bounds may be one that doubles do not
hold, such as 1e999. OpenAI accepts less with ``strict``: only schemas whose objects all have
``additionalProperties: false`` and list every property in ``required``, with an object at the root, without allOf and
oneOf, and ten levels deep. Here these are accepted as well, strict or not: optional and additional properties,
patternProperties, allOf, oneOf whose branches are apart, any root, definitions in any place.
"""

from __future__ import annotations

import difflib
from collections import deque
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from engine.errors import InvalidRequest
from server.grammar import keywords
from server.grammar.apart import Apart
from server.grammar.one_schema import OneSchema
from server.grammar.places import Path, Place, refused
from server.grammar.quantities import NotKept, overflows
from server.grammar.references import Document, Location
from server.grammar.rewrites import CannotSay, Plain


def checked_schema(schema: object, param: str) -> dict[str, Any] | bool:
    """What the grammar library is to be handed for a client's schema.

    Args:
        schema: parsed JSON.
        param: where it was in the request, such as ``response_format.json_schema.schema``.

    Raises:
        InvalidRequest: naming the path of the word that is unknown, malformed, too much, or not kept by a grammar.
    """
    return Walk(schema, param).result()


class Walk:
    """One walk over a client's schema.

    Attributes:
        found: the words that the library was handed, with their paths and their values then: for messages.
    """

    def __init__(self, schema: object, param: str) -> None:
        self._schema, self._root = schema, Path(None, param)
        self._document = Document(schema if isinstance(schema, dict) else {})
        self._apart = Apart(self._target)
        self._numbers: dict[Location, int] = {(): 0}
        self._waiting: deque[tuple[int, Location]] = deque()
        self._tags: dict[int, set[str]] = {}
        self._whole: dict[int, dict[int, Path]] = {}
        self._parts: dict[int, dict[int, Path]] = {}
        self._num_words = self._num_properties = self._num_constants = self._num_chars = 0
        self._divisors: dict[float, Path] = {}
        self._is_composed = False
        self.found: list[tuple[str, Path, Any]] = []

    def result(self) -> dict[str, Any] | bool:
        """As ``checked_schema``."""
        if self._schema is False:
            raise refused(self._root, "allows nothing; an answer has to be something.")
        root = self.walk(self._schema, Place(self._root, within=0, forced=0))
        definitions: dict[int, Any] = {0: root}
        while self._waiting:
            number, location = self._waiting.popleft()
            path = self._root.joined(location)
            definitions[number] = self.walk(self._document.at(location), Place(path, within=number, forced=number))
        self._check_cycles()
        if len(self._divisors) > 1 and self._is_composed and overflows(self._divisors):
            raise refused(next(iter(self._divisors.values())), "has too large a common multiple with another one.")
        for number, tags in self._tags.items():
            if isinstance(target := definitions[number], dict):
                target["required"] = list(dict.fromkeys([*target.get("required", ()), *sorted(tags)]))
        if len(definitions) > 1 and isinstance(root, dict):
            root["$defs"] = {str(number): each for number, each in definitions.items() if number}
        return root if isinstance(root, (dict, bool)) else {}

    def walk(self, schema: object, place: Place) -> dict[str, Any] | bool:
        """What the library is to be handed for a part."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise refused(place.path, "must be a schema: an object, true or false.")
        if place.depth > keywords.MAX_DEPTH:
            raise refused(place.path, f"is nested too deeply: in more than {keywords.MAX_DEPTH} schemas.")
        self._num_words += 1 + len(schema)
        if self._num_words > keywords.MAX_KEYWORDS:
            raise refused(place.path, f"is too much: the schema has more than {keywords.MAX_KEYWORDS} words.")
        place = self._checked_words(schema, place)
        try:
            plain = Plain(schema, self._target)
        except CannotSay as problem:
            raise refused(place.path / problem.word, f"{problem}.", "unsupported_parameter") from None
        return OneSchema(self, plain, place).written()

    def _checked_words(self, schema: dict[str, Any], place: Place) -> Place:
        """Refuse words that are not kept or not known. The place, as it is for what is inside."""
        is_root = place.path is self._root
        for word in schema:
            path = place.path / word
            if word in keywords.REFUSED:
                raise refused(path, f"cannot be kept by a grammar; {keywords.REFUSED[word]}.", "unsupported_parameter")
            if word in keywords.KEPT or word in keywords.REMARKS or word.startswith("x-"):
                continue
            if is_root and word in keywords.ROOT_REMARKS:
                continue
            raise _unknown(path, word)
        if "$schema" in schema:
            _check_dialect(schema["$schema"], place.path / "$schema")
        name = schema.get("$id", schema.get("id"))
        is_resource = isinstance(name, str) and not name.startswith("#") and not is_root
        return replace(place, has_id=True) if is_resource else place

    def refer(self, reference: object, place: Place) -> dict[str, Any]:
        """A ``$ref``, in the library's place for definitions."""
        path = place.path / "$ref"
        if not isinstance(reference, str):
            raise refused(path, "must be a text.")
        if place.has_id and (reference == "#" or reference.startswith("#/")):
            raise refused(path, "is within a part that has an $id; leave the $id out.", "unsupported_parameter")
        try:
            location = self._document.locate(reference)
        except NotKept as problem:
            raise refused(path, f"{problem}.") from None
        number = self._number(location)
        if place.within is not None:
            self._whole.setdefault(place.within, {}).setdefault(number, path)
        if place.forced is not None:
            self._parts.setdefault(place.forced, {}).setdefault(number, path)
        self.found.append(("$ref", path, str(number)))
        return {"$ref": f"#/$defs/{number}" if number else "#"}

    def _number(self, location: Location) -> int:
        if location not in self._numbers:
            self._numbers[location] = len(self._numbers)
            self._waiting.append((self._numbers[location], location))
        return self._numbers[location]

    def _target(self, reference: object) -> object:
        """What a reference leads to, for those that look ahead; true where that is not known."""
        try:
            return self._document.at(self._document.locate(reference)) if isinstance(reference, str) else True
        except NotKept:
            return True

    def _check_cycles(self) -> None:
        for graph, problem in (
            (self._whole, "leads back to itself, without a property or an item between."),
            (self._parts, "has no end: each value would have to hold another one. Make it optional, or nullable."),
        ):
            try:
                TopologicalSorter(graph).prepare()
            except CycleError as cycle:
                there, here, *_ = cycle.args[1]
                raise refused(graph[here][there], problem) from None

    def are_apart(self, branches: list[Any], tag: str | None) -> bool:
        """Whether ``anyOf`` says the same of branches as ``oneOf``, once all of them have the ``tag``."""
        return self._apart.are_apart(branches, tag)

    def tagged(self, branch: Any, tag: str) -> Any:
        """A branch whose objects have the tag: it asks for it itself, or the definition does that it refers to."""
        if not isinstance(branch, dict):
            return branch
        if isinstance(reference := branch.get("$ref"), str):
            self._tags.setdefault(self._number(self._document.locate(reference)), set()).add(tag)
            return branch
        required = branch.get("required", [])
        return {**branch, "required": [*required, tag]} if isinstance(required, list) else branch

    def count(self, path: Path, *, properties: int = 0, constants: int = 0, chars: int = 0) -> None:
        """Hold what there is of something against its limit."""
        self._num_properties += properties
        self._num_constants += constants
        self._num_chars += chars
        for number, limit, what in (
            (self._num_properties, keywords.MAX_PROPERTIES, "properties"),
            (self._num_constants, keywords.MAX_CONSTANTS, "constants"),
            (self._num_chars, keywords.MAX_CHARS, "characters in its names and constants"),
        ):
            if number > limit:
                raise refused(path, f"is too much: the schema has more than {limit} {what}.")

    def divide(self, divisor: float, path: Path) -> None:
        """Note a ``multipleOf``."""
        self._divisors.setdefault(divisor, path)

    def compose(self) -> None:
        """Note that schemas are put together, so that a number may have several divisors."""
        self._is_composed = True


def _check_dialect(value: object, path: Path) -> None:
    name = value.partition("://")[2].rstrip("#") if isinstance(value, str) else ""
    if name not in keywords.DIALECTS:
        raise refused(path, "names no draft from 4 to 2020-12; leave it out to be read as 2020-12.")


def _unknown(path: Path, word: str) -> InvalidRequest:
    nearest = difflib.get_close_matches(word[:32], keywords.KEPT | keywords.REFUSED.keys(), n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else "."
    return refused(path, f"is no keyword of JSON Schema{hint}", "unknown_parameter")
