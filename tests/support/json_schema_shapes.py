"""Schemas as people and their libraries write them: recursive, composed, of older drafts, and whole ones."""

from __future__ import annotations

from typing import Any

from tests.support.json_schema_words import (
    BOOLEAN,
    DRAFT_4,
    DRAFT_6,
    DRAFT_7,
    DRAFT_2019,
    DRAFT_2020,
    INTEGER,
    NULL,
    NUMBER,
    TEXT,
    Schema,
    listed,
    thing,
)

NODE = {"$ref": "#/$defs/Node"}
ADDRESS = thing({"street": TEXT, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}})


def tagged(name: str, **properties: Any) -> Schema:
    """A branch that is known by its kind."""
    return thing({"kind": {"const": name}, **properties})


TREES: dict[str, Any] = {
    "list": {"$ref": "#/$defs/Node", "$defs": {"Node": thing({"value": INTEGER, "next": {"anyOf": [NODE, NULL]}})}},
    "tree": {"$ref": "#/$defs/Node", "$defs": {"Node": thing({"name": TEXT, "children": listed(NODE, maxItems=3)})}},
    "tree by root": thing({"name": TEXT, "children": listed({"$ref": "#"}, maxItems=2)}),
    "optional next": thing({"v": INTEGER, "next": {"$ref": "#"}}, ["v"]),
    "map of itself": {"type": "object", "additionalProperties": {"$ref": "#"}, "maxProperties": 2},
    "two that call each other": {
        "$ref": "#/$defs/A",
        "$defs": {"A": thing({"b": {"$ref": "#/$defs/B"}}, []), "B": thing({"a": {"$ref": "#/$defs/A"}}, [])},
    },
    "json": {
        "$ref": "#/$defs/Json",
        "$defs": {
            "Json": {
                "anyOf": [
                    {"type": ["string", "number", "boolean", "null"]},
                    listed({"$ref": "#/$defs/Json"}, maxItems=3),
                    {"type": "object", "additionalProperties": {"$ref": "#/$defs/Json"}, "maxProperties": 2},
                ]
            }
        },
    },
    "expression": {
        "$ref": "#/$defs/Expr",
        "$defs": {
            "Expr": {"oneOf": [{"$ref": "#/$defs/Num"}, {"$ref": "#/$defs/Add"}]},
            "Num": tagged("num", value=NUMBER),
            "Add": tagged("add", left={"$ref": "#/$defs/Expr"}, right={"$ref": "#/$defs/Expr"}),
        },
    },
    "widgets": thing(
        {"type": {"enum": ["div", "button"]}, "label": TEXT, "children": listed({"$ref": "#"}, maxItems=2)},
        ["type", "label", "children"],
    ),
    "definitions": {"definitions": {"A": ADDRESS}, "$schema": DRAFT_7, **thing({"home": {"$ref": "#/definitions/A"}})},
    "reference to a property": thing({"a": {"type": "integer", "minimum": 3}, "b": {"$ref": "#/properties/a"}}),
    "reference to an item": {"$defs": {"T": {"prefixItems": [INTEGER, TEXT]}}, "$ref": "#/$defs/T/prefixItems/1"},
    "escaped pointer": {"$defs": {"a/b~c d": BOOLEAN}, "$ref": "#/$defs/a~1b~0c%20d"},
    "anchor": {"$defs": {"x": {"$anchor": "here", "type": "integer"}}, "$ref": "#here"},
    "anchor of draft 6": {"$schema": DRAFT_6, "definitions": {"x": {"$id": "#x", "type": "null"}}, "$ref": "#x"},
    "by root id": {"$id": "https://example.com/s", "$defs": {"x": NULL}, "$ref": "https://example.com/s#/$defs/x"},
    "typebox recursive": {
        "$id": "T0",
        **thing({"id": TEXT, "nodes": listed({"$ref": "T0"}, maxItems=2)}),
    },
    "chain of references": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": thing({"x": INTEGER})},
    },
    "reference and more": {"$defs": {"base": {"type": "string"}}, "$ref": "#/$defs/base", "maxLength": 4},
    "unused definitions": {"$defs": {"unused": {"not": {}}}, **thing({"a": INTEGER})},
    "components": {"components": {"schemas": {"A": ADDRESS}}, "$ref": "#/components/schemas/A"},
}

