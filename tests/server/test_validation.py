"""Every field of a request is honoured, or refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import chat as types
from openai.types import completion_create_params, shared_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.shared_params import response_format_json_schema

from server.chat_schemas import AllowedTools, ChatRequest, Function, Message, MessageToolCall, Tool, ToolChoice
from server.schemas import (
    CompletionRequest,
    ContentPart,
    JsonSchemaFormat,
    Prediction,
    RequestStruct,
    ResponseFormat,
    StreamOptions,
)
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, text
from tests.support.fake_engine import VOCAB_SIZE

INVALID, UNKNOWN, UNSUPPORTED = "invalid_value", "unknown_parameter", "unsupported_parameter"
MISSING = "missing_required_parameter"


def _calls(**fields: Any) -> dict[str, Any]:
    """The assistant's message with one tool call, by other fields than it needs."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {"role": "assistant", "tool_calls": [call | fields]}


def _called(arguments: str) -> dict[str, Any]:
    return _calls(function={"name": "f", "arguments": arguments})


def _tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def _allowed(*tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": list(tools)}}


def _schema_format(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "ages", "schema": {"type": "array"}, **fields}}


def _continued(content: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": content}], "continue_final_message": True, **fields}


CALLS = _calls()


async def refused(path: str, body: Any) -> dict[str, Any]:
    """The error object of a request that must be refused and must not reach the engine."""
    rig = Rig()
    response = await rig.post_raw(path, json.dumps(body).encode())
    error = error_of(response, 400)
    assert error["type"] == "invalid_request_error"
    assert rig.engine.submitted == []
    return error


NOT_A_COUNT = [True, "3", 1.5, 1.0, -1, 0, [], {}, 2**63, 2**100]

BOTH_REFUSE = [
    *[("n", value, "n") for value in [*NOT_A_COUNT, 17, 10**9]],
    *[("max_tokens", value, "max_tokens") for value in NOT_A_COUNT],
    *[("temperature", value, "temperature") for value in (-0.1, 2.1, 1e38, True, "1", [])],
    *[("top_p", value, "top_p") for value in (0, -1, 1.1, False)],
    *[("top_k", value, "top_k") for value in (-2, 1.5, True, 2**40)],
    *[("min_p", value, "min_p") for value in (-0.1, 2)],
    *[("repetition_penalty", value, "repetition_penalty") for value in (0, 1e-300, -1, 101)],
    *[("frequency_penalty", value, "frequency_penalty") for value in (1e9, -2.1, "0")],
    *[("presence_penalty", value, "presence_penalty") for value in (2.1, -3)],
    *[("seed", value, "seed") for value in (2**64, -(2**63) - 1, "a", 1.0, True, 10**400)],
    *[("stop", value, "stop") for value in ("", 5, ["a"] * 5, ["a"] * 500_000, {}, "x" * 1001)],
    *[("stop", [value], "stop[0]") for value in ("", 1, None, "x" * 1_000_000)],
    *[("stop_token_ids", value, "stop_token_ids") for value in ([], [VOCAB_SIZE], [1] * 129, "1", [1] * 100_000)],
    *[("stop_token_ids", [value], "stop_token_ids[0]") for value in (-1, 1.5, True, 2**40, "1")],
    *[("min_tokens", value, "min_tokens") for value in (-1, True, 2000)],
    *[("ignore_eos", value, "ignore_eos") for value in (1, "true", [])],
    *[("stream", value, "stream") for value in (1, "true", {})],
    *[
        ("logit_bias", value, "logit_bias")
        for value in (
            {"-1": 1},
            {"foo": 1},
            {"01": 1},
            {"1.0": 1},
            {"\u0661": 1},
            {str(VOCAB_SIZE): 1},
            {"5": 1e308},
            {"5": -101},
            {"5": "1"},
            {"5": True},
            {"5": None},
            {str(i): 1 for i in range(300_000)},
            [],
        )
    ],
    ("stream_options", {"include_usage": True}, "stream_options"),
]


@pytest.mark.parametrize(("field", "value", "param"), BOTH_REFUSE, ids=lambda v: repr(v)[:40])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_out_of_bounds_or_of_the_wrong_type(path: str, field: str, value: Any, param: str) -> None:
    error = await refused(path, (chat if path == CHAT else text)(**{field: value}))
    assert (error["param"], error["code"]) == (param, INVALID)
    assert param.split("[")[0] in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", INVALID),
        ({"messages": "hi"}, "messages", INVALID),
        ({"messages": None}, "messages", MISSING),
        ({"messages": [1]}, "messages[0]", INVALID),
        ({"messages": [None]}, "messages[0]", INVALID),
        ({"messages": [{"role": "user"}]}, "messages[0].content", MISSING),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", MISSING),
        ({"messages": [{"content": "x"}]}, "messages[0].role", MISSING),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", INVALID),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role", INVALID),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role", INVALID),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", UNSUPPORTED),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", MISSING),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id", INVALID),
        ({"messages": [CALLS, {"role": "tool", "tool_call_id": "1"}]}, "messages[1].content", MISSING),
        (
            {"messages": [CALLS, {"role": "tool", "tool_call_id": "1", "content": "x", "name": "g"}]},
            "messages[1].name",
            INVALID,
        ),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id", INVALID),
        ({"messages": [{"role": "user", "content": "x", "name": ""}]}, "messages[0].name", INVALID),
        ({"messages": [{"role": "user", "content": "x", "name": "x" * 65}]}, "messages[0].name", INVALID),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", MISSING),
        ({"messages": [CALLS | {"role": "user"}]}, "messages[0].tool_calls", INVALID),
        ({"messages": [{"role": "user", "content": "x", "refusal": "x"}]}, "messages[0].refusal", INVALID),
        (
            {"messages": [{"role": "system", "content": "x", "reasoning_content": "x"}]},
            "messages[0].reasoning_content",
            INVALID,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]},
            "messages[0].content[0].type",
            INVALID,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "refusal": "x"}]}]},
            "messages[0].content[0].refusal",
            INVALID,
        ),
        ({"messages": [_calls(id="")]}, "messages[0].tool_calls[0].id", INVALID),
        ({"messages": [_calls(type="custom")]}, "messages[0].tool_calls[0].type", UNSUPPORTED),
        ({"messages": [_calls(function={"name": "f"})]}, "messages[0].tool_calls[0].function.arguments", MISSING),
        ({"messages": [_called("{")]}, "messages[0].tool_calls[0].function.arguments", INVALID),
        ({"messages": [_called("[]")]}, "messages[0].tool_calls[0].function.arguments", INVALID),
        ({"messages": [{"role": "user", "content": "x", "contnt": ""}]}, "messages[0].contnt", UNKNOWN),
        ({"messages": [{"role": "user", "content": "x", "annotations": [1]}]}, "messages[0].annotations", UNSUPPORTED),
        ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages", INVALID),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]", INVALID),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", MISSING),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", MISSING),
        (
            {"messages": [{"role": "user", "content": [{"type": "txt", "text": ""}]}]},
            "messages[0].content[0].type",
            INVALID,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]},
            "messages[0].content[0].type",
            UNSUPPORTED,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "x": 1}]}]},
            "messages[0].content[0].x",
            UNKNOWN,
        ),
        ({"model": None}, "model", MISSING),
        ({"model": ["a"]}, "model", INVALID),
        ({"model": ""}, "model", INVALID),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", INVALID),
        ({"max_completion_tokens": 0}, "max_completion_tokens", INVALID),
        ({"logprobs": 1}, "logprobs", INVALID),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", INVALID),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", INVALID),
        ({"top_logprobs": 1}, "top_logprobs", INVALID),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs", INVALID),
        ({"service_tier": "turbo"}, "service_tier", INVALID),
        ({"service_tier": "scale"}, "service_tier", UNSUPPORTED),
        ({"response_format": {"type": "yaml"}}, "response_format.type", INVALID),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", UNSUPPORTED),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", MISSING),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.name",
            MISSING,
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            MISSING,
        ),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "x"}}},
            "response_format.json_schema",
            INVALID,
        ),
        ({"response_format": {"type": "regex"}}, "response_format.regex", MISSING),
        ({"response_format": {"type": "regex", "regex": ""}}, "response_format.regex", INVALID),
        ({"response_format": {"type": "regex", "regex": "("}}, "response_format.regex", "invalid_grammar"),
        ({"response_format": {"type": "choice", "choice": []}}, "response_format.choice", INVALID),
        ({"response_format": {"type": "choice", "choice": [""]}}, "response_format.choice[0]", INVALID),
        ({"response_format": {"type": "lark", "lark": "start"}}, "response_format.lark", "invalid_grammar"),
        ({"response_format": {"type": "lark", "regex": "x"}}, "response_format.regex", INVALID),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", UNSUPPORTED),
        ({"tools": [{"type": "function"}]}, "tools[0].function", MISSING),
        ({"tools": [_tool("a b")]}, "tools[0].function.name", INVALID),
        ({"tools": [_tool("x" * 65)]}, "tools[0].function.name", INVALID),
        ({"tools": [_tool("f"), _tool("f")]}, "tools[1].function.name", INVALID),
        ({"tools": [_tool("f", parameters=[])]}, "tools[0].function.parameters", INVALID),
        ({"tools": [_tool("f", strict=1)]}, "tools[0].function.strict", INVALID),
        ({"tools": [_tool("f", defer_loading=True)]}, "tools[0].function.defer_loading", UNKNOWN),
        ({"tools": [_tool(f"f{i}") for i in range(129)]}, "tools", INVALID),
        ({"tool_choice": "required"}, "tool_choice", INVALID),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", INVALID),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", INVALID),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", INVALID),
        ({"tools": [_tool("f")], "tool_choice": "any"}, "tool_choice", INVALID),
        ({"tools": [_tool("f")], "tool_choice": {"type": "function"}}, "tool_choice.function", MISSING),
        (
            {"tools": [_tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
            INVALID,
        ),
        ({"tools": [_tool("f")], "tool_choice": {"type": "custom", "custom": {}}}, "tool_choice.type", UNSUPPORTED),
        ({"tools": [_tool("f")], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", MISSING),
        (
            {"tools": [_tool("f")], "tool_choice": _allowed({"type": "function", "function": {"name": "g"}})},
            "tool_choice.allowed_tools.tools[0].function.name",
            INVALID,
        ),
        ({"tools": [_tool("f")], "tool_choice": _allowed()}, "tool_choice.allowed_tools.tools", INVALID),
        ({"reasoning_effort": "huge"}, "reasoning_effort", INVALID),
        ({"reasoning_effort": "low"}, "reasoning_effort", UNSUPPORTED),
        ({"thinking": {"type": "enabled"}}, "thinking", UNSUPPORTED),
        ({"thinking": {"type": "maybe"}}, "thinking.type", INVALID),
        ({"thinking": {"type": "auto", "budget_tokens": 0}}, "thinking.budget_tokens", INVALID),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "low"}, "thinking", INVALID),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", UNSUPPORTED),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking", UNSUPPORTED),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs", INVALID),
        ({"continue_final_message": True}, "continue_final_message", INVALID),
        ({"messages": [CALLS], "continue_final_message": True}, "continue_final_message", INVALID),
        (_continued("", tools=[]), "continue_final_message", INVALID),
        (_continued("x", response_format={"type": "json_object"}), "response_format", INVALID),
        (_continued("x", tools=[_tool("f")], tool_choice="required"), "tool_choice", INVALID),
        (_continued("x", thinking={"type": "enabled"}), "thinking", INVALID),
        (_continued("x", reasoning_effort="low"), "reasoning_effort", INVALID),
        ({"prediction": {"type": "content"}}, "prediction.content", MISSING),
        ({"prediction": {"type": "draft", "content": ""}}, "prediction.type", INVALID),
        ({"metadata": {"x": 1}}, "metadata", INVALID),
        ({"metadata": {"x": "y" * 513}}, "metadata", INVALID),
        ({"metadata": {"x" * 65: ""}}, "metadata", INVALID),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", INVALID),
        ({"user": "x" * 513}, "user", INVALID),
        ({"safety_identifier": 1}, "safety_identifier", INVALID),
        ({"prompt_cache_key": "x" * 513}, "prompt_cache_key", INVALID),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x", UNKNOWN),
        ({"response_format": "text"}, "response_format", INVALID),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", INVALID),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", UNKNOWN),
        (
            {"stream": True, "stream_options": {"include_obfuscation": 0}},
            "stream_options.include_obfuscation",
            UNSUPPORTED,
        ),
        ({"stream": True, "stream_options": []}, "stream_options", INVALID),
        ({"echo": True}, "echo", UNKNOWN),
        ({"prompt": "x"}, "prompt", UNKNOWN),
        *[({name: {}}, name, UNSUPPORTED) for name in sorted(ChatRequest.refused_fields)],
        *[
            ({name: 1}, name, UNKNOWN)
            for name in ("n_discard", "slot_id", "priority", "kv_transfer_params", "vllm_xargs", "prompt_embeds")
        ],
    ],
    ids=lambda v: repr(v)[:60],
)
async def test_chat_refuses(fields: dict[str, Any], param: str, code: str) -> None:
    error = await refused(CHAT, chat() | fields)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", MISSING),
        ({"prompt": 1}, "prompt", INVALID),
        ({"prompt": ""}, "prompt", INVALID),
        ({"prompt": []}, "prompt", INVALID),
        ({"prompt": [[]]}, "prompt", INVALID),
        ({"prompt": ["a", ""]}, "prompt", INVALID),
        ({"prompt": ["a", 1]}, "prompt", INVALID),
        ({"prompt": [1, [2]]}, "prompt", INVALID),
        ({"prompt": ["a"] * 129}, "prompt", INVALID),
        ({"prompt": ["a"] * 1_000_000}, "prompt", INVALID),
        ({"prompt": [[1]] * 129}, "prompt", INVALID),
        ({"prompt": [VOCAB_SIZE]}, "prompt", INVALID),
        ({"prompt": [[1], [VOCAB_SIZE]]}, "prompt", INVALID),
        ({"prompt": [-1]}, "prompt[0]", INVALID),
        ({"prompt": [2**40]}, "prompt[0]", INVALID),
        ({"prompt": [1.5]}, "prompt[0]", INVALID),
        ({"prompt": [True]}, "prompt[0]", INVALID),
        ({"prompt": [[1, None]]}, "prompt[0][1]", INVALID),
        ({"prompt": {}}, "prompt", INVALID),
        ({"logprobs": True}, "logprobs", INVALID),
        ({"logprobs": 21}, "logprobs", INVALID),
        ({"logprobs": 10**6}, "logprobs", INVALID),
        ({"best_of": 2}, "best_of", UNSUPPORTED),
        (
            {"response_format": _schema_format(description="Ages.")},
            "response_format.json_schema.description",
            UNSUPPORTED,
        ),
        ({"best_of": 10**9}, "best_of", INVALID),
        ({"n": 3, "best_of": 4}, "best_of", UNSUPPORTED),
        ({"prompt": ["a"] * 100, "n": 16}, "n", INVALID),
        ({"messages": []}, "messages", UNKNOWN),
        ({"prompt_logprobs": -1}, "prompt_logprobs", UNKNOWN),
        *[({name: ""}, name, UNSUPPORTED) for name in sorted(CompletionRequest.refused_fields)],
    ],
    ids=lambda v: repr(v)[:60],
)
async def test_completions_refuse(fields: dict[str, Any], param: str, code: str) -> None:
    error = await refused(TEXT, text() | fields)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("body", [[], None, 1, "x", True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_the_body_is_an_object(path: str, body: Any) -> None:
    error = await refused(path, body)
    assert (error["param"], error["code"]) == (None, "invalid_json")


async def test_an_integer_of_5000_digits_is_refused_by_the_field_it_stands_in() -> None:
    body = json.dumps(chat(n=12345)).replace("12345", "9" * 5000)
    error = error_of(await Rig().post_raw(CHAT, body.encode()), 400)
    assert (error["param"], error["code"]) == ("n", INVALID)


@pytest.mark.parametrize(
    ("typo", "meant"), [("temprature", "temperature"), ("max_token", "max_tokens"), ("stopp", "stop")]
)
async def test_a_typo_gets_the_nearest_name(typo: str, meant: str) -> None:
    assert f"did you mean '{meant}'?" in (await refused(CHAT, chat(**{typo: 1})))["message"]


async def test_a_name_like_no_other_gets_no_guess_and_is_escaped_and_cut() -> None:
    error = await refused(CHAT, chat(**{"\x1b[2J\u2028" + "q" * 500: 1}))
    assert "did you mean" not in error["message"]
    assert error["param"].startswith(r"\x1b[2J\u2028qqq")
    assert len(error["param"]) < 160


ACCEPTED_BY_BOTH = [
    {"temperature": 0},
    {"temperature": -0.0},
    {"temperature": 1e-45},
    {"temperature": 2},
    {"top_p": 1},
    {"top_k": -1},
    {"top_k": 0},
    {"seed": -(2**53) + 1},
    {"seed": 2**63 - 1},
    {"seed": 2**64 - 1},
    {"seed": -(2**63)},
    {"stop": "x"},
    {"stop": []},
    {"stop": ["a", "b", "c", "d"]},
    {"stop_token_ids": [0, VOCAB_SIZE - 1]},
    {"logit_bias": {"0": -100, str(VOCAB_SIZE - 1): 100}},
    {"logit_bias": {}},
    {"stream": False},
    {"n": 16},
]


@pytest.mark.parametrize("fields", ACCEPTED_BY_BOTH, ids=repr)
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_accepted(path: str, fields: dict[str, Any]) -> None:
    response = await Rig().post(path, (chat if path == CHAT else text)(**fields))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (CHAT, {*ChatRequest.__struct_fields__, *ChatRequest.refused_fields} - {"model", "messages"}),
        (TEXT, {*CompletionRequest.__struct_fields__, *CompletionRequest.refused_fields} - {"model", "prompt"}),
    ],
)
async def test_null_means_absent(path: str, names: set[str]) -> None:
    rig = Rig()
    response = await rig.post(path, (chat if path == CHAT else text)(**dict.fromkeys(names)))
    assert response.status_code == 200, response.text
    response = await rig.post(path, (chat if path == CHAT else text)(seed=1))
    with_nulls, without = (request.sampling for request in rig.engine.submitted)
    assert {**_fields(with_nulls), "seed": 1} == _fields(without)


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False},
        {"modalities": ["text"]},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [], "annotations": []}]},
    ],
    ids=repr,
)
async def test_what_is_done_anyway_may_be_asked_for(fields: dict[str, Any]) -> None:
    assert (await Rig().post(CHAT, chat() | fields)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"store": 0}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ],
)
async def test_and_nothing_beside_it(fields: dict[str, Any], param: str) -> None:
    error = await refused(CHAT, chat(**fields))
    assert (error["param"], error["code"]) == (param, UNSUPPORTED)


