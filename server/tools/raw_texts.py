r"""Texts that stand without quotes in a call, as a schema wants them: as parts of terminals.

Used for the families whose calls are not JSON. What a schema asks of a text becomes a regular expression for the text
as it is. A text of which nothing is asked may be any that its family can write; another one is kept from having ``</``
and a ``<`` at the beginning of a line, with which every end of a value begins: ruling out the ends alone, beside a
length, would cost more states than the library takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from server.grammar.formats import HEX, PCHAR, TAIL
from server.grammar.forms import between_slashes
from server.grammar.patterns import STRUCTURE
from server.grammar.quantities import NotKept
from server.grammar.rewrites import CannotSay
from server.tools.lark import ANYTHING, one_of, quoted

PLAIN = r"/(?:[^<\n]|<+[^<\/\n]|\n+[^<\n]|<+\n+[^<\n])*<*\n*/"
"""No ``</``, and no ``<`` after a line break."""
MAX_LEVELS = 64

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PLACE = rf"(?:\/\/{_LABEL}(?:\.{_LABEL}){{0,8}}(?::[0-9]{{1,4}})?(?:\/{PCHAR}*)*|\/{PCHAR}+(?:\/{PCHAR}*)*)"
_FORMATS = {
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": f"(?:{HEX}{{1,4}}:){{7}}{HEX}{{1,4}}",
    "uuid": f"{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,8}}",
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]{{0,30}}:{_PLACE}{TAIL}",
}
"""Formats that the library knows of JSON's strings only, or a part of what they allow."""
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_"}
_ANCHORS = frozenset("^$")


class RawTexts:
    """Finds what texts a schema allows.

    Args:
        definitions: what its references lead to, by their names in ``$defs``.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def allowed(self, schema: Any, level: int = 0) -> str | None:
        """Part of a terminal; ``ANYTHING`` if any text will do, None if none will.

        Args:
            schema: which ``checked_schema`` has given, or a part of it.
            level: how many schemas it is in.

        Raises:
            NotKept: it asks for what cannot be said of a text without quotes.
        """
        if isinstance(schema, bool):
            return ANYTHING if schema else None
        if level > MAX_LEVELS:
            raise NotKept("refers to itself without an end")
        parts = list(self._parts(schema, level))
        if None in parts:
            return None
        said = dict.fromkeys(part for part in parts if part is not None and part != ANYTHING)
        return f"({' & '.join(said)})" if said else ANYTHING

    def _parts(self, schema: Mapping[str, Any], level: int) -> Iterator[str | None]:
        """What each word allows."""
        types = schema.get("type", "string")
        yield ANYTHING if "string" in ([types] if isinstance(types, str) else types) else None
        constants = [schema["const"]] if "const" in schema else schema.get("enum")
        if constants is not None:
            texts = [quoted(each) for each in constants if isinstance(each, str)]
            yield one_of(texts) if texts else None
        if "pattern" in schema:
            yield pattern(schema["pattern"])
        if "format" in schema:
            yield f"/{_FORMATS[schema['format']]}/"
        if "minLength" in schema or "maxLength" in schema:
            yield f"/(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})/"
        if isinstance(reference := schema.get("$ref"), str):
            yield self.allowed(self._definitions[reference.rpartition("/")[2]], level + 1)
        for each in schema.get("allOf", ()):
            yield self.allowed(each, level + 1)
        if "anyOf" in schema:
            branches = [self.allowed(each, level + 1) for each in schema["anyOf"]]
            texts = [each for each in branches if each is not None]
            yield None if not texts else ANYTHING if ANYTHING in texts else one_of(texts)


def pattern(regex: str) -> str:
    """Part of a terminal for the texts in which a pattern is found, which ``kept_patterns`` has given.

    Raises:
        NotKept: it has anchors that are not at its ends, or does not tell upper from lower case.
    """
    if "(?i" in regex:
        raise CannotSay("pattern", "does not tell upper from lower case, which is not kept in this model's calls")
    whole = []
    for alternative in _alternatives(regex):
        pieces = [match[0] for match in STRUCTURE.finditer(alternative)]
        at_start, at_end = pieces[:1] == ["^"], pieces[-1:] == ["$"]
        pieces = pieces[at_start : len(pieces) - at_end]
        if not _ANCHORS.isdisjoint(pieces):
            raise CannotSay("pattern", "has ^ or $ amid the pattern, which is not kept in this model's calls")
        inner = "".join(map(_in_ascii, pieces))
        whole.append(f"{'' if at_start else '(?s:.*)'}(?:{inner}){'' if at_end else '(?s:.*)'}")
    return f"/{between_slashes('|'.join(whole))}/"


def _alternatives(regex: str) -> Iterator[str]:
    """Those that are not within a group."""
    depth = start = 0
    for match in STRUCTURE.finditer(regex):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if match[0] == "|" and not depth:
            yield regex[start : match.start()]
            start = match.end()
    yield regex[start:]


def _in_ascii(piece: str) -> str:
    r"""An escape, or brackets, with ``\d`` and ``\w`` as JSON Schema means them: the library's are Unicode's."""
    is_in_brackets = piece.startswith("[")

    def plain(match: re.Match[str]) -> str:
        characters = _CLASSES.get(match[1].lower())
        if characters is None:
            return match[0]
        if match[1].isupper():
            return f"[^{characters}]"
        return characters if is_in_brackets else f"[{characters}]"

    return re.sub(r"\\(.)", plain, piece, flags=re.DOTALL)
