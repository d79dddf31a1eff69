"""Calls held to a grammar: whatever a model writes that a grammar allows, the family's parser reads as calls that are.

The answers are random walks through the masks of a vocabulary of bytes, with and without the families' markers as
control tokens; what is read from them is held against the tools and judged by the ``jsonschema`` package.
"""

from __future__ import annotations

import json
import random

import pytest
from llguidance import LLTokenizer

from engine.errors import InvalidRequest
from server.grammar.child import Bytes, verdict
from server.grammar.forms import of_choice, of_schema
from server.grammar.schema import checked_schema
from server.tools.families import FAMILIES
from server.tools.grammar import MAX_CALLS, SHAPES, CallRules, grammar_of_calls
from tests.support.call_walks import (
    FILLERS,
    FORMS,
    IN_JSON,
    IN_TAGS,
    MARKERS,
    TOKEN_IDS,
    ids_of,
    new_grammars,
    problem,
    read,
    tool,
    walked,
)
from tests.support.json_schemas import kept

WEATHER = {
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1},
        "unit": {"enum": ["c", "f"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "any": {},
        "mixed": {"type": ["string", "integer", "boolean"]},
        "short": {"type": "string", "minLength": 2, "maxLength": 9},
        "date": {"type": "string", "format": "date"},
    },
    "required": ["city", "days"],
}
NONE = {"properties": {}, "additionalProperties": False}
TREE = {
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
    "required": ["value"],
    "additionalProperties": False,
}
TOOLS = [
    tool("get_weather", WEATHER),
    tool("f", NONE, place=1),
    tool("f_2", {"properties": {"x": {"type": "string"}}}, is_held=False, place=2),
    tool("tree", TREE, place=3),
]
NAMES = [each.name for each in TOOLS]
HINTS = (
    *FILLERS, *IN_JSON, *MARKERS, "<", "</", "\n<parameter=", '{"name": "f"', '{"name": "get_weather"', "\n", " ", ";",
    "x", "<function=f>", "</tool_call>", "</parameter>", "\n</parameter>", "</arg_value>", "12", "None", "2024-01-31",
)  # fmt: skip
VOCABULARIES = pytest.mark.parametrize("token_ids", [{}, TOKEN_IDS], ids=["text", "tokens"])
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
NUM_WALKS = 5


@pytest.fixture(scope="module")
def grammars():
    made = new_grammars()
    yield made
    made.close()


def opening(form):
    """What calls begin with, in the form."""
    return '{"name": "get_weather"' if form == "llama3_json" else SHAPES[form].opener


def answers(grammars, form, rules, token_ids, num=NUM_WALKS, **how):
    text = grammar_of_calls(form, rules, token_ids)
    hints = (*HINTS, *IN_TAGS.get(form, ()))
    walks = [walked(grammars, form, text, random.Random(seed), token_ids, hints, **how) for seed in range(num)]
    ended = [walk for walk in walks if walk is not None]
    assert len(ended) > num // 2
    return ended


def test_every_family_has_a_form():
    assert {form.partition(":")[0] for form in FORMS} == set(FAMILIES)
    assert {*SHAPES, "llama3_json"} == set(FORMS)


@EVERY_FORM
@VOCABULARIES
@pytest.mark.parametrize("is_single", [False, True])
def test_a_call_is_required(grammars, form, token_ids, is_single):
    rules = CallRules(TOOLS, NAMES, is_required=True, is_single=is_single)
    for text in answers(grammars, form, rules, token_ids):
        assert problem(form, text, TOOLS, rules) == "", text


@EVERY_FORM
@VOCABULARIES
@pytest.mark.parametrize("only", TOOLS, ids=NAMES)
def test_one_function_is_named(grammars, form, token_ids, only):
    rules = CallRules([only], NAMES, is_required=True, is_single=True)
    for text in answers(grammars, form, rules, token_ids, num=3):
        assert problem(form, text, TOOLS, rules) == "", text


@EVERY_FORM
@VOCABULARIES
@pytest.mark.parametrize("is_single", [False, True])
def test_a_call_that_is_begun_amid_text_is_held_to(grammars, form, token_ids, is_single):
    rules = CallRules(TOOLS[:2], NAMES, is_required=False, is_single=is_single)
    ended = answers(grammars, form, rules, token_ids, begin=opening(form))
    for text in ended:
        assert problem(form, text, TOOLS, rules) == "", text
    assert any(read(form, text, TOOLS)[1] for text in ended)


