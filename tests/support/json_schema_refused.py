"""Schemas that are refused, each with the path of the word that its refusal names."""

from __future__ import annotations

from typing import Any

from tests.support.json_schema_words import INTEGER, NULL, NUMBER, TEXT, Schema, listed, thing

NO_PATTERNS = {
    "look-behind": "(?<=a)b",
    "look-ahead inside": "^a(?=b)b$",
    "look-ahead unanchored": "(?=.*a).{3}",
    "negative look-ahead": "^(?!foo|bar).*$",
    "look-ahead before alternatives": "^(?=a)ab|c$",
    "back reference": r"^(a)\1$",
    "named back reference": r"^(?<q>a)\k<q>$",
    "word boundary": r"\bfoo\b",
    "other ends": r"\Afoo\Z",
    "unknown escape": r"\h+",
    "half a surrogate": r"^\ud83d$",
    "group without end": "^(a",
    "bracket without end": "^[a",
    "ends with backslash": "a\\",
    "no lower bound": "^a{,5}$",
    "empty brackets": "^[]$",
    "atomic group": "^(?>a)$",
    "comment": "(?#x)a",
    "inline flag": "a(?m)^b",
    "reversed range": "^[z-a]$",
    "reversed bounds": "^a{3,2}$",
    "nothing to repeat": "^*a$",
    "NUL": "^a\0$",
    "NUL by its number": r"^a\x00$",
}

NO_FORMATS = ("regex", "uri-template", "phone", "color", "ipv4network", "datetime", "int32", "double", "unknown")


def nested(levels: int) -> Schema:
    """Lists in lists."""
    schema: Schema = INTEGER
    for _ in range(levels):
        schema = listed(schema)
    return schema


