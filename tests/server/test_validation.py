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
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, refused, text
from tests.support.fake_engine import VOCAB_SIZE

INVALID, UNKNOWN, UNSUPPORTED = "invalid_value", "unknown_parameter", "unsupported_parameter"
MISSING = "missing_required_parameter"


def _schema_format(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "ages", "schema": {"type": "array"}, **fields}}


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
        ({"metadata": {"x": 1}}, "metadata", INVALID),
        ({"metadata": {"x": "y" * 513}}, "metadata", INVALID),
        ({"metadata": {"x" * 65: ""}}, "metadata", INVALID),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", INVALID),
        ({"user": "x" * 513}, "user", INVALID),
        ({"safety_identifier": 1}, "safety_identifier", INVALID),
        ({"prompt_cache_key": "x" * 513}, "prompt_cache_key", INVALID),
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


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
async def test_what_is_refused_may_be_switched_off(path: str, body: dict[str, Any]) -> None:
    assert (await Rig().post(path, body | {"use_beam_search": False})).status_code == 200
    assert (await refused(path, body | {"use_beam_search": True}))["param"] == "use_beam_search"


@pytest.mark.parametrize(
    ("fields", "way_out"),
    [
        ({"functions": []}, "Send tools."),
        ({"guided_json": {}}, "Send response_format of type 'json_schema'."),
        ({"verbosity": "low"}, "Ask for it in a message."),
        ({"modalities": ["audio"]}, "This model's answers are text."),
        ({"messages": [{"role": "user", "content": "?", "audio": {}}]}, "This model takes text, and no audio."),
        (
            {"response_format": {"type": "regex", "pattern": "a"}},
            "response_format can have type, json_schema, regex, choice, lark.",
        ),
        ({"stop_tokens": []}, "did you mean 'stop_token_ids'?"),
    ],
    ids=lambda v: repr(v)[:60],
)
async def test_what_is_refused_comes_with_what_to_send(fields: dict[str, Any], way_out: str) -> None:
    assert (await refused(CHAT, chat() | fields))["message"].endswith(way_out)


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
