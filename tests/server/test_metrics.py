"""GET /metrics."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from engine.types import EngineStats
from server import http_server
from server.metrics import MonotonicCounters
from tests.server.rig import CHAT, TEXT, Rig, chat, text
from tests.support.fake_engine import Die, failure, says


async def samples(rig: Rig) -> dict[str, float]:
    """Every sample of /metrics by its name and labels."""
    response = await rig.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        sample.name + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_the_engines_state_and_counters() -> None:
    rig = Rig()
    rig.engine.restarts = 2
    rig.engine.stats = EngineStats(
        running=1,
        waiting=2,
        blocks_free=3,
        blocks_cached=4,
        blocks_used=5,
        prompt_tokens=6,
        generated_tokens=7,
        prefix_queried_tokens=8,
        prefix_hit_tokens=9,
        preemptions=10,
        steps=11,
        native_cpu_s=12.5,
        native_wall_s=6.5,
        gaps_s=0.25,
        gap_counts=(1, 0, 2, *[0] * 8, 3),
        native_rested_calls=13,
    )
    found = await samples(rig)
    expected = {
        "requests_running": 1,
        "requests_waiting": 2,
        "kv_blocks{state=free}": 3,
        "kv_blocks{state=cached}": 4,
        "kv_blocks{state=used}": 5,
        "prompt_tokens_total": 6,
        "generated_tokens_total": 7,
        "prefix_queried_tokens_total": 8,
        "prefix_hit_tokens_total": 9,
        "preemptions_total": 10,
        "steps_total": 11,
        "native_cpu_seconds_total": 12.5,
        "native_wall_seconds_total": 6.5,
        "between_steps_seconds_sum": 0.25,
        "between_steps_seconds_count": 6,
        "between_steps_seconds_bucket{le=5e-05}": 1,
        "between_steps_seconds_bucket{le=0.025}": 3,
        "kv_cache_bytes": 0,
        "native_rested_calls_total": 13,
        "engine_restarts_total": 2,
    }
    assert {name: found[f"upwell_{name}"] for name in expected} == expected


async def test_what_requests_leave_behind() -> None:
    rig = Rig(says("abcd"))
    await rig.post(CHAT, chat(n=2))
    await rig.post(TEXT, text(max_tokens=1, stream=True))
    rig.engine.script = lambda request: [failure(request, "numerical_error", "x")]
    await rig.post(CHAT, chat())
    rig.engine.script = lambda request: [Die()]
    await rig.post(CHAT, chat(n=2))
    found = await samples(rig)
    ended = {reason: found[f"upwell_requests_finished_total{{reason={reason}}}"] for reason in FINISHES}
    assert ended == {"stop": 2, "length": 1, "abort": 0, "error": 3}
    assert found["upwell_time_to_first_token_seconds_count"] == 3
    assert found["upwell_inter_token_seconds_count"] == 2 * 3
    assert found["upwell_queue_seconds_count"] == 3
    assert found["upwell_queue_seconds_sum"] > 0
    assert found["upwell_end_to_end_seconds_count"] == 3
    assert found["upwell_engine_restarts_total"] == 1


FINISHES = ("stop", "length", "abort", "error")


async def test_clients_do_not_add_series() -> None:
    rig = Rig()
    await rig.post(CHAT, chat())
    before = set(await samples(rig))
    for i in range(20):
        await rig.post(CHAT, chat(f"user {i}") | {"model": f"model-{i}"})
        await rig.post(f"/v1/{i}", {}, headers={"x-request-id": f"r{i}"})
        await rig.post(CHAT, chat(f"user {i}"))
    assert set(await samples(rig)) == before


async def test_a_new_engine_takes_nothing_back() -> None:
    rig = Rig()
    rig.engine.stats = EngineStats(steps=10, generated_tokens=100, gaps_s=1.0, gap_counts=(0, 9, *[0] * 10))
    assert (await samples(rig))["upwell_generated_tokens_total"] == 100
    rig.engine.die()
    assert (await samples(rig))["upwell_generated_tokens_total"] == 100
    rig.engine.stats = EngineStats(steps=1, generated_tokens=5, gaps_s=0.5, gap_counts=(0, 1, *[0] * 10))
    found = await samples(rig)
    assert found["upwell_generated_tokens_total"] == 105
    assert (found["upwell_between_steps_seconds_sum"], found["upwell_between_steps_seconds_count"]) == (1.5, 10)


async def test_counters_are_brought_up_to_date_by_every_request() -> None:
    rig = Rig()
    rig.engine.stats = EngineStats(steps=10, generated_tokens=100)
    await rig.post(CHAT, chat())
    rig.engine.die()
    assert (await samples(rig))["upwell_generated_tokens_total"] == 100


LIFE = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6)


@settings(max_examples=200, derandomize=True)
@given(st.lists(LIFE, max_size=5))
def test_totals_never_fall_and_miss_nothing_that_was_seen(lives: list[list[tuple[int, int]]]) -> None:
    counters, total = MonotonicCounters(), 0
    for restarts, life in enumerate(lives):
        steps = tokens = 0
        for more_steps, more_tokens in [*life, (0, 0)]:
            steps, tokens = steps + more_steps, tokens + more_tokens
            before = dict(counters.totals)
            counters.observe(EngineStats(steps=steps, generated_tokens=tokens), restarts)
            assert all(counters.totals[name] >= before[name] for name in before)
        total += tokens
    assert counters.totals["generated_tokens"] == total


async def test_apps_do_not_share_metrics() -> None:
    first, second = Rig(), Rig()
    await asyncio.gather(first.post(CHAT, chat()), first.post(CHAT, chat()))
    assert (await samples(second))["upwell_requests_finished_total{reason=stop}"] == 0


async def test_a_blocked_event_loop_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TICK_S", 0.001)
    rig = Rig()
    async with rig.socket():
        while (await samples(rig))["upwell_event_loop_lag_seconds_count"] < 2:
            await asyncio.sleep(0.001)
        time.sleep(0.3)  # at most a tick of it was due
        await asyncio.sleep(0.01)
    found = await samples(rig)
    name = "upwell_event_loop_lag_seconds_bucket{le=%s}"
    assert found[name % "0.25"] < found[name % "+Inf"]