COMPOSED: dict[str, Any] = {
    "anyOf types": {"anyOf": [TEXT, INTEGER, listed(TEXT, maxItems=2)]},
    "anyOf objects": {"anyOf": [thing({"a": INTEGER}), thing({"b": TEXT})]},
    "anyOf beside properties": {
        **thing({"a": INTEGER, "b": TEXT}, []),
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "anyOf nullable enum": {"anyOf": [{"type": "string", "enum": ["a", "b"]}, NULL]},
    "anyOf of one": {"anyOf": [thing({"a": INTEGER})]},
    "allOf of one": {
        "$defs": {"x": thing({"a": INTEGER})},
        "allOf": [{"$ref": "#/$defs/x"}],
        "description": "pydantic 1",
    },
    "allOf bounds": {"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 5}]},
    "allOf lengths and patterns": {
        "type": "string",
        "allOf": [{"pattern": "^[a-z]*$"}, {"minLength": 2}, {"maxLength": 4}],
    },
    "allOf two patterns": {"allOf": [{"type": "string", "pattern": "a"}, {"pattern": "^[ab]{2,4}$"}]},
    "inheritance": {
        "allOf": [
            {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]},
            {"type": "object", "properties": {"name": TEXT}, "required": ["name"]},
        ]
    },
    "inheritance by reference": {
        "$defs": {"Base": {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]}},
        "allOf": [{"$ref": "#/$defs/Base"}],
        "properties": {"name": TEXT},
        "required": ["name"],
        "type": "object",
    },
    "oneOf types": {"oneOf": [TEXT, NULL, listed(INTEGER, maxItems=2)]},
    "oneOf constants": {"oneOf": [{"const": 1, "title": "one"}, {"const": 2, "title": "two"}, {"const": "x"}]},
    "oneOf enums": {"oneOf": [{"enum": ["a", "b"]}, {"type": "string", "enum": ["c"]}, INTEGER]},
    "oneOf tags": {"oneOf": [tagged("a", x=INTEGER), tagged("b", y=TEXT), tagged("c")]},
    "oneOf tags and null": {"oneOf": [tagged("a", x=INTEGER), tagged("b", y=TEXT), NULL]},
    "oneOf enum tags": {
        "oneOf": [thing({"t": {"type": "string", "enum": ["a", "b"]}, "x": INTEGER}), thing({"t": {"enum": ["c"]}})]
    },
    "oneOf tag not required in one": {"oneOf": [tagged("a"), thing({"kind": {"const": "b"}, "z": NULL}, ["z"])]},
    "oneOf of one": {"oneOf": [INTEGER]},
    "oneOf nested": {"oneOf": [{"oneOf": [tagged("a"), tagged("b")]}, {"oneOf": [tagged("c"), NULL]}]},
    "oneOf in allOf": {"allOf": [{"oneOf": [tagged("a"), tagged("b", n=INTEGER)]}, {"type": "object"}]},
    "oneOf beside properties": {
        "type": "object",
        "properties": {"id": INTEGER},
        "required": ["id"],
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "b"}, "n": INTEGER}, "required": ["kind", "n"]},
        ],
    },
    "discriminator, pydantic's": {
        "$defs": {
            "Cat": {
                "type": "object",
                "properties": {"pet": {"const": "cat", "default": "cat"}, "lives": INTEGER},
                "required": ["lives"],
                "title": "Cat",
            },
            "Dog": {
                "type": "object",
                "properties": {"pet": {"const": "dog", "default": "dog"}, "tail": BOOLEAN},
                "required": ["tail"],
                "title": "Dog",
            },
        },
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "discriminator": {"propertyName": "pet", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
    },
    "discriminator inline": {
        "oneOf": [thing({"k": {"const": 1}}, []), thing({"k": {"const": 2}, "x": TEXT}, [])],
        "discriminator": {"propertyName": "k"},
    },
    "discriminator of anyOf": {"anyOf": [tagged("a"), tagged("b")], "discriminator": {"propertyName": "kind"}},
}

