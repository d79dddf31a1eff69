"""schemathesis makes requests out of openapi.yaml, good and bad; the server keeps the contract over a fake engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, settings
from msgspec.structs import replace
from schemathesis.config import SchemathesisConfig

from tests.server.rig import Rig
from tests.support.contract import check_response, contract
from tests.support.fake_engine import MODEL, READY, FakeEngine, says

READY_FOR_MUCH = replace(READY, max_model_len=1 << 16, vocab_size=1 << 31)

_PARTS = "text|refusal|json_schema|regex|choice|lark|function|allowed_tools|schema|content|tool_call_id"
SEMANTIC = {
    "context_length_exceeded": "messages|prompt",
    "invalid_value": r"stream_options|stop_token_ids|top_logprobs|min_tokens|max_tokens|prompt|n|logit_bias"
    rf"|thinking(\..*)?|tool_choice(\..*)?|parallel_tool_calls|continue_final_message|tools.*name|messages.*arguments"
    rf"|messages.*tool_calls|add_special_tokens|add_generation_prompt|tokens"
    rf"|tools|reasoning_effort|chat_template_kwargs|.*\.({_PARTS}|reasoning_content|type)",
    "missing_required_parameter": rf"prompt|.*\.({_PARTS})",
    "unsupported_parameter": r"best_of|reasoning_effort|thinking(\..*)?|chat_template_kwargs.*|add_special_tokens",
    "invalid_grammar": "response_format.*",
    "invalid_json": "None",  # half of a surrogate pair
}
"""Reasons to refuse what the schema allows, and the fields they name: rules between fields, the model's own limits."""


def fuzzed(model: str) -> Any:
    """The contract with the served model's name in place of any name, so that requests reach the engine.

    No X-Request-Timeout is made up: one that is short ends requests with a 504, as it should; see ``test_deadline``.
    """
    document = deepcopy(contract())
    for item in document["paths"].values():
        item.get("post", {}).pop("parameters", None)
    for name in ("ChatRequest", "CompletionRequest"):
        document["components"]["schemas"][name]["properties"]["model"] = {"enum": [model]}
    for name in ("TokenizeRequest", "DetokenizeRequest"):
        document["components"]["schemas"][name]["properties"]["model"] = {"enum": [model, None]}
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig(seed=1))
    schema.config.max_stream_events = 10_000
    return schema


def check_kept(case: Any, response: Any) -> None:
    """Assert that the response to a request that schemathesis made is one that the contract has."""
    assert response.status_code < 500
    headers = httpx.Headers({name: values[0] for name, values in response.headers.items()})
    path = case.formatted_path.partition("?")[0]
    check_response(response.request.method, path, response.status_code, headers, response.content)
    if case.meta.generation.mode.is_positive and response.status_code == 400:
        error = response.json()["error"]
        # To JSON Schema 3.0 is an integer, to this API it is not.
        semantic = SEMANTIC.get(error["code"], "")
        assert "got number" in error["message"] or re.fullmatch(semantic, str(error["param"])), error
    case.validate_response(response, excluded_checks=[schemathesis.checks.CHECKS.get_one("positive_data_acceptance")])


PLAIN = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"}
"""What is sent instead of fields that a request cannot do without."""
LENGTHS = ("max_tokens", "max_completion_tokens", "min_tokens", "tools", "tool_choice", "parallel_tool_calls")
"""What makes a request long, beside those."""


def check_all(case: Any, call: Callable[[Any], Any]) -> None:
    """Assert that the contract is kept; what the schema allows is answered, without the fields it is refused for."""
    response = call(case)
    check_kept(case, response)
    while case.meta.generation.mode.is_positive and response.status_code == 400 and isinstance(case.body, dict):
        error = response.json()["error"]
        if error["code"] == "invalid_json":
            return
        field = re.split(r"[.\[]", error["param"])[0]
        others = LENGTHS if error["code"] == "context_length_exceeded" else ()
        body = {name: value for name, value in case.body.items() if name not in {field, *others}}
        if field in PLAIN and all(body.get(name) is None for name in PLAIN):  # /tokenize takes either, and not both
            body[field] = PLAIN[field]
        assert body != case.body, error
        case.body = body
        response = call(case)
        check_kept(case, response)
    if case.meta.generation.mode.is_positive and case.method == "POST":
        assert response.status_code == 200


FUZZED = fuzzed(MODEL)
FUZZED.app = Rig(engine=FakeEngine(says("Hi"), ready=READY_FOR_MUCH)).app


@FUZZED.parametrize()
@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_the_contract_is_kept(case: Any) -> None:
    check_all(case, lambda each: each.call())
