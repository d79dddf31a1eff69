"""Words of a schema that say in another way what a grammar keeps, said in that way.

Called by ``schema`` for each schema before it is walked. Every rewrite is exact, for all drafts that have the word,
with the exceptions that are written down beside them; those only leave out values. What cannot be rewritten is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.grammar.keywords import MAX_DEPENDENCIES, REMARKS
from server.grammar.quantities import NotKept

Schema = dict[str, Any]

IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies")


class CannotSay(NotKept):
    """``NotKept``, of a certain word."""

    def __init__(self, word: str, reason: str) -> None:
        super().__init__(reason)
        self.word = word


class Plain:
    """A schema in fewer words.

    Attributes:
        words: the schema; those of the client are not touched.
        sources: where a word's value was with the client, if not under the word: for messages.
        also: schemas that have to hold as well, with the word that each comes from.
    """

    def __init__(self, schema: Schema, target: Callable[[str], object]) -> None:
        self.words = dict(schema)
        self.sources: dict[str, str] = {}
        self.also: list[tuple[str, Schema]] = []
        self._target = target
        self._items()
        self._unevaluated("unevaluatedItems", "items")
        self._unevaluated("unevaluatedProperties", "additionalProperties")
        self._exclusive("exclusiveMinimum", "minimum")
        self._exclusive("exclusiveMaximum", "maximum")
        self._vacuous()
        self._dependencies()
        self._names()
        self._number_of_properties()

    def _items(self) -> None:
        """Items one by one, as they were written before 2020-12."""
        rest = self.words.pop("additionalItems", None)
        if not isinstance(self.words.get("items"), list):
            return  # without them, additionalItems meant nothing
        if "prefixItems" in self.words:
            raise CannotSay("items", "must be a schema where there is prefixItems")
        self._move("items", "prefixItems")
        if rest is not None:
            self.words["items"] = rest
            self.sources["items"] = "additionalItems"

    def _move(self, word: str, to: str) -> None:
        self.words = {to if each == word else each: value for each, value in self.words.items()}
        self.sources[to] = word

    def _unevaluated(self, word: str, plain: str) -> None:
        if word not in self.words:
            return
        if any(each in self.words for each in IN_PLACE):
            raise CannotSay(word, f"is kept only without $ref, allOf, anyOf and oneOf beside it; use {plain} in each")
        if plain in self.words:  # which has evaluated all
            del self.words[word]
        else:
            self._move(word, plain)

    def _exclusive(self, word: str, plain: str) -> None:
        """As draft 4 has it: a boolean that speaks of the bound."""
        value = self.words.get(word)
        if value is False or (value is True and plain not in self.words):
            del self.words[word]
        elif value is True:
            self.words[word] = self.words.pop(plain)
            self.sources[word] = plain

    def _vacuous(self) -> None:
        """Words that ask for nothing."""
        unique = self.words.pop("uniqueItems", False)
        most = self.words.get("maxItems")
        if unique is not False and not (unique is True and most in (0, 1)):
            raise CannotSay("uniqueItems", "cannot be kept by a grammar; leave it out, and drop what comes twice")
        if self.words.pop("nullable", False) is not False:
            raise CannotSay("nullable", "is OpenAPI's and not JSON Schema's; add 'null' to type, or to anyOf")
        if "discriminator" in self.words and not ("oneOf" in self.words or "anyOf" in self.words):
            raise CannotSay("discriminator", "is kept only beside oneOf or anyOf")

    def _dependencies(self) -> None:
        """A member that needs others: it is not there, or they are."""
        needs = [(word, name, need) for word in ("dependencies", "dependentRequired", "dependentSchemas")
                 for name, need in _members(self.words, word).items()]  # fmt: skip
        if len(needs) > MAX_DEPENDENCIES:
            raise CannotSay(needs[-1][0], f"may name {MAX_DEPENDENCIES} members at most; write the cases as anyOf")
        for word, name, need in needs:
            if isinstance(need, list) and word != "dependentSchemas":
                there: Schema = {"required": [name, *need]}
            elif isinstance(need, (dict, bool)) and word != "dependentRequired":
                there = {"required": [name], "allOf": [need]}
            else:
                raise CannotSay(word, "must hold lists of names, or schemas")
            self.also.append((word, {"anyOf": [{"properties": {name: False}}, there]}))

    def _names(self) -> None:
        """A schema for names: they are enumerated, and then they are properties; or they follow a pattern."""
        if "propertyNames" not in self.words:
            return
        names = self._resolved(self.words.pop("propertyNames"))
        if names == {}:
            return
        if "patternProperties" in self.words:
            raise CannotSay("propertyNames", "is not kept beside patternProperties")
        properties = _members(self.words, "properties")
        rest = self.words.get("additionalProperties", True)
        if names.keys() <= {"enum"}:
            listed = [name for name in names["enum"] if isinstance(name, str)]
            others = {name: schema if name in set(listed) else False for name, schema in properties.items()}
            self.words["properties"] = {**others, **{name: rest for name in listed if name not in others}}
        elif properties:
            raise CannotSay("propertyNames", "is kept beside properties only as an enumeration")
        elif names.keys() == {"pattern"}:
            self.words["patternProperties"] = {names["pattern"]: rest}
        elif names.keys() <= {"minLength", "maxLength"}:
            least, most = names.get("minLength", 0), names.get("maxLength", "")
            self.words["patternProperties"] = {rf"^[\s\S]{{{least},{most}}}$": rest}
        else:
            raise CannotSay("propertyNames", "is kept only as an enumeration, as one pattern, or as a length")
        self.sources["patternProperties"] = "propertyNames"
        self.words["additionalProperties"] = False

    def _resolved(self, names: object) -> Schema:
        """What there is to keep of a schema for names."""
        for _ in range(8):
            if not isinstance(names, dict) or "$ref" not in names:
                break
            names = self._target(names["$ref"])
        if not isinstance(names, (dict, bool)) or names is False:
            raise CannotSay("propertyNames", "must be a schema that allows some name")
        said = {word: value for word, value in names.items() if word not in REMARKS} if isinstance(names, dict) else {}
        if (kind := said.pop("type", "string")) != "string":
            raise CannotSay("propertyNames", f"must be of strings, as names are, and not {kind!r:.40}")
        if "const" in said:
            said["enum"] = [said.pop("const")]
        if not isinstance(said.get("enum", []), list) or not isinstance(said.get("pattern", ""), str):
            raise CannotSay("propertyNames", "has an enum that is no list, or a pattern that is no text")
        if any(type(said.get(word, 0)) is not int for word in ("minLength", "maxLength")):
            raise CannotSay("propertyNames", "has a length that is no integer")
        return said

    def _number_of_properties(self) -> None:
        """Counts that are already kept by ``required``, or by the list of properties."""
        required = self.words.get("required")
        num_required = len({*required}) if isinstance(required, list) and all(map(_is_text, required)) else 0
        is_closed = self.words.get("additionalProperties") is False and not self.words.get("patternProperties")
        least, most = self.words.get("minProperties"), self.words.get("maxProperties")
        if type(least) is int and least >= 0:
            if least <= num_required:
                del self.words["minProperties"]
            elif least > num_required + 1 and not is_closed:
                raise CannotSay(
                    "minProperties",
                    f"can be at most {num_required + 1} here, one more than required has: other names may come twice",
                )
        if type(most) is int and is_closed and most >= len(_members(self.words, "properties")):
            del self.words["maxProperties"]


def _members(words: Schema, word: str) -> Schema:
    value = words.get(word, {})
    if not isinstance(value, dict):
        raise CannotSay(word, "must be an object")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)