DRAFTS: dict[str, Any] = {
    "draft 4 exclusive": {
        "$schema": DRAFT_4,
        "type": "integer",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 5,
        "exclusiveMaximum": False,
    },
    "draft 4 id": {"$schema": DRAFT_4, "id": "http://example.com/root.json", **thing({"a": INTEGER})},
    "draft 7 tuple": {
        "$schema": DRAFT_7,
        "type": "array",
        "items": [INTEGER, TEXT],
        "additionalItems": False,
        "minItems": 2,
    },
    "draft 7 tuple and rest": {
        "$schema": DRAFT_7,
        "type": "array",
        "items": [INTEGER],
        "additionalItems": TEXT,
        "maxItems": 3,
    },
    "draft 7 additionalItems alone": {"$schema": DRAFT_7, "type": "array", "items": NULL, "additionalItems": False},
    "draft 7 dependencies": {"$schema": DRAFT_7, **thing({"a": NULL, "b": NULL}, [], dependencies={"a": ["b"]})},
    "draft 7 dependencies, schema": {
        "$schema": DRAFT_7,
        **thing({"a": NULL, "b": INTEGER}, [], dependencies={"a": {"properties": {"b": {"minimum": 5}}}}),
    },
    "draft 2019": {"$schema": DRAFT_2019, **thing({"a": INTEGER})},
    "draft 2020": {"$schema": DRAFT_2020, **thing({"a": INTEGER})},
    "openapi 3.1": {"$schema": "https://spec.openapis.org/oas/3.1/dialect/base", **thing({"a": INTEGER})},
}

