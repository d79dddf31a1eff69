"""Values between tags: what the grammar takes the reader makes a valid value of, and what people mean is taken."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from server.grammar.child import Bytes
from server.grammar.forms import of_lark
from server.tools.families import parser
from server.tools.grammar import CallRules, grammar_of_calls
from server.tools.lark import ANYTHING
from server.tools.parts import Tool
from server.tools.raw_texts import pattern
from tests.support.call_walks import tool
from tests.support.pattern_texts import PATTERN

LIBRARY = LLTokenizer(Bytes())
AROUND = {
    "qwen3_coder": ("<tool_call>\n<function=f>\n<parameter=p>\n", "\n</parameter>\n</function>\n</tool_call>"),
    "seed_oss": ("<seed:tool_call>\n<function=f>\n<parameter=p>", "</parameter>\n</function>\n</seed:tool_call>"),
    "glm_4_5": ("<tool_call>f\n<arg_key>p</arg_key>\n<arg_value>", "</arg_value>\n</tool_call>"),
}
FORMS = pytest.mark.parametrize("form", AROUND)


def takes(grammar, text):
    """Whether a text is one of a grammar's."""
    matcher = LLMatcher(LIBRARY, grammar)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def answer(form, value):
    begin, end = AROUND[form]
    return begin + value + end


def held(form, schema):
    """The grammar of one call with one parameter."""
    only = tool("f", {"properties": {"p": schema}, "required": ["p"]})
    return grammar_of_calls(form, CallRules([only], ["f"], True, True), {})


def read(form, schema, value):
    """What the reader makes of a value."""
    reader = parser(form, [Tool("f", {"properties": {"p": schema}})])
    parts = reader.feed(answer(form, value))
    assert (parts.content, reader.finish().content) == ("", "")
    return json.loads(parts.calls[0].arguments)["p"]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(PATTERN, st.booleans(), st.booleans(), st.lists(st.text("ab1_.-][ \n", max_size=5), min_size=8, max_size=8))
def test_a_pattern_matches_what_it_matches_elsewhere(both, begins, ends, texts):
    from server.grammar.patterns import kept_patterns

    (ours,) = kept_patterns(f"{'^' * begins}(?:{both[0]}){'$' * ends}")
    theirs = re.compile(f"{'^' * begins}(?:{both[1]})" + r"\Z" * ends)
    grammar = of_lark(f"start: T\nT: {ANYTHING} & {pattern(ours)}\n")
    for text in texts:
        assert takes(grammar, text) == bool(theirs.search(text)), (ours, text)


@pytest.mark.parametrize(
    ("regex", "matched", "others"),
    [
        ("^a|b$", ["a", "ax", "b", "xb"], ["xa", "bx", ""]),
        ("^a$|^b$", ["a", "b"], ["ab", "xa"]),
        (r"^\d+$", ["12"], ["٣", ""]),
        (r"^[\w]+$", ["a_1"], ["é"]),
        (r"^[^\d]$", ["a", "٣"], ["1"]),
        (r"\W", ["é", "a b"], ["ab"]),
        (r"^a/\/b$", ["a//b"], ["ab"]),
        (r"\$", ["1$"], ["1"]),
        ("[$^]x", ["^x", "a$xb"], ["x"]),
    ],
)
def test_patterns_with_anchors_and_classes(regex, matched, others):
    grammar = of_lark(f"start: T\nT: {ANYTHING} & {pattern(regex)}\n")
    assert all(takes(grammar, text) for text in matched)
    assert not any(takes(grammar, text) for text in others)


TEXTS = [
    {"type": "string"},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "maxLength": 2000},
    {"type": "string", "pattern": "^[a-c]+"},
    {"type": "string", "pattern": "b", "maxLength": 5},
    {"enum": ["a", "ab", " b\n", ""]},
    {"anyOf": [{"type": "string", "pattern": "^a"}, {"const": "c"}]},
    {"allOf": [{"minLength": 1}, {"pattern": "c$"}], "type": "string"},
]


