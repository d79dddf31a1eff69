"""Tools, and the choice among them: what the engine is asked to hold an answer to, and what clients get to see."""

from __future__ import annotations

import json

import pytest

from engine.types import FinishReason
from server.chat_profile import profile_of
from server.chat_template import ChatTemplate
from server.chosen_tools import calls_are_marked
from server.context import ModelPrompts
from server.thoughts import MarkerTokens
from server.validation import parse_chat
from tests.server.rig import CHAT, Rig, chat, error_of, events_of
from tests.support.fake_engine import BytePrompts, deltas_for
from tests.support.tiny_bpe import with_control_tokens

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
STRICT = {**CITY, "additionalProperties": False}
HERMES = "{{ tools }}<tool_call>arguments</tool_call>"
LLAMA = '{{ tools }}<|start_header_id|>"parameters"'
UNKNOWN = "{{ tools }}"
NAMED = {"type": "function", "function": {"name": "f"}}
CALL = '<tool_call>{"name": "f", "arguments": {"city": "Rome"}}</tool_call>'


def tool(name="f", parameters=CITY, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def format_of(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


class Prompts(BytePrompts):
    def __init__(self, template=HERMES, marker_ids=None, **how):
        super().__init__(profile_of(template, **how))
        self.markers = MarkerTokens(ids=marker_ids or {})


def rig(template=HERMES, said="Hello", marker_ids=None):
    prompts = Prompts(template, marker_ids)
    return Rig(lambda request: deltas_for(request, said, range(len(said))), prompts=prompts)


async def grammar_of(template=HERMES, marker_ids=None, **fields):
    """The grammar that reaches the engine, in lark; and that of an answer beside calls."""
    made = rig(template, marker_ids=marker_ids)
    response = await made.post(CHAT, chat(**fields))
    await made.context.grammars.close()
    assert response.status_code == 200, response.text
    (request,) = made.engine.submitted
    return [each["lark_grammar"] for each in json.loads(request.grammar)["grammars"]] if request.grammar else []


async def refusal(template=HERMES, **fields):
    made = rig(template)
    error = error_of(await made.post(CHAT, chat(**fields)), 400)
    await made.context.grammars.close()
    assert made.engine.submitted == []
    return error


TWO = [tool(), tool("g", {"type": "object", "properties": {"n": {"type": "integer"}}})]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": True},
        {"tool_choice": "none"},
        {"tool_choice": "none", "parallel_tool_calls": False},
    ],
)
async def test_what_is_left_to_the_model_has_no_grammar(fields):
    assert await grammar_of(tools=TWO, **fields) == []


async def test_a_schema_that_no_grammar_keeps_is_fine_where_none_is_needed():
    assert await grammar_of(tools=[tool(parameters={"type": "object", "not": {}})]) == []


async def test_allowed_tools_need_tools():
    assert (await refusal(tool_choice=allowed("auto", "f")))["param"] == "tool_choice"


async def test_required_and_named():
    (grammar,) = await grammar_of(tools=TWO, tool_choice="required")
    assert '"f' not in grammar.splitlines()[1]
    assert r"\"f\"" in grammar
    assert r"\"g\"" in grammar
    assert '"integer"' in grammar
    (named,) = await grammar_of(tools=TWO, tool_choice=NAMED)
    assert r"\"f\"" in named
    assert r"\"g\"" not in named
    assert "{0," in grammar
    assert "{0,127}" not in named, "OpenAI's models make one call of a named function"


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_allowed_tools(mode):
    (grammar,) = await grammar_of(tools=TWO, tool_choice=allowed(mode, "g"))
    assert r"\"g\"" in grammar
    assert r"\"f\"" not in grammar
    assert ("~(" in grammar) == (mode == "auto"), "text may come first"


async def test_the_model_is_told_of_all_tools_whichever_are_allowed():
    told = []
    for choice in ("auto", allowed("auto", "g"), NAMED):
        made = rig()
        made.context.prompts.chat = lambda conversation: told.append(conversation.variables) or BytePrompts().chat(
            conversation
        )
        assert (await made.post(CHAT, chat(tools=TWO, tool_choice=choice))).status_code == 200
        await made.context.grammars.close()
    assert told[0] == told[1] == told[2]
    assert len(told[0]["tools"]) == 2


async def test_strict_holds_the_arguments_of_its_tool_alone():
    (grammar,) = await grammar_of(tools=[tool(parameters=STRICT, strict=True), TWO[1]])
    assert '"city"' in grammar
    assert '"integer"' not in grammar
    assert await grammar_of(tools=[tool(strict=False)]) == []


async def test_one_call_at_most():
    (grammar,) = await grammar_of(tools=TWO, parallel_tool_calls=False)
    assert "{0,127}" not in grammar
    assert '"integer"' not in grammar, "arguments are the model's"


async def test_an_answer_may_be_a_call_or_of_its_form():
    calls, answer = await grammar_of(tools=TWO, response_format=format_of(STRICT))
    assert "| @answer" in calls
    assert '"city"' in answer
    assert (
        "| @answer" not in (await grammar_of(tools=TWO, tool_choice="required", response_format=format_of(STRICT)))[0]
    )
    (only,) = await grammar_of(tools=TWO, tool_choice="none", response_format=format_of(STRICT))
    assert only == answer


