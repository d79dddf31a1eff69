"""Parameters between tags, as a grammar holds a model to them: of the families whose calls are not JSON.

A value stands there as its reader takes it (``typed_values``): texts without quotes, all else as JSON. So the grammar
has to agree with the reader on what a text is, where the schema leaves that open: what reads as a number is one.
Required parameters come, others may, in the order of the schema; none that it does not name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidRequest
from server.grammar.places import Path, refused
from server.grammar.quantities import NotKept
from server.grammar.rewrites import CannotSay
from server.tools.lark import ANYTHING, Lark, quoted, without
from server.tools.raw_texts import PLAIN, RawTexts
from server.tools.safe_json import documents, safe
from server.tools.scalars import Scalars
from server.tools.typed_values import STRING, ParameterTypes
from server.tools.xml_calls import Tags, value_ends

MAX_KEY_CHARS = 64
_KEY = re.compile(rf"(?=.{{1,{MAX_KEY_CHARS}}}$)[^<>\s]+(?: [^<>\s]+)*")
_ANY_KEY = rf"/[^<>\s](?:[^<>\r\n]{{0,{MAX_KEY_CHARS - 2}}}[^<>\s])?/"
_CONTAINERS = frozenset({"object", "array"})
_READ_AS = {
    "integer": r"/[ \t\r\n]*-?[0-9]+[ \t\r\n]*/",
    "number": r"/[ \t\r\n]*-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?[ \t\r\n]*/",
    "boolean": r"/[ \t\r\n]*(?i:true|false)[ \t\r\n]*/",
    "null": r"/[ \t\r\n]*(?i:null|none)[ \t\r\n]*/",
    "object": r"/[ \t\r\n]*\{(?s:.*)/",
    "array": r"/[ \t\r\n]*\[(?s:.*)/",
}
"""Texts that are taken for something else where they may be that, by its type."""
_TOGETHER = (
    "allOf", "anyOf", "oneOf", "dependentRequired", "dependentSchemas", "dependencies", "propertyNames",
    "patternProperties", "const", "enum", "minProperties", "maxProperties",
)  # fmt: skip
"""What a schema may ask of all parameters together, which cannot be kept where each stands by itself."""


class Parameters:
    """Writes the parameters of tools.

    Args:
        lark: the grammar.
        tags: of the family.
    """

    def __init__(self, lark: Lark, tags: Tags) -> None:
        self._lark, self._tags = lark, tags
        self._newline = quoted("\n")

    def any(self) -> str:
        """Parameters of any names, with any values."""
        return self._lark.rule(f"({self._parameter(self._lark.terminal(_ANY_KEY), [self._text(ANYTHING, STRING)])})*")

    def of(self, schema: dict[str, Any], parameters: Mapping[str, Any], path: Path) -> str:
        """Those that a schema wants.

        Args:
            schema: what ``checked_schema`` has given.
            parameters: the client's, by which the reader takes values.
            path: where it is in the request.

        Raises:
            InvalidRequest: what cannot be kept, by the path of its keyword.
        """
        definitions = documents(schema)
        root = definitions["0"]
        while root.keys() - {"type"} == {"$ref"}:
            root = definitions[root["$ref"].rpartition("/")[2]]
        _check_root(root, parameters, path)
        required = root.get("required", ())
        others = dict.fromkeys(required, root.get("additionalProperties", True))
        types = ParameterTypes(parameters)
        written = []
        for name, each in {**root.get("properties", {}), **others, **root.get("properties", {})}.items():
            try:
                values = self._values(name, each, types.of(name), definitions)
            except NotKept as problem:
                raise _refused(path / "properties" / name, each, problem) from None
            if not values and name in required:
                raise refused(path / "properties" / name, "allows no value that this model's calls can hold.")
            if values:
                rule = self._lark.rule(self._parameter(quoted(name), values))
                written.append(rule if name in required else f"{rule}?")
        return " ".join(written)

    def _parameter(self, key: str, values: list[str]) -> str:
        lark, tags = self._lark, self._tags
        before = [lark.marker(tags.key), key, lark.marker(tags.key_end)]
        if tags.value:
            before += [f"{self._newline}?", lark.marker(tags.value)]
        if tags.is_on_lines:
            before.append(self._newline)
        after = self._newline + ("?" if tags.value else "")
        return f"{' '.join(before)} ({' | '.join(values)}) {after}"

    def _values(self, name: str, schema: Any, types: frozenset[str], definitions: Mapping[str, Any]) -> list[str]:
        """Rules for the values of a parameter, each with its end."""
        if not _KEY.fullmatch(name):
            raise NotKept("has a name that this model's calls cannot hold")
        if schema is False:
            return []
        if "string" not in types:
            return [f"{self._lark.json(safe(schema, definitions))} {self._end()}"]
        text = RawTexts(definitions).allowed(schema)
        values = [] if text is None else [self._text(text, types)]
        if types == STRING:
            return values
        values += [self._ended(part) for part in Scalars(definitions).allowed(schema)]
        if kinds := sorted(types & _CONTAINERS):
            only = safe({"allOf": [schema, {"type": kinds}]}, definitions)
            values.append(f"{self._lark.json(only)} {self._end()}")
        return values

    def _text(self, allowed: str, types: frozenset[str]) -> str:
        """A text, of those that are allowed and not taken for something else."""
        text = without(*value_ends(self._tags)) if allowed == ANYTHING else f"{PLAIN} & {allowed}"
        others = [_READ_AS[type_] for type_ in sorted(types - STRING)]
        if self._tags.is_on_lines is None:
            others.append(r"/\n(?s:.*)/")
        return self._ended(" & ".join([text, *(f"~({other})" for other in others)]))

    def _ended(self, part: str) -> str:
        """A terminal with part of it, and the end of the value."""
        lark, end = self._lark, self._tags.value_end
        newline = "\n" if self._tags.is_on_lines else ""
        if not lark.is_token(end):
            return lark.terminal(f"({part}) {quoted(newline + end)}")
        return f"{lark.terminal(f'({part}) {quoted(newline)}' if newline else part)} {lark.marker(end)}"

    def _end(self) -> str:
        newline = f"{self._newline} " if self._tags.is_on_lines else ""
        return newline + self._lark.marker(self._tags.value_end)


def _refused(path: Path, schema: Any, problem: NotKept) -> InvalidRequest:
    """A refusal by the path of the word at fault, if that is in the parameter's own schema."""
    word = problem.word if isinstance(problem, CannotSay) else ""
    place = path / word if isinstance(schema, dict) and word in schema else path
    return refused(place, f"{problem}.", "unsupported_parameter")


def _check_root(root: Mapping[str, Any], parameters: Mapping[str, Any], path: Path) -> None:
    if any(root.get(word) for word in _TOGETHER) or "$ref" in root:
        word = next((word for word in _TOGETHER if word in parameters), "$ref")
        raise refused(
            path / word,
            "is not kept of the parameters together, which this model's calls hold one by one; describe each of them "
            "under properties.",
            "unsupported_parameter",
        )
