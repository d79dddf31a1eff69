"""What the grammar library says against a schema, put into the words of the API, with the path of the word at fault.

Called when ``trial`` has given a verdict on a schema that ``schema`` had let pass: whether patterns overlap, or whether
anything can satisfy what several words ask for, only the library finds out. What is no schema is all the library's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from engine.errors import InvalidRequest
from server.grammar.forms import NO_FORCING
from server.grammar.places import Path, refused
from server.grammar.schema import Walk

Found = tuple[str, Path, Any]

_SENTENCES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"patternProperty regexes /(?P<text>.*)/ and /.*/ are not disjoint",
     "overlaps with another pattern; a name may match one of them only.", ("patternProperties",)),
    (r"can't determine if patternProperty regexes /(?P<text>.*)/ and",
     "may overlap with another pattern; make both simpler.", ("patternProperties",)),
    (r"min/maxProperties only supported",
     "is kept only where all properties are required, or as 1 with additionalProperties: false.",
     ("minProperties", "maxProperties")),
    (r"required property '(?P<text>.*?)' is unsatisfiable",
     "names a property that can have no value.", ("required",)),
    (r"minLength \((?P<text>\d+)\) is greater", "is greater than maxLength.", ("minLength",)),
    (r"required item is|prefixItems\[", "asks for items that can have no value.", ("minItems",)),
    (r"minItems \((?P<text>\d+)\) is greater", "is greater than maxItems.", ("minItems",)),
    (r"minProperties \(\d+\) is greater|minProperties > maxProperties",
     "is more than there can be.", ("minProperties",)),
    (r"required > maxProperties", "names more properties than there may be.", ("required",)),
    (r"multiple of", "has no multiple within the bounds.", ("multipleOf",)),
    (r"minimum .*maximum|[Rr]ange|no integer values", "leaves no number between the bounds.",
     ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")),
    (r"circular references with sibling keys[^#]*#(?:/\$defs/(?P<text>\d+))?",
     "refers to a schema that it is part of, with other words beside it; put them into the schema itself.", ("$ref",)),
    (r"Regex is empty: *(?P<text>.*)", "matches no text that the other words allow.", ("pattern",)),
    (r"Regex is empty|doesn't match length", "matches no text that the other words allow.",
     ("pattern", "const", "enum", "minLength", "format")),
    (r"determine if regex is empty", "is too complex to be put together with the other words; make it simpler.",
     ("pattern", "format")),
    (r"regex parse error:\s*(?P<text>.*)", "is not a pattern that a grammar keeps.", ("pattern", "patternProperties")),
    (r"in regex /(?P<text>.*)/", "is not a pattern that a grammar keeps.", ("pattern", "patternProperties")),
    (r"regex|lookaround|Unicode", "is not a pattern that a grammar keeps.", ("pattern", "patternProperties")),
    (r"[Uu]nsatisfiable|incompatible|allows nothing|NoExtension", "cannot be satisfied by any value.",
     ("allOf", "anyOf", "const", "enum", "$ref")),
)  # fmt: skip
"""What is looked for in a verdict, what is said then, and of which words; ``text`` is in the value of the right one, or
it is the root that is meant."""
_QUOTE = re.compile(r"\n *\d+ \| ")
"""The library quotes the grammar after what it says."""
_BAD_PATTERN = re.compile(r"regex parse error:\n    .*\n    (?P<before> *)\^+\nerror: (?P<reason>.*)")
_PLACE = re.compile(r"(?:at )?(?P<line>\d+)\((?P<column>\d+)\): (?P<reason>.*)")


def blame(said: str, schema: object, param: str) -> InvalidRequest:
    """The refusal of a schema that ``checked_schema`` accepts, and that a trial has a verdict against.

    The path is that of the word at fault, as far as the verdict tells; else that of the schema.
    """
    walk = Walk(schema, param)
    walk.result()
    said = _QUOTE.split(said, maxsplit=1)[0]
    for saying, sentence, words in _SENTENCES:
        if match := re.search(saying, said):
            text = (match["text"] or "0") if "text" in match.re.groupindex else None
            path = next(_suspects(walk.found, words, text), None)
            if path is not None:
                return refused(path, sentence, "unsupported_parameter")
    return refused(Path(None, param), "cannot be kept by a grammar; make it simpler.", "unsupported_parameter")


def blame_text(said: str, param: str) -> InvalidRequest:
    """The refusal of a pattern, of texts or of a grammar, with the place in it, and without more of it than a name."""
    problem = _QUOTE.split(said, maxsplit=1)[0]
    if pattern := _BAD_PATTERN.search(problem):
        place = f" (at its character {len(pattern['before']) + 1})" if param.endswith("regex") else ""
        reason = f"{pattern['reason']}{place}"
    elif where := _PLACE.match(problem):
        line = int(where["line"]) - NO_FORCING.count("\n")
        reason = f"{where['reason'].partition(' (at ')[0]} (line {line}, column {where['column']})"
    else:
        reason = problem.partition("\n")[0]
    if "panic" in reason:  # the library's own failure, which says nothing to a client
        reason = "it cannot be compiled; make it simpler"
    return InvalidRequest(f"{param} is not valid: {reason[:300]}.", param=param, code="invalid_grammar")


def _suspects(found: list[Found], words: tuple[str, ...], text: str | None) -> Iterator[Path]:
    """Words of those kinds: first such as have the text, then any."""
    right: list[Callable[[Any], bool]] = [lambda _value: True]
    if text is not None:
        right.insert(0, lambda value: _has(value, text))
    for is_right in right:
        for word in words:
            yield from (path for name, path, value in found if name == word and is_right(value))


def _has(value: Any, text: str) -> bool:
    """Whether a verdict speaks of a value; it quotes patterns among other things, with their slashes escaped."""
    if isinstance(value, list):
        return text in value
    escaped = value.replace("/", r"\/").replace(r"\\/", r"\/") if isinstance(value, str) else ""
    return text == str(value) or (len(escaped) > 1 and escaped in text)
