"""What /v1/capabilities says, and that it is so."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec.structs import replace

from engine.errors import InvalidRequest
from engine.types import SamplingParams
from server.capabilities import Capabilities
from server.chat_profile import profile_of
from server.context import ModelPrompts
from server.field_schemas import SEED_BOUNDS
from tests.contract.test_contract import FIELDS, REQUESTS, struct_schema
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, text
from tests.server.test_prompts import tokenizer
from tests.support.contract import contract, inlined, schema
from tests.support.fake_engine import MODEL, READY, BytePrompts, FakeEngine

PATH = "/v1/capabilities"


async def told(**settings: Any) -> dict[str, Any]:
    """The answer of a server."""
    response = await Rig(**settings).get(PATH)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def names(node: Any) -> Any:
    """The names of a schema's properties, at any depth."""
    options = [option for option in node.get("anyOf", [node]) if option.get("type") != "null"]
    (only,) = options if len(options) == 1 else [{}]
    if "properties" in only:
        return {name: names(member) for name, member in only["properties"].items()}
    inner = only.get("additionalProperties") or only.get("items")
    return names(inner) if isinstance(inner, dict) else None


def test_its_names_are_those_of_the_contract() -> None:
    assert names(inlined(schema("Capabilities"))) == names(struct_schema(Capabilities))


async def test_the_model_and_what_computes_it() -> None:
    body = await told()
    assert body["models"] == [MODEL, "alias/of-it"]
    assert (body["max_model_len"], body["vocab_size"]) == (READY.max_model_len, READY.vocab_size)
    assert body["architecture"] == READY.architecture
    assert body["device"] == {"backend": READY.backend, "operations": READY.provenance}
    assert body["system_fingerprint"] == READY.fingerprint
    engine = FakeEngine(ready=replace(READY, max_model_len=77, fingerprint="fp_ba9876543210"))
    other = await told(engine=engine)
    assert (other["max_model_len"], other["system_fingerprint"]) == (77, "fp_ba9876543210")


async def test_the_endpoints_are_the_contracts() -> None:
    declared = {
        f"{method.upper()} {path}" for path, item in contract()["paths"].items() for method in item if method != "head"
    }
    assert set((await told())["endpoints"]) == declared


async def test_a_model_without_a_template_has_no_chat() -> None:
    assert (await told(prompts=ModelPrompts(tokenizer(), None)))["chat"] is None


TEMPLATES: list[tuple[str, dict[str, Any], Any, list[str]]] = [
    ("{{ messages }}", {"family": "hermes", "shown_by_template": False}, None, []),
    ("{{ tools }}", {"family": None, "shown_by_template": True}, None, []),
    (
        "{{ tools }}<tool_call> arguments <think></think>{{ enable_thinking }}",
        {"family": "hermes", "shown_by_template": True},
        {"start": "<think>", "end": "</think>", "switch": "enable_thinking", "budget": True, "efforts": []},
        ["enable_thinking"],
    ),
    (
        "<seed:think></seed:think>{{ reasoning_effort }}{{ thinking_budget }}{{ other }}",
        {"family": "hermes", "shown_by_template": False},
        {
            "start": "<seed:think>",
            "end": "</seed:think>",
            "switch": None,
            "budget": True,
            "efforts": ["high", "low", "max", "medium", "minimal", "none", "xhigh"],
        },
        ["reasoning_effort", "thinking_budget"],
    ),
]


@pytest.mark.parametrize(("template", "tools", "thinking", "variables"), TEMPLATES)
async def test_what_the_template_tells(
    template: str, tools: dict[str, Any], thinking: dict[str, Any] | None, variables: list[str]
) -> None:
    found = (await told(prompts=BytePrompts(profile_of(template))))["chat"]
    choices = found["tools"].pop("choices")
    assert set(choices) == {"none", "auto", "required", "function", "allowed_tools"}
    assert (found["tools"], found["thinking"], found["template_variables"]) == (tools, thinking, variables)
    assert set(found["roles"]) == {"system", "developer", "user", "assistant", "tool"}


