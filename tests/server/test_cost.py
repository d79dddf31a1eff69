"""What a request has cost, and why: the parts of its time, what was cached of its prompt, what keys and tiers do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

import server.envelope
import server.generation
from engine.config import EngineConfig
from engine.types import CacheMiss, GenerateRequest, TokenDelta, Usage
from server.bridge import EngineBridge
from server.cost import account
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, events_of, text
from tests.server.test_metrics import samples
from tests.support.fake_engine import Step, deltas_for, says
from tests.support.tiny_models import GOLDEN

TIMES = ("queue_us", "prefill_us", "decode_us", "transport_us")
ASKED = {"upwell": {"usage": True}}


def parts(explained: dict[str, Any]) -> dict[str, int]:
    """The parts of the time, which must add up to the whole."""
    assert sum(explained[name] for name in TIMES) == explained["wall_us"]
    return {name: explained[name] for name in TIMES}


class Clock:
    """Time that passes where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        for module in (server.envelope, server.generation):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def answer(self, request: GenerateRequest) -> Iterator[TokenDelta]:
        """An engine that takes 1 s to begin, 4 s to the first token, 8 s to the last, and 16 s to say so."""
        self.now_s += 1
        queue_s = self.now_s - request.arrived_at_s
        self.now_s += 4
        first, last = deltas_for(request, "Hi", [1])
        yield first
        self.now_s += 8 + 16
        usage = Usage(len(request.prompt_ids), 2, 3, queue_s, 4.0, 8.0, 5, cache_miss=CacheMiss.EVICTED)
        yield msgspec.structs.replace(last, usage=usage)


async def answer_of(rig: Rig, clock: Clock, path: str, body: Any) -> bytes:
    """An answer to a client that takes 2 s to send its body, and 32 s to read each event but the last."""
    sent: list[bytes] = []

    async def receive() -> Message:
        if clock.now_s > 100.0:
            await asyncio.Event().wait()
        clock.now_s += 2
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        clock.now_s += 32 if message.get("more_body") else 0

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await rig.app(scope, receive, send)
    return b"".join(sent)


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat(**ASKED)), (TEXT, text(**ASKED))])
class TestKnownTimes:
    async def test_of_a_whole_answer(self, path: str, body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch)
        answer = json.loads(await answer_of(Rig(clock.answer), clock, path, body))
        explained = answer["usage"]["upwell"]
        assert [part / 1e6 for part in parts(explained).values()] == [1, 4, 8, 2 + 16]
        assert answer["usage"]["prompt_tokens"] == 3 + explained["missed_tokens"]
        assert (explained["preemptions"], explained["cache_miss"]) == (5, "evicted")

    async def test_of_a_stream(self, path: str, body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch)
        answer = await answer_of(Rig(clock.answer), clock, path, body | {"stream": True})
        *chunks, usage, done = events_of(answer.decode())
        assert (usage["choices"], done) == ([], "[DONE]")
        assert {chunk["usage"] for chunk in chunks} == {None}
        in_transport = parts(usage["usage"]["upwell"])["transport_us"]
        assert in_transport / 1e6 == 2 + 16 + 32 * len(chunks)

    async def test_of_several_choices_are_the_last_ones(
        self, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch)

        def script(request: GenerateRequest) -> Iterator[Step]:
            if request.sampling.choice == 1:
                yield from deltas_for(request, "Hi")
            else:
                yield from clock.answer(request)

        answer = json.loads(await answer_of(Rig(script), clock, path, body | {"n": 2}))
        assert [part / 1e6 for part in parts(answer["usage"]["upwell"]).values()] == [1, 4, 8, 2 + 16]


@pytest.mark.parametrize("body", [chat(), chat(upwell={}), chat(upwell={"usage": False}), chat(upwell=None)])
async def test_nothing_is_explained_unless_asked_for(body: Any) -> None:
    rig = Rig()
    assert "upwell" not in (await rig.post(CHAT, body)).json()["usage"]
    streamed = await rig.post(CHAT, body | {"stream": True, "stream_options": {"include_usage": True}})
    assert "upwell" not in events_of(streamed.text)[-2]["usage"]
    assert all("usage" not in event for event in events_of((await rig.post(CHAT, body | {"stream": True})).text)[:-1])