async def test_null_does_not_make_a_typo_right() -> None:
    assert (await refused(CHAT, chat(temprature=None)))["code"] == UNKNOWN


async def test_messages_that_a_client_got_from_us_can_be_sent_back() -> None:
    turn = {"role": "assistant", "content": "Hello", "refusal": None, "annotations": None, "tool_calls": None}
    body = chat() | {"messages": [{"role": "user", "content": "Hi"}, turn, {"role": "user", "content": "More"}]}
    assert (await Rig().post(CHAT, body)).status_code == 200


KNOWN_AS: list[tuple[Any, type[RequestStruct]]] = [
    (chat_create_params.CompletionCreateParamsStreaming, ChatRequest),
    (completion_create_params.CompletionCreateParamsStreaming, CompletionRequest),
    (types.ChatCompletionAssistantMessageParam, Message),
    (types.ChatCompletionSystemMessageParam, Message),
    (types.ChatCompletionDeveloperMessageParam, Message),
    (types.ChatCompletionToolMessageParam, Message),
    (types.ChatCompletionUserMessageParam, Message),
    (types.ChatCompletionContentPartImageParam, ContentPart),
    (types.ChatCompletionContentPartInputAudioParam, ContentPart),
    (types.ChatCompletionContentPartRefusalParam, ContentPart),
    (types.ChatCompletionContentPartTextParam, ContentPart),
    (types.ChatCompletionMessageFunctionToolCallParam, MessageToolCall),
    (types.ChatCompletionMessageCustomToolCallParam, MessageToolCall),
    (types.ChatCompletionFunctionToolParam, Tool),
    (types.ChatCompletionCustomToolParam, Tool),
    (shared_params.FunctionDefinition, Function),
    (types.ChatCompletionNamedToolChoiceParam, ToolChoice),
    (types.ChatCompletionNamedToolChoiceCustomParam, ToolChoice),
    (types.ChatCompletionAllowedToolChoiceParam, ToolChoice),
    (types.ChatCompletionAllowedToolsParam, AllowedTools),
    (types.ChatCompletionPredictionContentParam, Prediction),
    (types.ChatCompletionStreamOptionsParam, StreamOptions),
    (shared_params.ResponseFormatJSONSchema, ResponseFormat),
    (response_format_json_schema.JSONSchema, JsonSchemaFormat),
]


@pytest.mark.parametrize(("sdk_params", "struct"), KNOWN_AS, ids=lambda v: getattr(v, "__name__", ""))
def test_every_field_of_the_openai_package_is_known_by_name(sdk_params: Any, struct: type[RequestStruct]) -> None:
    assert set(sdk_params.__annotations__) <= {*struct.__struct_fields__, *struct.refused_fields}