@EVERY_FORM
@VOCABULARIES
def test_any_text_without_a_call_may_be_said(grammars, form, token_ids):
    rules = CallRules(TOOLS, NAMES, is_required=False, is_single=False)
    matcher = grammars.open(grammar_of_calls(form, rules, token_ids)).result()._matcher
    for text in (
        "",
        "\n",
        "Hello {name}, <b>[1]</b> é日本",
        '{"name": "other", "x": 1}',
        '{"name": "',
        "<",
        "[TOOL",
        "<｜",
    ):
        ids = ids_of(text, {})
        assert matcher.validate_tokens(ids) == len(ids), text
        ended = matcher.deep_copy()
        assert ended.try_consume_tokens(ids) == len(ids)
        assert ended.is_accepting(), text


def test_nothing_but_the_family_s_own_way_begins_a_call(grammars):
    rules = CallRules(TOOLS, NAMES, is_required=False, is_single=False)
    call = "<tool_call>\n<function=f>\n</function>\n</tool_call>"
    takes = {"Well. " + call: True, call: True, f"<function=f>{call}": False, f"a <function=x> {call}": False}
    for text, is_taken in takes.items():
        matcher = grammars.open(grammar_of_calls("qwen3_coder", rules, {})).result()._matcher
        assert (matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()) == is_taken


@EVERY_FORM
@VOCABULARIES
def test_an_answer_is_a_call_or_of_the_form_that_is_asked_for(grammars, form, token_ids):
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "city": {"type": "integer"}}}
    answer = {**schema, "required": ["name"], "additionalProperties": False}
    rules = CallRules(TOOLS[:3], NAMES, False, False, of_schema(checked_schema(answer, "schema")), is_marked=True)
    grammar = grammar_of_calls(form, rules, token_ids)
    known = [] if form == "llama3_json" else TOOLS
    begin = "<|python_tag|>" if form == "llama3_json" else opening(form)
    kinds = set()
    for seed in range(12):
        rng = random.Random(seed)
        first = ('{"name"', begin, '{"name": "get_weather"')[seed % 3]
        text = walked(grammars, form, grammar, rng, token_ids, HINTS, begin=first, at_once=True)
        if text is None:
            continue
        content, calls = read(form, text, known, only_first=True)
        kinds.add(bool(calls))
        assert problem(form, text, known, rules, only_first=True) == "", text
        assert calls or set(json.loads(content)) <= {"name", "city"}
    assert kinds == {False, True}


def test_what_looks_like_a_call_within_an_answer_of_a_form_is_no_call():
    inner = '{"name": "f", "parameters": {"x": 1}}'
    for form, text in {
        "llama3_json": f'{{"a": {inner}}}',
        "qwen3_coder": '{"a": "<tool_call> <function=f></function></tool_call>"}',
        "mistral:args": 'x [TOOL_CALLS]f[ARGS]{"a": 1}',
    }.items():
        assert read(form, text, TOOLS, only_first=True) == (text, [])
        assert read(form, text, TOOLS)[1], "or there is nothing to tell apart"


@EVERY_FORM
def test_an_answer_has_no_more_calls_than_a_message_may_have(grammars, form):
    one = {
        "hermes": '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        "qwen3_coder": "<tool_call>\n<function=f>\n</function>\n</tool_call>",
        "llama3_json": '{"name": "f", "parameters": {}}',
        "mistral": '{"name": "f", "arguments": {}}',
        "mistral:id": "[TOOL_CALLS]f[CALL_ID]a1B2c3D4e[ARGS]{}",
        "mistral:args": "[TOOL_CALLS]f[ARGS]{}",
        "deepseek_v3": "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>",
        "deepseek_v3_1": "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        "glm_4_5": "<tool_call>f</tool_call>",
        "seed_oss": "<seed:tool_call>\n<function=f>\n</function>\n</seed:tool_call>",
    }[form]
    begin = {
        "mistral": "[TOOL_CALLS][",
        "deepseek_v3": "<｜tool▁calls▁begin｜>",
        "deepseek_v3_1": "<｜tool▁calls▁begin｜>",
    }
    between = {"llama3_json": "; ", "mistral": ", "}.get(form, "")
    rules = CallRules([TOOLS[1]], NAMES, True, False)
    matcher = grammars.open(grammar_of_calls(form, rules, {})).result()._matcher
    text = begin.get(form, "") + between.join([one] * MAX_CALLS)
    ids = list(text.encode())
    assert matcher.validate_tokens(ids) == len(ids)
    further = list((text + between + one).encode())
    assert matcher.validate_tokens(further) < len(further)