REFUSED: dict[str, tuple[Any, str]] = {
    "not": (thing({"a": {"not": NULL}}), "properties.a.not"),
    "if": ({"if": {}, "then": {}}, "if"),
    "then": ({"anyOf": [{"then": {}}]}, "anyOf[0].then"),
    "else": ({"else": False}, "else"),
    "contains": (listed(TEXT, contains={"const": "x"}), "contains"),
    "minContains": ({"minContains": 1}, "minContains"),
    "maxContains": ({"maxContains": 1}, "maxContains"),
    "uniqueItems": (thing({"tags": listed(TEXT, uniqueItems=True)}), "properties.tags.uniqueItems"),
    "unevaluatedProperties": ({"allOf": [{}], "unevaluatedProperties": False}, "unevaluatedProperties"),
    "unevaluatedItems": ({"anyOf": [{}], "unevaluatedItems": False}, "unevaluatedItems"),
    "$dynamicRef": ({"items": {"$dynamicRef": "#x"}}, "items.$dynamicRef"),
    "$dynamicAnchor": ({"$dynamicAnchor": "x"}, "$dynamicAnchor"),
    "$recursiveRef": ({"$recursiveRef": "#"}, "$recursiveRef"),
    "$recursiveAnchor": ({"$recursiveAnchor": True}, "$recursiveAnchor"),
    "x-guidance": ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
    "x-guidance inside": (thing({"a": {"x-guidance": {}}}), "properties.a.x-guidance"),
    "extends": ({"extends": {}}, "extends"),
    "disallow": ({"disallow": "string"}, "disallow"),
    "divisibleBy": ({"divisibleBy": 2}, "divisibleBy"),
    "nullable": (thing({"a": {"type": "string", "nullable": True}}), "properties.a.nullable"),
    "discriminator alone": (thing({}, discriminator={"propertyName": "x"}), "discriminator"),
    "discriminator without name": ({"oneOf": [TEXT, TEXT], "discriminator": {}}, "discriminator"),
    "typo": ({"type": "string", "minlength": 3}, "minlength"),
    "typo inside": ({"$defs": {"A": {"propertys": {}}}, "$ref": "#/$defs/A"}, "$defs.A.propertys"),
    "unknown word": ({"frobnicate": 1}, "frobnicate"),
    "unknown draft": ({"$schema": "http://json-schema.org/draft-03/schema#"}, "$schema"),
    "dialect of others": ({"$schema": "https://example.com/mine"}, "$schema"),
    "unknown type": (thing({"a": {"type": "strng"}}), "properties.a.type"),
    "no type": ({"type": []}, "type"),
    "type of types": ({"type": [{"type": "string"}]}, "type"),
    "false": (False, ""),
    "a number": (3, ""),
    "a list": ([{}], ""),
    "schema is text": (thing({"a": "string"}), "properties.a"),
    "properties is a list": ({"properties": ["a"]}, "properties"),
    "required is true": (thing({"a": {"type": "string", "required": True}}), "properties.a.required"),
    "required is text": ({"required": "a"}, "required"),
    "required of numbers": ({"required": [1]}, "required"),
    "enum is empty": ({"enum": []}, "enum"),
    "enum is text": ({"enum": "a"}, "enum"),
    "enum too exact": ({"enum": [1, 123456789.123456789]}, "enum"),
    "const beyond doubles": ({"const": 2**53 + 1}, "const"),
    "const beyond 64 bits": ({"const": -(2**63)}, "const"),
    "const with control character": ({"const": "\x01"}, "const"),
    "anyOf is empty": ({"anyOf": []}, "anyOf"),
    "allOf is an object": ({"allOf": {}}, "allOf"),
    "maxLength negative": ({"maxLength": -1}, "maxLength"),
    "maxLength as text": ({"maxLength": "3"}, "maxLength"),
    "minLength as fraction": ({"minLength": 1.5}, "minLength"),
    "minLength out of reach": ({"type": "string", "minLength": 10**9}, "minLength"),
    "minItems true": ({"minItems": True}, "minItems"),
    "minItems out of reach": (listed(NULL, minItems=10**6), "minItems"),
    "minimum as text": ({"minimum": "0"}, "minimum"),
    "minimum beyond": ({"type": "integer", "minimum": 2**64}, "minimum"),
    "maximum beyond": ({"type": "number", "maximum": -1e300}, "maximum"),
    "multipleOf 0": ({"multipleOf": 0}, "multipleOf"),
    "multipleOf a large prime": ({"type": "integer", "multipleOf": 999983}, "multipleOf"),
    "multipleOf a day": ({"type": "integer", "multipleOf": 86400}, "multipleOf"),
    "multipleOf too fine": ({"type": "number", "multipleOf": 1e-12}, "multipleOf"),
    "multipleOf a third": ({"type": "number", "multipleOf": 1 / 3}, "multipleOf"),
    "multipleOf that overflow": (
        {"type": "integer", "allOf": [{"multipleOf": 65536}, {"multipleOf": 65537}]},
        "allOf[0].multipleOf",
    ),
    "pattern as number": ({"pattern": 3}, "pattern"),
    "format as number": ({"format": 3}, "format"),
    "format of no type": ({"format": "int32"}, "format"),
    "oneOf overlapping": ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
    "oneOf numbers": ({"oneOf": [INTEGER, NUMBER]}, "oneOf"),
    "oneOf tags not required": ({"oneOf": [thing({"k": {"const": 1}}, []), thing({"k": {"const": 2}}, [])]}, "oneOf"),
    "oneOf with a fault inside": ({"oneOf": [INTEGER, {"type": "number", "minLenght": 1}]}, "oneOf[1].minLenght"),
    "propertyNames and patterns": (
        {"propertyNames": {"pattern": "a"}, "patternProperties": {"b": {}}},
        "propertyNames",
    ),
    "propertyNames and properties": ({"propertyNames": {"pattern": "a"}, "properties": {"a": {}}}, "propertyNames"),
    "propertyNames of numbers": ({"propertyNames": INTEGER}, "propertyNames"),
    "propertyNames by format": ({"propertyNames": {"format": "date"}}, "propertyNames"),
    "propertyNames false": ({"propertyNames": False}, "propertyNames"),
    "propertyNames look-behind": ({"propertyNames": {"pattern": "(?<=a)b"}}, "propertyNames"),
    "patternProperties look-behind": ({"patternProperties": {"(?<=a)b": {}}}, 'patternProperties["(?<=a)b"]'),
    "minProperties of a map": ({"type": "object", "minProperties": 2}, "minProperties"),
    "dependencies of text": ({"dependentRequired": {"a": "b"}}, "dependentRequired"),
    "dependencies, many": ({"dependentRequired": {c: ["z"] for c in "abcde"}}, "dependentRequired"),
    "items twice": ({"items": [INTEGER], "prefixItems": [INTEGER]}, "items"),
    "additionalItems with a fault": ({"items": [INTEGER], "additionalItems": {"not": {}}}, "additionalItems.not"),
    "remote reference": ({"$ref": "http://127.0.0.1:9/x"}, "$ref"),
    "file reference": (thing({"a": {"$ref": "file:///etc/passwd"}}), "properties.a.$ref"),
    "reference to nothing": ({"$ref": "#/$defs/nope"}, "$ref"),
    "reference to no schema": ({"$defs": {"a": [1]}, "$ref": "#/$defs/a/0"}, "$defs.a[0]"),
    "reference as number": ({"$ref": 1}, "$ref"),
    "unknown anchor": ({"$ref": "#nope"}, "$ref"),
    "reference to itself": ({"$ref": "#"}, "$ref"),
    "loop of references": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        "$defs.b.allOf[0].$ref",
    ),
    "left recursion": ({"anyOf": [{"$ref": "#"}, TEXT]}, "anyOf[0].$ref"),
    "recursion without end": (thing({"next": {"$ref": "#"}}), "properties.next.$ref"),
    "recursion of items without end": (listed({"$ref": "#"}, minItems=1), "items.$ref"),
    "pointer within an id": (
        {"$defs": {"a": {"$id": "x", "items": {"$ref": "#/$defs/b"}}}, "$ref": "#/$defs/a"},
        "$defs.a.items.$ref",
    ),
    "33 levels": (nested(33), ".".join(["items"] * 32)),
    "too many properties": ({"properties": {f"p{i}": {} for i in range(5001)}}, "properties"),
    "too many constants": ({"enum": list(range(5001))}, "enum"),
    "too many characters": ({"enum": ["x" * 1000 * i for i in range(40)]}, "enum"),
    "too many words": ({"anyOf": [{"type": "string", "maxLength": i} for i in range(7000)]}, "anyOf[6666]"),
    "lengths that cross": (thing({"a": {"type": "string", "minLength": 5, "maxLength": 3}}), "properties.a.minLength"),
    "items that cross": (listed(NULL, minItems=3, maxItems=2), "minItems"),
    "bounds that cross": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    "pattern too long": ({"pattern": "a" * 5000}, "pattern"),
}

