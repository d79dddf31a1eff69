"""schemathesis makes requests out of openapi.yaml, good and bad; the server keeps the contract over a fake engine."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, settings
from msgspec.structs import replace
from schemathesis.config import SchemathesisConfig

from tests.server.rig import CHAT, TEXT, Rig
from tests.support.contract import check_response, contract
from tests.support.fake_engine import MODEL, READY, FakeEngine, says

READY_FOR_MUCH = replace(READY, max_model_len=1 << 16, vocab_size=1 << 31)

_PARTS = "text|refusal|json_schema|regex|choice|lark|function|allowed_tools|schema|content|tool_call_id"
SEMANTIC = {
    "context_length_exceeded": "messages|prompt",
    "invalid_value": r"stream_options|top_logprobs|min_tokens|max_tokens|prompt|n|logit_bias|thinking"
    rf"|tool_choice(\..*)?|parallel_tool_calls|continue_final_message|tools.*name|messages.*arguments"
    rf"|messages.*tool_calls|.*\.({_PARTS}|reasoning_content|type)",
    "missing_required_parameter": rf".*\.({_PARTS})",
    "unsupported_parameter": "best_of|reasoning_effort|thinking|chat_template_kwargs.*|echo",
    "invalid_grammar": "response_format.*",
    "invalid_json": "None",  # half of a surrogate pair
}
"""Reasons to refuse what the schema allows, and the fields they name: rules between fields, the model's own limits."""


def _fuzzed() -> Any:
    """The contract with the served model's name in place of any name, so that requests reach the engine.

    Streams lose their schema, which schemathesis takes for that of single events; ``check_response`` checks those.
    """
    document = deepcopy(contract())
    for path in (CHAT, TEXT):
        del document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    for name in ("ChatRequest", "CompletionRequest"):
        document["components"]["schemas"][name]["properties"]["model"] = {"enum": [MODEL]}
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig(seed=1))
    schema.config.max_stream_events = 10_000
    schema.app = Rig(engine=FakeEngine(says("Hi"), ready=READY_FOR_MUCH)).app
    return schema


FUZZED = _fuzzed()


@FUZZED.parametrize()
@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_the_contract_is_kept(case: Any) -> None:
    response = case.call()
    assert response.status_code < 500
    headers = httpx.Headers({name: values[0] for name, values in response.headers.items()})
    path = case.formatted_path.partition("?")[0]
    check_response(response.request.method, path, response.status_code, headers, response.content)
    if case.meta.generation.mode.is_positive and response.status_code == 400:
        error = response.json()["error"]
        # To JSON Schema 3.0 is an integer, to this API it is not.
        assert "got number" in error["message"] or re.fullmatch(SEMANTIC[error["code"]], str(error["param"])), error
    case.validate_response(response, excluded_checks=[schemathesis.checks.CHECKS.get_one("positive_data_acceptance")])
