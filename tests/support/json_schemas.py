"""JSON schemas of the kinds that people send, each with what is to become of it.

Written for the tests and the benchmark of grammars: by hand, and by the shapes that pydantic, zod, TypeBox and OpenAPI
give them. Those that are kept are judged by their outputs; those that are not, by the word that the refusal names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.support.json_schema_refused import COMPILED_LATE, NO_FORMATS, NO_PATTERNS, REFUSED, REFUSED_BY_TRIAL
from tests.support.json_schema_shapes import COMPOSED, DRAFTS, SHAPES, TREES
from tests.support.json_schema_words import FORMATS, PATTERNS, WORDS_ALONE


@dataclass(frozen=True)
class Case:
    """A schema.

    Attributes:
        name: for the test's id.
        schema: as a client sends it.
        refused: the path of the word that its refusal names, from the schema on; None if it is kept.
        by_trial: the refusal comes from the library, when it tries to compile what has passed our checks.
    """

    name: str
    schema: Any
    refused: str | None = None
    by_trial: bool = False


def kept() -> list[Case]:
    """All schemas that are kept."""
    groups = {"word": WORDS_ALONE, "tree": TREES, "composed": COMPOSED, "draft": DRAFTS, "shape": SHAPES}
    cases = [Case(f"{group}: {name}", schema) for group, each in groups.items() for name, schema in each.items()]
    cases += [Case(f"pattern: {name}", {"type": "string", "pattern": each}) for name, each in PATTERNS.items()]
    cases += [Case(f"format: {name}", {"type": "string", "format": name}) for name in FORMATS]
    cases += [
        Case(f"format: {name}", {"type": "integer", "format": name})
        for name in ("int8", "int32", "int64", "uint8", "uint64", "timestamp")
    ]
    cases += [Case(f"format: {name}", {"type": "number", "format": name}) for name in ("float", "double")]
    cases.append(Case("format: beside a pattern", {"type": "string", "format": "date", "pattern": "^20"}))
    cases.append(Case("format: beside a length", {"type": "string", "format": "email", "maxLength": 12}))
    return cases


def refused() -> list[Case]:
    """All that are not."""
    cases = [Case(f"refused: {name}", schema, param) for name, (schema, param) in REFUSED.items()]
    cases += [
        Case(f"no pattern: {name}", {"type": "string", "pattern": each}, "pattern", name in COMPILED_LATE)
        for name, each in NO_PATTERNS.items()
    ]
    cases += [Case(f"no format: {name}", {"type": "string", "format": name}, "format") for name in NO_FORMATS]
    cases += [Case(f"trial: {name}", schema, param, True) for name, (schema, param) in REFUSED_BY_TRIAL.items()]
    return cases