NOT_IN_TAGS = {
    "word: one of its own", "word: one at most", "word: patternProperties", "word: patternProperties two",
    "word: propertyNames pattern", "word: propertyNames length", "shape: translations", "pattern: ignore case",
    "pattern: one of, anchors in each",
}  # fmt: skip
"""What values between tags cannot be held to, of what JSON can."""
CASES = [case for case in kept() if not any(word in json.dumps(case.schema) for word in ('"$ref"', 'id"', '"$schema"'))]
BEGIN = {
    "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=p>\n",
    "seed_oss": "<seed:tool_call>\n<function=f>\n<parameter=p>",
    "glm_4_5": "<tool_call>f\n<arg_key>p</arg_key>\n<arg_value>",
}


def not_kept(form, rules):
    """Whether rules are refused, at once or by the library."""
    try:
        return verdict(LLTokenizer(Bytes()), grammar_of_calls(form, rules, {}))
    except InvalidRequest as error:
        return error.param.startswith("tools[0].function.parameters.properties.p")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("form", "token_ids"), [("qwen3_coder", {}), ("glm_4_5", TOKEN_IDS)])
def test_values_between_tags_are_valid_by_their_schemas(grammars, form, token_ids, case):
    only = tool("f", {"properties": {"p": case.schema}, "required": ["p"]})
    rules = CallRules([only], ["f"], True, True)
    if case.name in NOT_IN_TAGS:
        assert not_kept(form, rules)
        return
    grammar = grammar_of_calls(form, rules, token_ids)
    for seed in range(2):
        hints = (*HINTS, *IN_TAGS[form])
        text = walked(grammars, form, grammar, random.Random(seed), token_ids, hints, begin=BEGIN[form], at_once=True)
        assert text is None or problem(form, text, [only], rules) == "", text


WHOLE = [case for case in kept() if isinstance(case.schema, dict) and case.schema.get("type") == "object"]


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_arguments_that_are_json_are_valid_by_their_schemas(grammars, case):
    only = tool("f", case.schema)
    rules = CallRules([only], ["f"], True, True)
    for form in ("llama3_json", "deepseek_v3_1"):
        for seed in range(2):
            text = walked(grammars, form, grammar_of_calls(form, rules, {}), random.Random(seed), {}, HINTS)
            assert text is None or problem(form, text, [only], rules) == "", text


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "anyOf"),
        ({"properties": {"a": {}}, "patternProperties": {"^x": {}}}, "patternProperties"),
        ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, "minProperties"),
        ({"properties": {"a b<c": {}}}, 'properties["a b<c"]'),
        ({"properties": {"a": {"type": "string", "pattern": "(^a|b$)"}}}, "properties.a.pattern"),
        ({"properties": {"a": {"type": ["string", "integer"], "minimum": 3}}}, "properties.a.minimum"),
        ({"properties": {"a": False}, "required": ["a"]}, "properties.a"),
    ],
)
@pytest.mark.parametrize("form", IN_TAGS)
def test_what_calls_in_tags_cannot_hold_is_refused_by_name(form, parameters, param):
    with pytest.raises(InvalidRequest) as error:
        grammar_of_calls(form, CallRules([tool("f", parameters)], ["f"], True, True), {})
    assert error.value.param == f"tools[0].function.parameters.{param}"


def test_a_marker_is_a_token_where_the_vocabulary_has_it(grammars):
    rules = CallRules([TOOLS[1]], NAMES, True, True)
    grammar = grammar_of_calls("hermes", rules, {"<tool_call>": TOKEN_IDS["<tool_call>"]})
    matcher = grammars.open(grammar).result()._matcher
    spelled = list(b'<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    assert matcher.validate_tokens(spelled) == 0
    marked = [TOKEN_IDS["<tool_call>"], *spelled[len("<tool_call>") :]]
    assert matcher.validate_tokens(marked) == len(marked)


def test_a_choice_may_stand_beside_calls(grammars):
    rules = CallRules(TOOLS[1:2], NAMES, False, False, of_choice(["yes", "no"]))
    matcher = grammars.open(grammar_of_calls("hermes", rules, {})).result()._matcher
    for text in ("yes", "no", '\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'):
        assert matcher.validate_tokens(list(text.encode())) == len(text)
    assert matcher.validate_tokens(list(b"may")) == 0