async def test_a_tool_without_parameters_takes_none():
    (grammar,) = await grammar_of(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required")
    assert '"properties": {}' in grammar
    assert '"additionalProperties": false' in grammar


async def test_markers_that_are_tokens_are_told_by_their_ids():
    (grammar,) = await grammar_of(tools=TWO, tool_choice="required", marker_ids={"<tool_call>": 300})
    assert "<[300]>" in grammar
    assert '"<tool_call>"' not in grammar


def test_markers_are_looked_up_among_the_control_tokens():
    tokenizer = with_control_tokens(["<tool_call>", "<other>"])
    prompts = ModelPrompts(tokenizer, ChatTemplate(HERMES, tokenizer.special_tokens), profile_of(HERMES))
    assert prompts.markers.ids == {"<tool_call>": tokenizer.encode("<tool_call>", add_special=False)[0]}


@pytest.mark.parametrize(
    ("form", "is_marked"),
    [
        (None, False),
        ({"type": "text"}, False),
        ({"type": "json_object"}, True),
        ({"type": "regex", "regex": "[a-z]+"}, True),
        ({"type": "choice", "choice": ["a", "b"]}, False),
        ({"type": "choice", "choice": ["a", ' {"b']}, True),
        (format_of(STRICT), False),
        (format_of({**STRICT, "description": "x"}), False),
        (format_of(CITY), True),
        (format_of({**STRICT, "properties": {"name": {}}}), True),
        (format_of({**STRICT, "patternProperties": {"^n": {}}}), True),
        (format_of({**STRICT, "anyOf": [{}]}), True),
        (format_of({"$ref": "#/$defs/x", "additionalProperties": False, "$defs": {"x": {}}}), True),
        (format_of({"type": ["object", "null"], "additionalProperties": False}), True),
    ],
)
def test_which_answers_may_look_like_a_call_that_has_no_marker(form, is_marked):
    body = chat(tools=TWO, response_format=form)
    assert calls_are_marked(parse_chat(json.dumps(body).encode())) == is_marked
    required = {**body, "tool_choice": "required"}
    assert not calls_are_marked(parse_chat(json.dumps(required).encode()))


PATH = "tools[1].function.parameters"


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"type": "object", "not": {}}, f"{PATH}.not"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, f"{PATH}.properties.a.type"),
        ({"type": "string"}, f"{PATH}.type"),
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "a(?=b)"}}},
            f"{PATH}.properties.a.pattern",
        ),
        (
            {"properties": {"a": {"minLength": 3, "pattern": "^a$", "type": "string"}}, "required": ["a"]},
            f"{PATH}.required",
        ),
    ],
)
@pytest.mark.parametrize("how", [{"tool_choice": "required"}, {"strict": True}])
async def test_what_cannot_be_kept_is_refused_by_its_keyword(parameters, param, how):
    strict = {"strict": how["strict"]} if "strict" in how else {}
    choice = {"tool_choice": how["tool_choice"]} if "tool_choice" in how else {}
    error = await refusal(tools=[tool("g"), tool(parameters=parameters, **strict)], **choice)
    assert error["param"] == param
    assert await grammar_of(tools=[tool("g"), tool(parameters=parameters)]) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": allowed("auto", "f")}, "tool_choice"),
        ({"tools": [tool(), tool("g", strict=True)]}, "tools[1].function.strict"),
    ],
)
async def test_a_model_whose_calls_are_not_known_cannot_be_held_to_any(fields, param):
    error = await refusal(UNKNOWN, **{"tools": TWO, **fields})
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert "--tool-call-parser" in error["message"]
    assert await grammar_of(UNKNOWN, tools=TWO, parallel_tool_calls=False) == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "finish"), [("required", "tool_calls"), ("auto", "tool_calls"), (NAMED, "stop"), (None, "tool_calls")]
)
async def test_why_an_answer_with_calls_ended(stream, choice, finish):
    made = rig(said=CALL)
    fields = {"tools": TWO, "tool_choice": choice, "stream": stream}
    response = await made.post(CHAT, chat(**fields))
    await made.context.grammars.close()
    body = events_of(response.text)[-2] if stream else response.json()
    assert body["choices"][0]["finish_reason"] == finish
    cut = Rig(lambda request: deltas_for(request, CALL, ()), prompts=Prompts())
    response = await cut.post(CHAT, chat(tools=TWO, max_tokens=len(CALL) - 3))
    assert response.json()["choices"][0]["finish_reason"] == FinishReason.LENGTH.value


async def test_what_looks_like_a_call_in_an_answer_of_a_form_is_content():
    said = '{"name": "f", "parameters": {"city": "Rome"}}'
    fields = {"tools": TWO, "response_format": {"type": "json_object"}}
    for stream in (False, True):
        made = rig(LLAMA, said=said)
        response = await made.post(CHAT, chat(stream=stream, **fields))
        await made.context.grammars.close()
        if stream:
            pieces = [event["choices"][0]["delta"] for event in events_of(response.text)[:-1]]
            assert "".join(piece.get("content") or "" for piece in pieces) == said
            assert not any("tool_calls" in piece for piece in pieces)
        else:
            assert response.json()["choices"][0]["message"]["content"] == said
    closed = {"type": "object", "properties": {"x": {}}, "additionalProperties": False}
    made = rig(LLAMA, said=said)
    response = await made.post(CHAT, chat(tools=TWO, response_format=format_of(closed)))
    await made.context.grammars.close()
    assert response.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"


async def test_too_much_to_compile_is_refused():
    big = {"type": "object", "properties": {"a": {"allOf": [{"pattern": f"a{{{i}}}.*b.{{{i}}}"} for i in range(29)]}}}
    made = rig()
    made.context.grammars._seconds = 0.5
    error = error_of(await made.post(CHAT, chat(tools=[tool(parameters=big)], tool_choice="required")), 400)
    assert error["param"].startswith("tools")
    await made.context.grammars.close()