async def test_the_limits_are_those_that_hold() -> None:
    limits = (await told(max_body_bytes=1 << 16, max_waiting=20))["limits"]
    assert (limits["body_bytes"], limits["open_requests"]) == (1 << 16, 20)
    tool = {"type": "function", "function": {"name": "f"}}
    many = [{"role": "user", "content": ""}]
    rig = Rig(max_waiting=1000, engine=FakeEngine(ready=replace(READY, max_model_len=1 << 20)))
    for path, name, body in (
        (CHAT, "choices", lambda n: chat(n=n)),
        (CHAT, "stops", lambda n: chat(stop=["x"] * n)),
        (CHAT, "tools", lambda n: chat(tools=[tool | {"function": {"name": f"f{i}"}} for i in range(n)])),
        (CHAT, "messages", lambda n: {"model": MODEL, "messages": many * n}),
        (TEXT, "prompts", lambda n: text(["x"] * n)),
    ):
        assert (await rig.post(path, body(limits[name]))).status_code == 200, name
        assert (await rig.post(path, body(limits[name] + 1))).status_code == 400, name
    for seconds, status in ((limits["timeout_s"], 200), (limits["timeout_s"] + 1, 400)):
        assert (await rig.post(CHAT, chat(), headers={"X-Request-Timeout": str(seconds)})).status_code == status


async def test_every_response_format_told_is_taken_and_no_other() -> None:
    found = (await told())["response_formats"]
    forms = {
        "json_schema": {"json_schema": {"name": "x", "schema": {}}},
        "regex": {"regex": "a"},
        "choice": {"choice": ["a"]},
        "lark": {"lark": 'start: "a"'},
    }
    for name in found["types"]:
        response = await Rig().post(CHAT, chat(response_format={"type": name, **forms.get(name, {})}))
        assert response.status_code == 200, name
    assert set(found["extensions"]) == {"regex", "choice", "lark"}
    for word in found["json_schema"]["refused"]:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {word: {}}}}
        error = error_of(await Rig().post(CHAT, chat(response_format=form)), 400)
        assert error["param"].endswith(f".{word}"), error
    for word in ("held", "remarks", "formats"):
        assert found["json_schema"][word] == sorted(set(found["json_schema"][word]))


async def test_the_schemas_of_fields_are_the_contracts() -> None:
    """The values at each field's edges, which are accepted, are what the schema told says."""
    requests = (await told())["requests"]
    assert set(requests) == {path for path, _, _ in REQUESTS.values()}
    num_checked = 0
    for owner, field, value in FIELDS:
        if value is None or (isinstance(value, dict) and None in value.values()):
            continue
        path = REQUESTS[owner][0]
        Draft202012Validator(requests[path]["fields"][field]).validate(value)
        num_checked += 1
    assert num_checked > 100
    assert requests[CHAT]["fields"]["seed"] == {"type": "integer", **SEED_BOUNDS}
    temperature = Draft202012Validator(requests[CHAT]["fields"]["temperature"])
    assert temperature.is_valid(2)
    assert not temperature.is_valid(2.1)


def test_the_bounds_of_the_seed() -> None:
    for value in SEED_BOUNDS.values():
        assert SamplingParams(max_tokens=1, seed=value).seed == value
    for value in (SEED_BOUNDS["minimum"] - 1, SEED_BOUNDS["maximum"] + 1):
        with pytest.raises(InvalidRequest):
            SamplingParams(max_tokens=1, seed=value)


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_fields_told_as_refused_are_refused(path: str) -> None:
    refused = (await told())["requests"][path]["refused"]
    assert refused
    for name in refused:
        error = error_of(await Rig().post(path, (chat if path == CHAT else text)(**{name: 1})), 400)
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")


async def test_before_the_model_is_loaded() -> None:
    rig = Rig(engine=FakeEngine(ready=None))
    assert error_of(await rig.get(PATH), 503)["code"] == "engine_unavailable"


async def test_a_key_is_needed() -> None:
    assert (await Rig(api_keys=("key",)).get(PATH)).status_code == 401
