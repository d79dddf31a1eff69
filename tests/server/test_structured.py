"""Forms of answers: what of a request becomes a grammar, and what is said where it cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.grammar.forms import of_choice, of_lark, of_regex, of_schema
from tests.server.rig import CHAT, Rig, chat, error_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("answer_format", "grammar"),
    [
        ({"type": "text"}, ""),
        ({"type": "json_object"}, of_schema({"type": "object"})),
        ({"type": "regex", "regex": "[ab]+"}, of_regex("[ab]+")),
        ({"type": "choice", "choice": ["yes", 'n"o']}, of_choice(["yes", 'n"o'])),
        ({"type": "lark", "lark": 'start: "a"+'}, of_lark('start: "a"+')),
        (None, ""),
    ],
)
async def test_a_form_is_a_grammar_of_every_choice(answer_format: Any, grammar: str) -> None:
    rig = Rig()
    assert (await rig.post(CHAT, chat(response_format=answer_format, n=2))).status_code == 200
    assert [request.grammar for request in rig.engine.submitted] == [grammar] * 2


@pytest.mark.parametrize("strict", [True, False, None])
async def test_a_schema_is_kept_strict_or_not(strict: bool | None) -> None:
    rig = Rig()
    answer_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": strict}}
    assert (await rig.post(CHAT, chat(response_format=answer_format))).status_code == 200
    (request,) = rig.engine.submitted
    assert '"a"' in json.loads(request.grammar)["grammars"][0]["lark_grammar"]


@pytest.mark.parametrize(
    ("answer_format", "param", "said"),
    [
        ({"type": "regex", "regex": "(abc"}, "regex", "unclosed group (at its character 1)"),
        ({"type": "regex", "regex": "ab[z-a]"}, "regex", "the start must be <= the end (at its character 4)"),
        ({"type": "regex", "regex": "(?=x)a"}, "regex", "look-around"),
        ({"type": "lark", "lark": "\nstart: foo"}, "lark", 'unknown name: "foo" (line 2, column 8)'),
        ({"type": "lark", "lark": "start"}, "lark", "Expected token ':'"),
        ({"type": "lark", "lark": "start: /(/"}, "lark", "unclosed group"),
    ],
)
async def test_a_refusal_says_what_is_wrong_and_where(answer_format: Any, param: str, said: str) -> None:
    rig = Rig()
    error = error_of(await rig.post(CHAT, chat(response_format=answer_format)), 400)
    assert (error["param"], error["code"]) == (f"response_format.{param}", "invalid_grammar")
    assert said in error["message"]
    assert rig.engine.submitted == []


async def test_a_schema_is_refused_by_the_path_of_its_keyword() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    answer_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = error_of(await Rig().post(CHAT, chat(response_format=answer_format)), 400)
    assert error["param"] == "response_format.json_schema.schema.properties.a.not"
    assert "not" in error["message"]