@pytest.mark.parametrize(
    ("value", "param"), [({"usages": True}, "upwell.usages"), ({"usage": 1}, "upwell.usage"), (True, "upwell")]
)
async def test_what_else_is_asked_for_is_refused_by_name(value: Any, param: str) -> None:
    assert error_of(await Rig().post(CHAT, chat(upwell=value)), 400)["param"] == param


seconds = st.floats(0, 1e6)


@given(seconds, seconds, seconds, seconds, seconds, seconds)
def test_the_parts_always_add_up(
    arrived_s: float, reading_s: float, queue_s: float, prefill_s: float, decode_s: float, sending_s: float
) -> None:
    last = Usage(10, 5, 3, reading_s + queue_s, prefill_s, decode_s, 0)
    submitted_s = arrived_s + reading_s
    explained = account(
        [last],
        1,
        last,
        arrived_at_s=arrived_s,
        submitted_at_s=submitted_s,
        now_s=submitted_s + queue_s + prefill_s + decode_s + sending_s,
    )
    found = parts(msgspec.structs.asdict(explained))
    expected = (queue_s, prefill_s, decode_s, reading_s + sending_s)
    for part, exact in zip(found.values(), expected, strict=True):
        assert part >= 0
        assert abs(part - 1e6 * exact) <= 3, (
            "each of three is rounded by at most 1/2, and floats of 1e6 s to 1/1000 of one"
        )


async def test_a_prompt_counts_once_and_its_first_choice_says_what_was_cached() -> None:
    def script(request: GenerateRequest) -> Iterator[TokenDelta]:
        length = len(request.prompt_ids)
        cached = length // 2 if request.sampling.choice == 0 else length - 1
        missed = CacheMiss.DIFFERS if length == 8 else None
        (delta,) = deltas_for(request, "Hi")
        yield msgspec.structs.replace(delta, usage=Usage(length, 2, cached, 1.0, 1.0, 1.0, 1, cache_miss=missed))

    usage = (await Rig(script).post(TEXT, text(["x" * 4, "x" * 8, "x" * 12], n=3, **ASKED))).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (24, 18, 42)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 12}
    explained = usage["upwell"]
    assert (explained["missed_tokens"], explained["cache_miss"], explained["preemptions"]) == (12, "differs", 9)


async def test_choices_of_a_prompt_are_a_group_of_their_own() -> None:
    rig = Rig()
    await rig.post(TEXT, text(["a", "b"], n=2))
    await rig.post(TEXT, text(["a", "b"]))
    groups = [request.group for request in rig.engine.submitted]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert groups[0].startswith("cmpl-"), "named after the call: another's cannot be the same"
    assert groups[4:] == ["", ""]


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
@pytest.mark.parametrize(
    ("key", "kept"), [({}, False), ({"prompt_cache_key": ""}, False), ({"prompt_cache_key": "k"}, True)]
)
async def test_a_key_keeps_the_prompt_in_the_cache(path: str, body: Any, key: dict[str, str], kept: bool) -> None:
    rig = Rig()
    await rig.post(path, body | key)
    assert [(request.keep_cached, request.tenant) for request in rig.engine.submitted] == [(kept, "")]


async def test_the_metrics_count_what_requests_say_at_their_end() -> None:
    def script(request: GenerateRequest) -> Iterator[TokenDelta]:
        (delta,) = deltas_for(request, "Hi")
        usage = Usage(5, 2, 1, 1.0, 1.0, 1.0, 0, 7, 11, 13, CacheMiss.EVICTED)
        yield msgspec.structs.replace(delta, usage=usage)

    rig = Rig(script)
    usage = (await rig.post(CHAT, chat(n=2))).json()["usage"]
    assert usage["completion_tokens_details"] == {
        "reasoning_tokens": 14,
        "accepted_prediction_tokens": 22,
        "rejected_prediction_tokens": 26,
    }
    rig.engine.script = says("Hey")  # nothing of it was missed
    await rig.post(CHAT, chat())
    found = await samples(rig)
    assert found["upwell_reasoning_tokens_total"] == 14
    assert found["upwell_prediction_tokens_total{fate=accepted}"] == 22
    assert found["upwell_prediction_tokens_total{fate=rejected}"] == 26
    misses = {str(why): found[f"upwell_cache_misses_total{{reason={why}}}"] for why in CacheMiss}
    assert misses == {"new": 0, "differs": 0, "evicted": 2, "prefix_caching_off": 0, "prompt_logprobs": 0}


