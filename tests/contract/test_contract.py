"""openapi.yaml and the server say the same: paths, fields, bounds, answers, examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator, ValidationError
from starlette.routing import Route

from engine.errors import InvalidRequest
from engine.types import SamplingParams
from server import answers, errors
from server.chat_profile import profile_of
from server.chat_schemas import ChatRequest
from server.engine_client import EngineState
from server.routes.health import HealthReport
from server.schemas import CompletionRequest
from server.tokenize_schemas import DetokenizeRequest, TokenizeRequest
from tests.server.rig import CHAT, DETOKENIZE, TEXT, TOKENIZE, Rig, chat, text
from tests.support.contract import METHODS, check, check_events, contract, inlined, schema
from tests.support.fake_engine import BytePrompts, FakeEngine

REQUESTS: dict[str, tuple[str, dict[str, Any], type[msgspec.Struct]]] = {
    "ChatRequest": (CHAT, chat(), ChatRequest),
    "CompletionRequest": (TEXT, text(), CompletionRequest),
    "TokenizeRequest": (TOKENIZE, chat(), TokenizeRequest),
    "DetokenizeRequest": (DETOKENIZE, {"tokens": [72, 105]}, DetokenizeRequest),
}


def test_the_document_is_sound() -> None:
    assert contract()["openapi"] == "3.2.0"
    for name in contract()["components"]["schemas"]:
        Draft202012Validator.check_schema(schema(name))
    inlined(contract()["paths"])  # every reference leads somewhere


def test_nothing_is_defined_in_vain() -> None:
    used = json.dumps(contract())
    for kind in ("schemas", "responses", "headers"):
        for name in contract()["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in used, name


def test_the_paths_and_methods_are_those_of_the_app() -> None:
    declared = {
        (path, method.upper()) for path, item in contract()["paths"].items() for method in item if method in METHODS
    }
    served = {
        (route.path_format, method)
        for route in Rig().app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert declared == served


def canonical(node: Any) -> Any:
    """A schema without what does not restrict values, as a sorted list of alternatives with one type each."""
    if isinstance(node, list):
        return node
    node = {k: v for k, v in node.items() if k not in {"description", "default", "title", "examples"}}
    if "anyOf" in node:
        return sorted((alternative for option in node["anyOf"] for alternative in canonical(option)), key=json.dumps)
    if isinstance(node.get("enum"), list) and None in node["enum"]:
        return canonical({"anyOf": [{"enum": [v for v in node["enum"] if v is not None]}, {"type": "null"}]})
    if isinstance(node.get("type"), list):
        options = [{**node, "type": name} if name != "null" else {"type": "null"} for name in node["type"]]
        return canonical({"anyOf": options})
    if "enum" in node:
        return [{"enum": sorted(node["enum"])}]
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: canonical(inner) for name, inner in value.items()}
        elif key in {"items", "additionalProperties", "propertyNames"} and value is not False:
            out[key] = canonical(value)
        else:
            out[key] = sorted(value) if key == "required" else value
    if not out.get("required"):
        out.pop("required", None)
    return [dict(sorted(out.items()))]


def struct_schema(struct: type[msgspec.Struct]) -> Any:
    """The schema that msgspec derives from a struct, with its references in place."""
    document = msgspec.json.schema(struct)

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return inline(document["$defs"][node["$ref"].rpartition("/")[2]])
            return {key: inline(value) for key, value in node.items()}
        return [inline(item) for item in node] if isinstance(node, list) else node

    return inline({"$ref": document["$ref"]})


@pytest.mark.parametrize("name", REQUESTS)
def test_the_fields_and_bounds_of_requests_are_those_of_the_structs(name: str) -> None:
    declared, struct = inlined(schema(name)), struct_schema(REQUESTS[name][2])
    assert set(declared["properties"]) == set(struct["properties"])
    assert sorted(declared.get("required", [])) == sorted(struct["required"])
    assert declared["additionalProperties"] is struct["additionalProperties"] is False
    for field in set(declared["properties"]) - {"seed", "prompt"}:  # these two have tests of their own
        assert canonical(declared["properties"][field]) == canonical(struct["properties"][field]), field


def test_the_bounds_of_the_seed() -> None:
    seed = schema("Seed")
    for value in (seed["minimum"], seed["maximum"]):
        assert SamplingParams(max_tokens=1, seed=value).seed == value
    for value in (seed["minimum"] - 1, seed["maximum"] + 1):
        with pytest.raises(InvalidRequest):
            SamplingParams(max_tokens=1, seed=value)


PROMPTS = ["x", ["x"], [1], [[1]], ["x", "y"], [[1], [2, 3]], ["x"] * 128, [1] * 500, [[1]] * 128]
NO_PROMPTS: list[Any] = [None, 1, {}, [], [[]], ["x", 1], [1, [1]], ["x", [1]], ["x"] * 129, [[1]] * 129, [-1], [1.5]]


@pytest.mark.parametrize("prompt", PROMPTS + NO_PROMPTS, ids=lambda v: repr(v)[:20])
async def test_the_kinds_of_prompt(prompt: Any) -> None:
    status = (await Rig().post(TEXT, text(prompt))).status_code
    node = schema("CompletionRequest")["properties"]["prompt"]
    if prompt in PROMPTS:
        check(prompt, node)
        assert status == 200
    else:
        pytest.raises(ValidationError, check, prompt, node)
        assert status == 400


TOOLS = [{"type": "function", "function": {"name": "f"}}]
NEEDS: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": TOOLS},
    "parallel_tool_calls": {"tools": TOOLS},
    "continue_final_message": {"messages": [{"role": "assistant", "content": "Once"}]},
    "add_special_tokens": {"prompt": "x", "messages": None},
}
NAMED = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BY_HAND: dict[str, list[Any]] = {
    "messages": [
        [{"role": role, "content": "x", "name": "x"} for role in ("system", "developer", "user", "assistant")],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [
            {"role": "assistant", "refusal": "x"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]},
        ],
        [
            {"role": "assistant", "reasoning_content": "x", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "x"},
        ],
    ],
    "tools": [[], TOOLS, [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}], None],
    "tool_choice": [
        "none",
        "auto",
        "required",
        NAMED,
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
        None,
    ],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}, "strict": True}},
        {"type": "regex", "regex": "[0-9]"},
        {"type": "choice", "choice": ["a", "b"]},
        {"type": "lark", "lark": 'start: "a"'},
        None,
    ],
    "chat_template_kwargs": [{}, {"enable_thinking": True}, None],
    "metadata": [{}, {"x" * 64: "y" * 512}, {str(i): "" for i in range(16)}, None],
}
"""Values of fields whose parts go together."""
THINKS = profile_of("{% if enable_thinking %}<think>{{ tools }}</think>{% endif %}<tool_call>arguments")


def edges(node: Any) -> Iterator[Any]:
    """The least and the greatest values, and all words, that a schema has."""
    for option in canonical(node):
        kind = option.get("type")
        if "enum" in option:
            yield from option["enum"]
        elif kind == "null":
            yield None
        elif kind == "boolean":
            yield from (True, False)
        elif kind == "integer":
            yield from (option["minimum"], min(option["maximum"], 200))
        elif kind == "number":
            yield from (option.get("minimum", 1e-9), option["maximum"])
        elif kind == "string":
            yield from ("x" * option.get("minLength", 0), "x" * option.get("maxLength", 10))
        elif kind == "array":
            yield [next(edges({"anyOf": option["items"]}))] * option.get("minItems", 0)
        elif kind == "object" and "properties" not in option:
            yield from ({}, {"0": option["additionalProperties"][0]["minimum"]})
        elif kind == "object":
            yield {name: next(edges({"anyOf": option["properties"][name]})) for name in option.get("required", ())}


FIELDS = [
    (name, field, value)
    for name in REQUESTS
    for field, node in inlined(schema(name))["properties"].items()
    if field not in {"model", "prompt"}
    for value in BY_HAND.get(field) or edges(node)
]


@pytest.mark.parametrize(("name", "field", "value"), FIELDS, ids=lambda v: repr(v)[:24])
async def test_every_field_is_accepted_at_its_edges(name: str, field: str, value: Any) -> None:
    path, body, _ = REQUESTS[name]
    body = {**body, **NEEDS.get(field, {}), field: value}
    if field == "best_of" and value:
        body["n"] = value
    if (field, value) == ("max_tokens", 0):
        body["echo"] = True
    if (field, value, name) == ("add_generation_prompt", False, "ChatRequest"):
        body |= NEEDS["continue_final_message"] | {"continue_final_message": True}
    check(body, {"$ref": f"#/components/schemas/{name}"})
    response = await Rig(prompts=BytePrompts(THINKS)).post(path, body)
    assert response.status_code == 200, response.text


def test_the_test_above_misses_no_field() -> None:
    for name, (_, _, struct) in REQUESTS.items():
        tried = {field for owner, field, _ in FIELDS if owner == name}
        assert tried == set(struct.__struct_fields__) - {"model", "prompt"}


ANSWERS: dict[str, type[msgspec.Struct]] = {
    "ChatCompletion": answers.ChatCompletion,
    "ChatCompletionChunk": answers.ChatCompletionChunk,
    "TextCompletion": answers.TextCompletion,
    "Usage": answers.CompletionUsage,
    "Model": answers.ModelCard,
    "ModelList": answers.ModelList,
    "Tokenized": answers.Tokenized,
    "Detokenized": answers.Detokenized,
    "ErrorObject": errors.ErrorObject,
    "Error": errors.ErrorResponse,
    "Health": HealthReport,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_fields_of_answers_are_those_of_the_structs(name: str) -> None:
    assert set(schema(name)["properties"]) == set(ANSWERS[name].__struct_fields__)


def test_the_words_of_answers() -> None:
    assert set(schema("Health")["properties"]["state"]["enum"]) == set(EngineState)
    assert set(schema("ErrorObject")["properties"]["type"]["enum"]) == {k.type for k in errors.ERROR_TABLE.values()}
    statuses = {str(kind.status) for kind in errors.ERROR_TABLE.values()} - {"405"}  # methods the contract has not
    for path in (CHAT, TEXT, TOKENIZE, DETOKENIZE):
        assert set(contract()["paths"][path]["post"]["responses"]) == {"200", *statuses}


def examples_of_requests() -> Iterator[Any]:
    """Path and body of every example."""
    for path in (CHAT, TEXT, TOKENIZE, DETOKENIZE):
        content = contract()["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for name, example in content["examples"].items():
            yield pytest.param(path, example["value"], content["schema"], id=name)


@pytest.mark.parametrize(("path", "body", "node"), list(examples_of_requests()))
async def test_the_examples_of_requests_are_answered(path: str, body: Any, node: Any) -> None:
    check(body, node)
    rig = Rig(model_names=("smollm2-135m",))
    assert (await rig.post(path, body)).status_code == 200


def examples_of_responses() -> Iterator[Any]:
    """Content of every response that has examples."""
    for path, item in contract()["paths"].items():
        for status, response in next(iter(item.values()))["responses"].items():
            for media_type, content in inlined(response)["content"].items():
                for name, example in content.get("examples", {}).items():
                    yield pytest.param(media_type, content, example["value"], id=f"{path}-{status}-{name}")


@pytest.mark.parametrize(("media_type", "content", "value"), list(examples_of_responses()))
def test_the_examples_of_responses_are_as_the_schemas_say(media_type: str, content: Any, value: Any) -> None:
    if media_type == "text/event-stream":
        check_events(value, content["itemSchema"])
    else:
        check(value, content["schema"])


async def test_the_example_model_is_retrieved() -> None:
    (parameter,) = contract()["paths"]["/v1/models/{model}"]["get"]["parameters"]
    rig = Rig(model_names=(parameter["example"],))
    assert (await rig.get(f"/v1/models/{parameter['example']}")).status_code == 200


async def test_the_metrics_named_are_those_there_are() -> None:
    described = contract()["paths"]["/metrics"]["get"]["description"]
    shown = (await Rig().get("/metrics")).text
    names = {line.split()[2] for line in shown.splitlines() if line.startswith("# TYPE")}
    for name in names:
        short = name.removeprefix("upwell_").removesuffix("_seconds")
        assert name.startswith("upwell_")
        assert f"`{short}" in described or short.endswith("_created"), name


async def test_a_server_that_is_not_ready_answers_by_the_contract_too() -> None:
    rig = Rig(engine=FakeEngine(ready=None))
    for path, item in contract()["paths"].items():
        if "get" in item:
            await rig.get(path.replace("{model}", "x"))
    for path, body, _ in REQUESTS.values():
        assert (await rig.post(path, body)).status_code == 503
