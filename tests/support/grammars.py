"""Grammars for tests of the engine, as the server writes them."""

from __future__ import annotations

import json


def lark(text):
    return json.dumps({"grammars": [{"lark_grammar": '%llguidance {"no_forcing": true}\n' + text}]})


def json_schema(schema):
    return lark(f"start: %json {json.dumps(schema)}")


OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy", "zé"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
GRAMMARS = (json_schema(OBJECT), lark('start: /[a-c]{3}/ ("-" /[0-9]+/)?'), lark('start: "yes" | "no" | "nobody"'))
