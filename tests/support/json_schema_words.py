"""Schemas of one word each, and what the others are put together from."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def thing(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    """An object; all of its properties are required, and there are no others, unless said."""
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False, **more}


def listed(items: Any, **more: Any) -> Schema:
    """An array."""
    return {"type": "array", "items": items, **more}


TEXT, INTEGER, NUMBER, BOOLEAN, NULL = ({"type": name} for name in ("string", "integer", "number", "boolean", "null"))
DRAFT_4, DRAFT_6, DRAFT_7 = (f"http://json-schema.org/draft-0{number}/schema#" for number in (4, 6, 7))
DRAFT_2019, DRAFT_2020 = (f"https://json-schema.org/draft/{name}/schema" for name in ("2019-09", "2020-12"))

WORDS_ALONE: dict[str, Any] = {
    "any": {},
    "true": True,
    "text": TEXT,
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": BOOLEAN,
    "null": NULL,
    "object": {"type": "object"},
    "array": {"type": "array"},
    "text or null": {"type": ["string", "null"]},
    "scalars": {"type": ["string", "number", "boolean", "null"]},
    "const text": {"const": "yes"},
    "const number": {"const": -12.5},
    "const whole float": {"const": 3.0, "type": "integer"},
    "const null": {"const": None},
    "const false": {"const": False},
    "const array": {"const": [1, "two", None, [3.25]]},
    "const object": {"const": {"a": {"b": [True]}, "c d": '\n"\\é'}},
    "enum texts": {"type": "string", "enum": ["red", "green", "blue", "a\tb", "naïve", "日本", ""]},
    "enum mixed": {"enum": [1, "1", 1.5, True, None, [1], {"a": 1}]},
    "enum numbers": {"type": "number", "enum": [0, 1, -1, 2.5, 1e15, 0.000001]},
    "enum of one": {"enum": ["only"]},
    "enum by type": {"type": "integer", "enum": [1, "two", 3.5, 4]},
    "enum of 300": {"enum": [f"value-{i}" for i in range(300)]},
    "maxLength": {"type": "string", "maxLength": 5},
    "minLength": {"type": "string", "minLength": 3, "maxLength": 12},
    "length 0": {"type": "string", "maxLength": 0},
    "length as float": {"type": "string", "minLength": 2.0, "maxLength": 3.0},
    "maxLength out of reach": {"type": "string", "maxLength": 2**40},
    "minimum": {"type": "integer", "minimum": 10},
    "maximum": {"type": "integer", "maximum": -10},
    "between": {"type": "integer", "minimum": -3, "maximum": 1234},
    "exclusive": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    "fractional bounds of integers": {"type": "integer", "minimum": 0.5, "maximum": 7.25},
    "number between": {"type": "number", "minimum": -1.5, "maximum": 2.75},
    "number exclusive": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "number just above": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    "number just below": {"type": "number", "minimum": -1.5, "exclusiveMaximum": -1},
    "number long bounds": {"type": "number", "minimum": 0.12345678901234567, "maximum": 0.30000000000000004},
    "number tiny bound": {"type": "number", "exclusiveMinimum": 5e-324, "maximum": 1},
    "number huge bounds": {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
    "integer of 64 bits": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "integer beyond 64 bits": {"type": "integer", "minimum": 0, "maximum": 2**64},
    "integer of JavaScript": {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1},
    "integer near 2^53": {"type": "integer", "minimum": 2**53, "maximum": 2**53 + 3},
    "multipleOf 5": {"type": "integer", "multipleOf": 5},
    "multipleOf cents": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 1000},
    "multipleOf half": {"type": "number", "multipleOf": 0.5},
    "multipleOf 3600": {"type": "integer", "multipleOf": 3600},
    "multipleOf 1": {"type": "number", "multipleOf": 1},
    "multipleOf twice": {"allOf": [{"type": "integer", "multipleOf": 6}, {"multipleOf": 4, "maximum": 200}]},
    "items": listed(INTEGER),
    "maxItems": listed(TEXT, maxItems=3),
    "minItems": listed(BOOLEAN, minItems=2, maxItems=4),
    "minItems alone": listed(NULL, minItems=3),
    "no items": listed(TEXT, maxItems=0),
    "maxItems out of reach": listed(NULL, maxItems=2**33),
    "items false": {"type": "array", "items": False},
    "tuple": {"type": "array", "prefixItems": [INTEGER, TEXT], "items": False, "minItems": 2},
    "tuple and rest": {"type": "array", "prefixItems": [TEXT], "items": INTEGER, "minItems": 2, "maxItems": 4},
    "tuple optional": {"type": "array", "prefixItems": [BOOLEAN, NULL], "items": False},
    "tuple exact": {"type": "array", "prefixItems": [NUMBER, NUMBER], "minItems": 2, "maxItems": 2},
    "uniqueItems false": listed(INTEGER, uniqueItems=False),
    "uniqueItems of one": listed(INTEGER, uniqueItems=True, maxItems=1),
    "map": {"type": "object", "additionalProperties": INTEGER},
    "map of lists": {"type": "object", "additionalProperties": listed(TEXT)},
    "map of one at least": {"type": "object", "additionalProperties": BOOLEAN, "minProperties": 1},
    "map of two at most": {"type": "object", "additionalProperties": BOOLEAN, "maxProperties": 2},
    "closed and empty": {"type": "object", "additionalProperties": False},
    "all required": thing({"a": INTEGER, "b": TEXT}),
    "none required": thing({"a": INTEGER, "b": TEXT, "c": NULL}, []),
    "some required": thing({"a": INTEGER, "b": TEXT, "c": NULL}, ["b"]),
    "open object": {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
    "open of texts": {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": TEXT, "required": ["a"]},
    "required beyond properties": {"type": "object", "properties": {"a": INTEGER}, "required": ["a", "z"]},
    "names to quote": thing({'say "x"': TEXT, "back\\slash": NULL, "née": INTEGER, "a b": NULL, "": NULL, "\n": NULL}),
    "one of its own": thing({"a": NULL, "b": NULL}, [], minProperties=1),
    "one at most": thing({"a": NULL, "b": NULL}, [], maxProperties=1),
    "counts that say nothing": thing({"a": NULL, "b": NULL}, ["a"], minProperties=1, maxProperties=2),
    "patternProperties": {"type": "object", "patternProperties": {"^x-[a-z]+$": TEXT}, "additionalProperties": False},
    "patternProperties two": {
        "type": "object",
        "patternProperties": {"^n_": INTEGER, "^s_": TEXT},
        "additionalProperties": False,
    },
    "patternProperties beside": {
        "type": "object",
        "properties": {"id": INTEGER, "n_0": {"minimum": 3}},
        "patternProperties": {"^n_[0-9]$": {"type": "integer", "maximum": 9}},
        "required": ["id", "n_0"],
        "additionalProperties": BOOLEAN,
    },
    "propertyNames of text": {"type": "object", "propertyNames": TEXT, "additionalProperties": NUMBER},
    "propertyNames enumerated": {
        "type": "object",
        "propertyNames": {"type": "string", "enum": ["lo", "hi"]},
        "additionalProperties": NUMBER,
        "required": ["lo"],
    },
    "propertyNames pattern": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z]{2}$"},
        "additionalProperties": TEXT,
    },
    "propertyNames length": {"type": "object", "propertyNames": {"minLength": 2, "maxLength": 4}},
    "unevaluatedProperties": {"type": "object", "properties": {"a": INTEGER}, "unevaluatedProperties": False},
    "unevaluatedItems": {"type": "array", "prefixItems": [INTEGER], "unevaluatedItems": False},
    "dependentRequired": thing({"card": TEXT, "address": TEXT}, [], dependentRequired={"card": ["address"]}),
    "dependentSchemas": thing(
        {"kind": {"enum": ["x", "y"]}, "size": INTEGER},
        [],
        dependentSchemas={"size": {"properties": {"kind": {"const": "x"}}, "required": ["kind"]}},
    ),
    "properties of anything": {"properties": {"a": INTEGER}, "required": ["a"]},
}

PATTERNS = {
    "letters": "^[a-z]+$",
    "unanchored": "[0-9]{3}",
    "begins": "^ab",
    "ends": "yz$",
    "one of": "^(cat|dog|bird)$",
    "one of, anchors in each": "(^cat$)|(^dog$)",
    "loose alternatives": "^a|b$",
    "phone": r"^\+?[1-9]\d{6,14}$",
    "sku": "^[A-Z]{3}-[0-9]{4}$",
    "hex color": "^#(?:[0-9a-fA-F]{3}){1,2}$",
    "slug": "^[a-z0-9]+(?:-[a-z0-9]+)*$",
    "semver": r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$",
    "dot": "^.{1,20}$",
    "anything": r"^[\s\S]*$",
    "spaces": r"^\s+\S+\s*$",
    "no spaces": r"^[^\s,]{1,8}$",
    "word": r"^\w+$",
    "not digits": r"^\D{2,5}$",
    "named group": r"^(?<year>\d{4})-(?P<month>\d{2})$",
    "lazy": "^a+?b*?$",
    "escapes": r"^\t\x41\u0042\u{43}\cJ\/\-\_\.$",
    "emoji": r"^[\u{1F600}-\u{1F64F}]{1,3}$",
    "surrogates": "^\\ud83d\\ude00$",
    "brackets in brackets": r"^[--c&&~~[]{1,6}$",
    "angle brackets": r"^\<b\>$",
    "braces": "^{x}$",
    "hyphen last": r"^[\w.-]{1,9}$",
    "hyphen after class": r"^[\d-z]{1,9}$",
    "ignore case": "(?i)^yes|no$",
    "password": r"^(?=.*[A-Z])(?=.*[a-z])(?=.*\d)[A-Za-z\d]{8,20}$",
    "not blank": r"^(?!\s*$).{1,30}$",
    "no dots in a row": r"^(?!\.)(?!.*\.\.)[a-z.]{1,12}$",
    "no leading zero": r"^(?!0)\d{1,5}$",
    "no commas": "^(?!.*,).{1,10}$",
    "not empty": "^(?!$).{0,9}$",
    "empty": "^$",
    "control characters": r"^[\n\t]{1,3}$",
    "quotes": r'^"[^"\\]*"$',
    "chinese": "^[\u4e00-\u9fff]{2,4}$",
    "repeated group": "^(ab?c){2,3}$",
    "nested repetition": "(a+)+$",
}

PYTHON_PATTERNS = {
    PATTERNS["named group"]: r"^(\d{4})-(\d{2})$",
    PATTERNS["escapes"]: r"^\tABC\n/\-_\.$",
    PATTERNS["emoji"]: "^[\U0001f600-\U0001f64f]{1,3}$",
    PATTERNS["surrogates"]: "^\U0001f600$",
    PATTERNS["brackets in brackets"]: r"^[\--c\&\~\[]{1,6}$",
    PATTERNS["angle brackets"]: "^<b>$",
    PATTERNS["braces"]: r"^\{x\}$",
    PATTERNS["hyphen after class"]: r"^[\d\-z]{1,9}$",
}
"""What those mean that only ECMA-262 spells so, for a judge that does not know it."""

FORMATS = (
    "date", "time", "date-time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
    "iri", "uri-reference", "iri-reference", "uuid", "uuid4", "uuid7", "byte", "base64", "base64url", "json-pointer",
    "relative-json-pointer", "ipvanyaddress", "password", "binary", "file-path",
)  # fmt: skip
