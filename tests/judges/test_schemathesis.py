"""schemathesis against a real server and its engine: no 5xx, and every response as the contract has it.

As tests/contract/test_fuzz.py, which makes more requests to an engine that always says the same.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.contract.test_fuzz import check_all, fuzzed
from tests.support.server_process import running_server
from tests.support.tiny_models import GOLDEN

TINY = "tiny-mistral"
FUZZED = fuzzed(TINY)
NUM_EXAMPLES = 60


@pytest.fixture(scope="module")
def server() -> Any:
    with running_server(str(GOLDEN / TINY), "--max-model-len", "128") as made:
        yield made


@FUZZED.parametrize()
@settings(
    max_examples=NUM_EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
def test_the_contract_is_kept_by_a_running_server(case: Any, server: Any) -> None:
    check_all(case, lambda each: each.call(base_url=server.url))


def test_the_server_lives(server: Any) -> None:
    assert server.process.poll() is None
    assert "Traceback" not in server.output()