REFUSED_BY_TRIAL: dict[str, tuple[Any, str]] = {
    "patternProperties overlap": (
        {"type": "object", "patternProperties": {"^a": TEXT, "b$": TEXT}},
        'patternProperties["^a"]',
    ),
    "counts and optional properties": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1},
        "maxProperties",
    ),
    "required that is excluded": (thing({"a": INTEGER}, ["a", "z"]), "required"),
    "items that cannot be": ({"type": "array", "items": False, "minItems": 1}, "minItems"),
    "no multiple": ({"type": "integer", "minimum": 4, "maximum": 5, "multipleOf": 3}, "multipleOf"),
    "const of another type": ({"type": "integer", "const": "a"}, "const"),
    "const that does not match": ({"type": "string", "pattern": "^b$", "const": "a"}, "pattern"),
    "pattern and length": ({"type": "string", "pattern": "^a{3}$", "maxLength": 2}, "pattern"),
    "allOf that contradicts": ({"allOf": [TEXT, INTEGER]}, "allOf"),
    "reversed bounds in a pattern": (thing({"a": {"type": "string", "pattern": "^a{3,2}$"}}), "properties.a.pattern"),
    "reference and siblings in a circle": (
        thing({"a": {"$ref": "#", "type": "object", "minProperties": 1}}, []),
        "properties.a.$ref",
    ),
}

COMPILED_LATE = {"reversed range", "reversed bounds", "nothing to repeat", "group without end"}
"""Patterns that the library finds fault with."""