SHAPES: dict[str, Any] = {
    "pydantic user": {
        "$defs": {
            "Address": {
                "properties": {"street": {"title": "Street", **TEXT}, "city": {"title": "City", **TEXT}},
                "required": ["street", "city"],
                "title": "Address",
                "type": "object",
            },
            "Role": {"enum": ["admin", "user"], "title": "Role", "type": "string"},
        },
        "properties": {
            "name": {"maxLength": 40, "minLength": 1, "title": "Name", "type": "string"},
            "age": {"anyOf": [{"minimum": 0, "type": "integer"}, NULL], "default": None, "title": "Age"},
            "email": {"format": "email", "title": "Email", "type": "string"},
            "role": {"$ref": "#/$defs/Role", "default": "user"},
            "addresses": {"items": {"$ref": "#/$defs/Address"}, "title": "Addresses", "type": "array"},
            "created": {"format": "date-time", "type": "string"},
            "scores": {"additionalProperties": NUMBER, "title": "Scores", "type": "object"},
        },
        "required": ["name", "email", "addresses", "created", "scores"],
        "title": "User",
        "type": "object",
    },
    "pydantic tuple": {"maxItems": 2, "minItems": 2, "prefixItems": [INTEGER, TEXT], "title": "Pair", "type": "array"},
    "pydantic decimal": {"anyOf": [NUMBER, {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}]},
    "pydantic constrained": thing(
        {
            "a": {"exclusiveMinimum": 0, "type": "number"},
            "b": {"multipleOf": 2, "type": "integer"},
            "c": {"pattern": "^[A-Z]{2}$", "type": "string"},
            "d": {"format": "uuid4", "type": "string"},
            "e": {"format": "uri", "maxLength": 2083, "minLength": 1, "type": "string"},
        }
    ),
    "openai strict steps": thing(
        {"steps": listed(thing({"explanation": TEXT, "output": TEXT}), maxItems=3), "final_answer": TEXT}
    ),
    "openai strict nullable": thing({"location": TEXT, "unit": {"type": ["string", "null"], "enum": ["c", "f", None]}}),
    "openai event": thing({"name": TEXT, "date": TEXT, "participants": listed(TEXT)}),
    "zod user": {
        "$schema": DRAFT_7,
        **thing(
            {
                "name": {"type": "string", "minLength": 1},
                "age": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
                "tags": listed(TEXT, maxItems=3),
                "kind": {"type": "string", "enum": ["a", "b"]},
                "note": {"anyOf": [TEXT, NULL]},
                "any": {},
            },
            ["name", "age", "tags", "kind", "note"],
        ),
    },
    "zod record": {"$schema": DRAFT_2020, "type": "object", "propertyNames": TEXT, "additionalProperties": NUMBER},
    "zod record of enum": {
        "$schema": DRAFT_2020,
        "type": "object",
        "propertyNames": {"type": "string", "enum": ["x", "y"]},
        "additionalProperties": BOOLEAN,
        "required": ["x", "y"],
    },
    "zod union": {"$schema": DRAFT_2020, "anyOf": [tagged("a", x=NUMBER), tagged("b", y=TEXT)]},
    "zod discriminated": {"$schema": DRAFT_2020, "oneOf": [tagged("ok", data=TEXT), tagged("err", code=INTEGER)]},
    "zod email": {
        "type": "string",
        "format": "email",
        "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+.]*)[A-Za-z0-9_+]@([A-Za-z0-9][A-Za-z0-9]*\.)+[A-Za-z]{2,}$",
    },
    "zod int": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
    "zod datetime": {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$"},
    "zod tuple": {"type": "array", "prefixItems": [TEXT, NUMBER], "items": BOOLEAN, "minItems": 2, "maxItems": 4},
    "typebox": thing({"x": {"anyOf": [{"const": "left", "type": "string"}, {"const": "right", "type": "string"}]}}),
    "openapi pet": {
        "type": "object",
        "required": ["id", "name"],
        "properties": {
            "id": {"type": "integer", "format": "int64"},
            "name": {"type": "string", "example": "doggie"},
            "size": {"type": "integer", "format": "int32", "nullable": False},
            "weight": {"type": "number", "format": "float"},
            "photo": {"type": "string", "format": "byte"},
            "secret": {"type": "string", "format": "password", "writeOnly": True},
        },
        "xml": {"name": "Pet"},
        "externalDocs": {"url": "https://example.com"},
        "x-internal": True,
    },
    "openapi error": thing({"code": {"type": "integer", "format": "uint8"}, "message": TEXT}),
    "weather tool": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "City and state, e.g. San Francisco, CA"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["location"],
    },
    "tool without arguments": {"type": "object", "properties": {}},
    "sql tool": thing(
        {"query": TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10}}, ["query"]
    ),
    "geojson": thing(
        {
            "type": {"const": "Point"},
            "coordinates": {
                "type": "array",
                "prefixItems": [
                    {"type": "number", "minimum": -180, "maximum": 180},
                    {"type": "number", "minimum": -90, "maximum": 90},
                ],
                "items": False,
                "minItems": 2,
            },
        }
    ),
    "invoice": thing(
        {
            "number": {"type": "string", "pattern": "^INV-[0-9]{6}$"},
            "date": {"type": "string", "format": "date"},
            "lines": listed(
                thing({"text": TEXT, "amount": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 99999}}),
                minItems=1,
                maxItems=3,
            ),
            "currency": {"enum": ["EUR", "USD", "CNY"]},
            "paid": BOOLEAN,
        }
    ),
    "sentiment": thing(
        {"label": {"enum": ["pos", "neg", "neutral"]}, "score": {"type": "number", "minimum": 0, "maximum": 1}}
    ),
    "entities": thing(
        {
            "entities": listed(
                thing(
                    {"text": TEXT, "start": {"type": "integer", "minimum": 0}, "type": {"enum": ["PER", "LOC", "ORG"]}}
                ),
                maxItems=2,
            )
        }
    ),
    "translations": {
        "type": "object",
        "patternProperties": {"^[a-z]{2}(-[A-Z]{2})?$": TEXT},
        "additionalProperties": False,
    },
    "server config": thing(
        {
            "host": {"type": "string", "format": "hostname"},
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
            "tls": {"anyOf": [thing({"cert": TEXT, "key": TEXT}), NULL]},
            "upstreams": listed(
                {"anyOf": [{"format": "ipv4", "type": "string"}, {"format": "ipv6", "type": "string"}]}, maxItems=2
            ),
        }
    ),
    "nested deeply": None,
    "wide": thing(
        {f"field_{i}": [TEXT, INTEGER, BOOLEAN, NULL][i % 4] for i in range(60)},
        [f"field_{i}" for i in range(0, 60, 9)],
    ),
    "optional unions": thing({f"p{i}": {"anyOf": [{"type": "string", "maxLength": 8}, NULL]} for i in range(30)}, []),
    "title as a property": thing(
        {"title": TEXT, "description": TEXT, "default": NULL, "$ref": INTEGER, "type": TEXT, "not": NULL}
    ),
    "remarks": {
        "title": "t",
        "description": "d",
        "default": 1,
        "examples": [1],
        "deprecated": True,
        "readOnly": False,
        "$comment": "c",
        "contentMediaType": "text/plain",
        "contentEncoding": "base64",
        "type": "string",
    },
}

_deep: Schema = INTEGER
for _ in range(14):
    _deep = thing({"d": _deep})
SHAPES["nested deeply"] = _deep
