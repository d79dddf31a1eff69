"""Whether JSON is valid against a schema: two packages as judges, of schemas as all drafts have them."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, time
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import jsonschema_rs
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from tests.support.json_schema_words import PYTHON_PATTERNS


def decimal(text: str) -> Decimal:
    """A fraction as it is written; 0 for one that is far out of reach, such as 1e-9999999, which nobody can judge."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return Decimal(0)
    return value if abs(value.adjusted()) < 400 else Decimal(0)


def exact(value: Any) -> Any:
    """A schema whose fractions are decimals, with which division has a remainder or none."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, dict):
        return {name: exact(member) for name, member in value.items()}
    return [exact(item) for item in value] if isinstance(value, list) else value


def as_judges_know_it(schema: Any) -> Any:
    """What all drafts say, as 2020-12 does; jsonschema knows the drafts, but not what stands beside '$ref' in them."""
    if isinstance(schema, list):
        return [as_judges_know_it(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: as_judges_know_it(value) for name, value in schema.items() if name != "$schema"}
    if isinstance(schema.get("items"), list):
        out["prefixItems"] = out.pop("items")
        if "additionalItems" in out:
            out["items"] = out.pop("additionalItems")
    for word, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(flag := schema.get(word), bool):
            del out[word]
            if flag:
                out[word] = out.pop(bound)
    for name, need in (schema.get("dependencies") or {}).items() if "properties" in schema else ():
        out.setdefault("dependentRequired" if isinstance(need, list) else "dependentSchemas", {})[name] = need
    if isinstance(name := schema.get("$id"), str) and name.startswith("#"):
        out["$anchor"] = out.pop("$id")[1:]
    return out


CHECKER = FormatChecker()
CHECKER.checks("date-time", raises=ValueError)(lambda value: bool(datetime.fromisoformat(value)))
CHECKER.checks("time", raises=ValueError)(lambda value: bool(time.fromisoformat(value)) or True)


def multiple_of(_validator: Any, divisor: Any, value: Any, _schema: Any) -> Any:
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool) and Fraction(value) % Fraction(divisor):
        yield ValidationError(f"{value} is no multiple of {divisor}")


def pattern(_validator: Any, pattern: str, value: Any, _schema: Any) -> Any:
    if isinstance(value, str) and not re.search(PYTHON_PATTERNS.get(pattern, pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern}")


Judge = extend(Draft202012Validator, {"multipleOf": multiple_of, "pattern": pattern})


def second_judge(schema: Any) -> Any:
    """Another one, which knows more formats; None where it does not know a pattern."""
    if isinstance(schema, dict) and schema.get("pattern") in PYTHON_PATTERNS:
        return None
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True)


def overflows(value: Any) -> bool:
    """Whether a number is too large for a double, such as 1e999: JSON, but not to the second judge."""
    if isinstance(value, dict):
        return any(map(overflows, value.values()))
    return any(map(overflows, value)) if isinstance(value, list) else isinstance(value, float) and math.isinf(value)


class Judges:
    """Both, for one schema."""

    def __init__(self, schema: Any) -> None:
        known = as_judges_know_it(schema)
        self._first, self._second = Judge(exact(known), format_checker=CHECKER), second_judge(known)

    def validate(self, text: str) -> None:
        """Raise what a judge raises unless ``text`` is JSON that is valid."""
        self._first.validate(json.loads(text, parse_float=decimal))
        if self._second is not None and not overflows(json.loads(text)):
            self._second.validate(json.loads(text))
