"""Tools with the default model, which has seen none: calls are valid because they are held to be, not by its wit."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import openai
import pytest
from jsonschema import Draft202012Validator

from tests.support.server_process import running_server

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "paint": COLOUR}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
NAMED = {"type": "function", "function": {"name": "paint"}}
ONLY = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
QUESTION = [{"role": "user", "content": "What is the weather in Rome?"}]
FAMILIES = ("auto", "qwen3_coder", "deepseek_v3_1")


@pytest.fixture(scope="module", params=FAMILIES)
def server(request, default_model):
    with running_server(str(default_model), "--tool-call-parser", request.param, "--max-model-len", "1024") as made:
        yield made
        assert made.stop() == 0


@pytest.fixture
def ask(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        yield lambda **options: client.chat.completions.create(
            **{"model": model, "messages": QUESTION, "tools": TOOLS, "max_tokens": 200, "seed": 3, **options}
        )


def checked(choice):
    """Its calls, each of which has to be valid."""
    calls = choice.message.tool_calls or []
    for call in calls:
        Draft202012Validator(SCHEMAS[call.function.name]).validate(json.loads(call.function.arguments))
    return [(call.function.name, call.function.arguments) for call in calls]


def streamed(chunks):
    """Content, calls and finish reason of a stream."""
    content, calls, finish = "", [], None
    for chunk in chunks:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for call in choice.delta.tool_calls or ():
            if call.index == len(calls):
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments or ""
    return content, [tuple(call) for call in calls], finish


@pytest.mark.parametrize(
    ("choice", "names", "finish"),
    [
        ("required", set(SCHEMAS), "tool_calls"),
        (NAMED, {"paint"}, "stop"),
        (ONLY, {"paint"}, "tool_calls"),
    ],
    ids=["required", "named", "allowed"],
)
@pytest.mark.parametrize("temperature", [1])
def test_calls_are_made_and_valid_streamed_and_whole(ask, choice, names, finish, temperature):
    options = {"tool_choice": choice, "temperature": temperature, "parallel_tool_calls": False}
    (whole,) = ask(**options).choices
    (call,) = checked(whole)
    assert call[0] in names
    assert not whole.message.content
    assert whole.finish_reason == finish
    assert streamed(ask(stream=True, **options)) == ("", [call], finish)


def test_whatever_calls_are_made_of_strict_tools_are_valid(ask):
    for seed in range(3):
        (choice,) = ask(seed=seed, temperature=1, max_tokens=60, parallel_tool_calls=False).choices
        if choice.finish_reason == "tool_calls":
            assert len(checked(choice)) == 1


def test_an_answer_is_of_its_form_or_a_call(ask):
    schema = {"name": "answer", "schema": COLOUR, "strict": True}
    (choice,) = ask(response_format={"type": "json_schema", "json_schema": schema}, parallel_tool_calls=False).choices
    if not checked(choice):
        Draft202012Validator(COLOUR).validate(json.loads(choice.message.content))


def test_no_process_is_left(default_model):
    with running_server(str(default_model)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            model = client.models.list().data[0].id
            client.chat.completions.create(
                model=model, messages=QUESTION, tools=TOOLS, tool_choice=NAMED, max_tokens=60, temperature=0
            )
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        assert len(children) == 2, "the engine, and the one that tries grammars"
        assert server.stop(signal.SIGTERM) == 0
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(Path(f"/proc/{child}").exists() for child in children):
            time.sleep(0.01)
        assert not any(Path(f"/proc/{child}").exists() for child in children)