@FORMS
@pytest.mark.parametrize("schema", TEXTS)
@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.text("abc \n/=>-", max_size=6))
def test_a_text_that_is_valid_is_taken_and_no_other(form, schema, text):
    if form == "seed_oss" and text.startswith("\n"):
        return  # which would be markup
    assert takes(held(form, schema), answer(form, text)) == Draft202012Validator(schema).is_valid(text)


@FORMS
@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "\n", "<", "</", ">", "<b>", "</b>", "</param", "<parameter", "=", "</function>"]))
)
def test_any_text_is_taken_that_reads_as_itself(form, pieces):
    text = "".join(pieces)
    schema = {"type": "string"}
    if takes(held(form, schema), answer(form, text)):
        assert read(form, schema, text) == text
    elif not (form == "seed_oss" and text.startswith("\n")):
        assert any(end in text for end in ("</parameter>", "\n<parameter=", "\n</function>\n<"))


@FORMS
def test_what_ends_a_value_is_no_part_of_a_text(form):
    ends = ["a</parameter>b", "a\n<parameter=b>c", f"a\n</function>{AROUND[form][1].rpartition('</function>')[2]}"]
    for text in ["a</arg_value>b"] if form == "glm_4_5" else ends:
        assert not takes(held(form, {"type": "string"}), answer(form, text)), text
        assert not takes(held(form, {"type": "string", "minLength": 1}), answer(form, text)), text


MIXED = [
    {"type": ["string", "integer", "boolean", "null"]},
    {"type": ["string", "number"]},
    {"type": ["string", "array"], "items": {"type": "integer"}},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "object", "required": ["a"]}, {"type": "null"}]},
    {"enum": ["a", "1", 1, 2.5, True, None]},
    {},
    {"enum": ["a", 1]},
    {"enum": ["a", True]},
]
LITERALS = st.sampled_from(
    ["1", "-1", "01", "1.5", "1e3", "1 ", " 1", "true", "True", "false", "null", "None", "a", "abcd", "[1]", '["a"]',
     "[", '{"a": 1}', '{"b": 1}', "{", '"a"', "", " ", "1 a", "trueish", "2.5", "\n1", "-", "NaN", "Infinity"]
)  # fmt: skip


@FORMS
@pytest.mark.parametrize("schema", MIXED)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(LITERALS)
def test_what_is_taken_beside_texts_reads_as_a_valid_value(form, schema, text):
    if takes(held(form, schema), answer(form, text)):
        value = read(form, schema, text)
        assert Draft202012Validator(schema).is_valid(value), value


@FORMS
@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        (MIXED[0], ["1", "-20", "true", "null", "a", "12 Main Street", "trueish", ""]),
        (MIXED[1], ["1", "1.5", "-1e3", "2024-01-31", "1.2.3"]),
        (MIXED[2], ["[1, 2]", "a", "(x)"]),
        (MIXED[3], ["abc", '{"a": [1]}', "null"]),
        (MIXED[4], ["a", "1", "2.5", "true", "null"]),
        (MIXED[5], ["a", "1", "1.5", "true", "null", '{"x": ["<b>"]}', "[]"]),
        ({"type": "object", "properties": {"x": {"type": "string"}}}, ['{"x": "a<b>", "y": [1, {"z": null}]}']),
    ],
)
def test_what_people_mean_is_taken(form, schema, texts):
    grammar = held(form, schema)
    for text in texts:
        assert takes(grammar, answer(form, text)), text


@FORMS
def test_json_between_tags_holds_no_closing_tag(form):
    for schema in ({"type": "object"}, {"type": "array"}, {"type": "object", "properties": {"x": {"type": "string"}}}):
        grammar = held(form, schema)
        for text in ('{"x": "</parameter>"}', '{"</arg_value>": 1}', '[["</"]]'):
            assert not takes(grammar, answer(form, text))
