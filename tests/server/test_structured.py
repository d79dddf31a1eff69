"""Forms of answers: what of a request becomes a grammar, and what is said where it cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.grammar import Grammars
from server.grammar.blame import blame_text
from server.grammar.forms import of_choice, of_lark, of_regex, of_schema
from tests.server.rig import CHAT, Rig, chat, error_of
from tests.support.fake_engine import EOS, VOCAB_SIZE, ByteVocabulary, failure

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


def test_the_librarys_own_failures_say_nothing_of_it() -> None:
    assert "panic" not in str(blame_text("panic: assertion failed: x\n  at y", "response_format.lark"))


async def test_a_schema_is_refused_by_the_path_of_its_keyword() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    answer_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = error_of(await Rig().post(CHAT, chat(response_format=answer_format)), 400)
    assert error["param"] == "response_format.json_schema.schema.properties.a.not"
    assert "not" in error["message"]


@pytest.mark.parametrize("code", ["invalid_grammar", "grammar_failed"])
async def test_a_grammar_that_fails_in_the_engine_is_the_clients(code: str) -> None:
    rig = Rig(lambda request: [failure(request, code, "It takes too much time.")])
    error = error_of(await rig.post(CHAT, chat(response_format={"type": "json_object"})), 400)
    assert (error["code"], error["type"]) == (code, "invalid_request_error")


@pytest.mark.parametrize(
    "answer_format",
    [
        {"type": "choice", "choice": [f"word {i}" for i in range(10_000)]},
        {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"enum": [{"a": i} for i in range(2_400)]}},
        },
        {
            "type": "json_schema",
            "json_schema": {
                "name": "x",
                "schema": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(3_000)}},
            },
        },
    ],
    ids=["choice", "enum", "properties"],
)
async def test_forms_as_large_as_they_may_be(answer_format: Any) -> None:
    """What the trial lets pass, the engine keeps to, on a vocabulary of bytes as well as on any other."""
    rig = Rig()
    assert (await rig.post(CHAT, chat(response_format=answer_format))).status_code == 200
    vocabulary = ByteVocabulary()
    grammars = Grammars(vocabulary, VOCAB_SIZE, [EOS])
    held = grammars.open(rig.engine.submitted[0].grammar).result()
    for _ in range(8):
        allowed = held.allowed(VOCAB_SIZE)
        assert held.failure is None
        assert allowed is not None
        held.accept(next(token for token in range(256) if token in allowed))
        assert held.failure is None
        if held.is_complete:
            break
    grammars.close()
