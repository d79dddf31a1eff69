"""Grammars that clients write in lark: they describe texts, and can do nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from server.grammar.child import Bytes, verdict
from server.grammar.client_lark import checked_lark
from server.grammar.forms import of_lark

PARAM = "response_format.lark"

REFUSED = {
    "every token": ("start: <[*]>", "<[*]>"),
    "a token": ('start: "a" <[257]>', "<[257]>"),
    "all but one": ("start: <[^1]>", "<[^1]>"),
    "a token's name": ("start: <|im_end|>", "<|im_end|>"),
    "after a comment": ("start: a // <\n | <[1]>", "<[1]>"),
    "after a hash": ("start: a # /\n | <[1]> # /", "<[1]>"),
    "after a text": (r'start: "\"" <[1]>', "<[1]>"),
    "after a slash in brackets": ("start: /[/] | <[1]> /]/", "<[1]>"),
    "after a pattern of two lines": ("start: /a\n/ <[1]>", "<[1]>"),
    "options": ('%llguidance {"no_forcing": false}\nstart: "a"', "%llguidance"),
    "options at the end": ('start: "a"\n%llguidance {"allow_invalid_utf8": true}', "%llguidance"),
    "another kind": ('start: %lark { start: "a" }', "%lark"),
    "another grammar": ('start: "a" | @answer', "@answer"),
    "temperature": ('start: a\na[temperature=2.0]: "x"', "temperature"),
    "capture": ('start: a\na[lazy, capture = "x"]: "x"', "capture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_description_of_a_text_is_refused_by_name(name):
    grammar, what = REFUSED[name]
    with pytest.raises(InvalidRequest) as error:
        checked_lark(grammar, PARAM)
    assert what in str(error.value)
    assert (error.value.param, error.value.code) == (PARAM, "invalid_grammar")


@pytest.mark.parametrize(
    "grammar",
    [
        r'start: "<[*]>" /<\[1]>@x/ "%llguidance" "temperature=" // <[1]> @a %json',
        'start: a "\\"<x>\\""  # it\'s "\na: /\\/<a>/ | "b"{2,3}',
        "start: /a\n<[1]>/",
        "%import common.INT\n%ignore / /\nstart: INT",
        'start: A\nA: %regex {"substring_words": "a b c"}',
        'start: a["x"]',
        "start: a\na[max_tokens=3, lazy]: /x+/",
    ],
)
def test_a_description_of_a_text_stays_as_it_is(grammar):
    assert checked_lark(grammar, PARAM) == grammar


def test_schemas_within_are_kept_as_any_schema_is():
    kept = checked_lark('start: "x" %json\n {"type": "string", "title": "}"} "y"', PARAM)
    assert '"title"' not in kept
    assert "x-guidance" in kept
    assert kept.endswith(' "y"')
    assert verdict_of(kept) == ""


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ('{"type": "string", "minlength": 5}', f"{PARAM}.%json.minlength"),
        ('{"x-guidance": {"lenient": true}, "not": {}}', f"{PARAM}.%json.x-guidance"),
        ('{"properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}', f"{PARAM}.%json.properties.a.$ref"),
        ('{"$ref": "file:///etc/passwd"}', f"{PARAM}.%json.$ref"),
        ('{"a": ', PARAM),
        ('{"maximum": 1e999}', PARAM),
        ('{"type": "string", "type": "string"}', PARAM),
        ('{"items": ' * 100 + "1" + "}" * 100, PARAM),
        ("[" * 100_000, PARAM),
    ],
)
def test_schemas_within_are_refused_as_any_schema_is(schema, param):
    with pytest.raises(InvalidRequest) as error:
        checked_lark(f"start: %json {schema}", PARAM)
    assert error.value.param == param


SAFE = (
    '"a"',
    r'"\""',
    "/a/",
    r"/\//",
    "/[<]/",
    "// <\n",
    "# @\n",
    '"<[1]>"',
    "(",
    ")",
    "|",
    "x",
    " ",
    "\n",
    "%ignore ",
)
UNSAFE = ("<[1]>", "<|x|>", '%llguidance {"no_forcing": false}', "@other", '%json {"not": {}}')


@given(st.lists(st.sampled_from(SAFE)), st.sampled_from(UNSAFE), st.lists(st.sampled_from(SAFE)))
def test_nothing_hides_in_company(before, what, after):
    grammar = "".join(before) + what
    with pytest.raises(InvalidRequest):
        checked_lark(f"{grammar} {''.join(after)}", PARAM)


@given(st.lists(st.sampled_from([*SAFE, *UNSAFE, '"', "/", "\\", "#", "[", "]"]), max_size=8))
def test_what_passes_uses_no_token_and_no_option(pieces):
    """The library reads it as it was read here: what passes for a text is no token to it."""
    grammar = "start: " + "".join(pieces)
    try:
        kept = checked_lark(grammar, PARAM)
    except InvalidRequest:
        return
    if verdict_of(kept) == "":
        hidden = kept.replace("<[1]>", "<[999999]>").replace("<|x|>", "<|none|>")
        assert verdict_of(hidden) == "", "a token that there is not"


def verdict_of(grammar):
    from llguidance import LLTokenizer

    return verdict(LLTokenizer(Bytes()), of_lark(grammar))


def test_the_forms_of_the_library_are_not_clients_to_use():
    inner = json.dumps({"grammars": [{"lark_grammar": "start: <[*]>"}]})
    assert verdict_of(inner) != ""