class TestRealEngine:
    """The engine process with a tiny model."""

    @pytest.fixture
    async def rig(self, request: pytest.FixtureRequest):
        options = {"model_path": str(GOLDEN / "tiny-mistral"), "device": "reference", **getattr(request, "param", {})}
        bridge = EngineBridge(EngineConfig(**options), silence_limit_s=30)
        await bridge.start()
        yield Rig(engine=bridge)
        await bridge.close()

    async def test_the_whole_is_within_what_the_client_saw(self, rig: Rig) -> None:
        async with rig.socket() as (host, port), httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            for body in (chat(max_tokens=5, n=2, **ASKED), chat(max_tokens=5, stream=True, **ASKED)):
                began_s = time.monotonic()
                response = await client.post(CHAT, json=body)
                seen_us = 1e6 * (time.monotonic() - began_s)
                answer = events_of(response.text)[-2] if "stream" in body else response.json()
                explained = answer["usage"]["upwell"]
                assert explained["prefill_us"] > 0
                assert explained["transport_us"] > 0
                assert explained["wall_us"] <= seen_us

    async def test_a_prompt_is_new_and_then_found_under_any_key_by_all_of_its_choices(self, rig: Rig) -> None:
        body = text("once upon a time", max_tokens=2, n=4, **ASKED)
        before = rig.engine.stats
        first = (await rig.post(TEXT, body | {"prompt_cache_key": "one"})).json()["usage"]
        assert (first["prompt_tokens"], first["prompt_tokens_details"]["cached_tokens"]) == (16, 0)
        assert (first["upwell"]["missed_tokens"], first["upwell"]["cache_miss"]) == (16, "new")
        assert rig.engine.stats.prefix_hit_tokens - before.prefix_hit_tokens == 3 * 15
        for key in ({"prompt_cache_key": "two"}, {}):
            again = (await rig.post(TEXT, body | key)).json()["usage"]
            assert again["prompt_tokens_details"]["cached_tokens"] == 15
            assert (again["upwell"]["missed_tokens"], again["upwell"]["cache_miss"]) == (1, None)
        both = (await rig.post(TEXT, text(["once upon a time", "once upon a year"], n=2, **ASKED))).json()["usage"]
        assert both["prompt_tokens_details"]["cached_tokens"] == 15 + len("once upon a ")
        assert both["upwell"]["cache_miss"] == "differs"

    @pytest.mark.parametrize("rig", [{"enable_prefix_caching": False}], indirect=True)
    async def test_a_cache_that_is_off_is_said_to_be(self, rig: Rig) -> None:
        for _ in range(2):
            usage = (await rig.post(TEXT, text("once upon a time", max_tokens=2, **ASKED))).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == 0
            assert usage["upwell"]["cache_miss"] == "prefix_caching_off"

    @pytest.mark.parametrize("rig", [{"max_num_seqs": 1}], indirect=True)
    async def test_service_tiers_order_the_queue(self, rig: Rig) -> None:
        ended: list[str] = []

        async def ask(tier: str) -> None:
            fields = {"max_tokens": 2, "ignore_eos": True, "service_tier": tier}
            assert (await rig.post(CHAT, chat(**fields))).status_code == 200
            ended.append(tier)

        os.kill(rig.engine._process.pid, signal.SIGSTOP)  # so that it finds all of them when it looks
        tasks = [asyncio.create_task(ask(tier)) for tier in ("flex", "default", "priority")]
        while rig.engine.num_open < len(tasks):
            await asyncio.sleep(0.001)
        os.kill(rig.engine._process.pid, signal.SIGCONT)
        await asyncio.gather(*tasks)
        assert ended == ["priority", "default", "flex"]
