"""A client that leaves takes its work with it: over bare ASGI, and on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.types import GenerateRequest, TokenDelta
from tests.server.rig import CHAT, TEXT, AsgiCall, Rig, chat, text
from tests.support.fake_engine import BytePrompts, Step


class Waiting:
    """A script that says one token, if it may, and then waits for ever; tells when it has begun."""

    def __init__(self, *, first_token: bool) -> None:
        self.begun = asyncio.Event()
        self._never = asyncio.Event()
        self._first_token = first_token

    def __call__(self, request: GenerateRequest) -> Iterator[Step]:
        self.begun.set()
        if self._first_token:
            yield TokenDelta(request.request_id, [72], "H")
        yield self._never


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("first_token", [True, False])
async def test_leaving_over_asgi(path: str, stream: bool, first_token: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "upwell")
    script = Waiting(first_token=first_token)
    rig = Rig(script)
    call = AsgiCall(rig, path, (chat if path == CHAT else text)(stream=stream, n=2))
    await script.begun.wait()
    if stream and first_token:
        await call.next_body()
    call.leave()
    await call.task
    assert sorted(rig.engine.aborted) == sorted(request.request_id for request in rig.engine.submitted)
    assert rig.engine.num_open == 0
    assert "status=499" in caplog.text
    assert await ended(rig) == {"stop": 0, "length": 0, "abort": 2, "error": 0}
    assert asyncio.all_tasks() == {asyncio.current_task()}, "no watcher is left behind"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_stays_leaves_no_watcher_behind(stream: bool) -> None:
    call = AsgiCall(Rig(), CHAT, chat(stream=stream))
    await call.task
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def ended(rig: Rig) -> dict[str, float]:
    """Requests that ended, by reason, as /metrics has them."""
    families = text_string_to_metric_families((await rig.get("/metrics")).text)
    (family,) = [family for family in families if family.name == "upwell_requests_finished"]
    return {s.labels["reason"]: s.value for s in family.samples if s.name.endswith("_total")}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("first_token", [True, False])
async def test_leaving_on_a_socket(stream: bool, first_token: bool) -> None:
    script = Waiting(first_token=first_token)
    rig = Rig(script)
    async with rig.socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(http_post(CHAT, chat(stream=stream)))
        await script.begun.wait()
        if stream and first_token:
            await reader.readuntil(b"\n\n")
        assert rig.engine.num_open == 1
        writer.transport.abort()
        while rig.engine.num_open:
            await asyncio.sleep(0.001)
    assert rig.engine.aborted == [rig.engine.submitted[0].request_id]


async def test_leaving_while_the_prompt_is_tokenised() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(BytePrompts):
        def chat(self, messages: list[dict[str, str]]) -> list[int]:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            return [1]

    rig = Rig(prompts=Slow())
    rig.engine.ready = rig.engine.ready and type(rig.engine.ready)(
        **fields(rig.engine.ready) | {"max_model_len": 1 << 20}
    )
    call = AsgiCall(rig, CHAT, chat("x" * 30_000))
    await begun.wait()
    call.leave()
    await call.task
    go_on.set()
    assert rig.engine.submitted == []


def fields(struct: Any) -> dict[str, Any]:
    """The struct's fields as a dict."""
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


async def test_leaving_in_the_middle_of_the_body(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "upwell")
    rig = Rig()
    async with rig.socket() as (host, port):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(http_post(CHAT, chat())[:-5])
        await writer.drain()
        while "POST" not in caplog.text:
            await asyncio.sleep(0.001)
            writer.close()
    assert "status=499" in caplog.text
    assert rig.engine.submitted == []


async def test_a_client_that_does_not_read_is_gone_after_a_while() -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        while True:
            yield TokenDelta(request.request_id, [120] * 1000, "x" * 1_000)

    rig = Rig(script, write_stall_s=0.05)
    async with rig.socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port, limit=1)
        writer.write(http_post(CHAT, chat(stream=True)))
        await reader.read(1)
        while rig.engine.num_open or not rig.engine.submitted:
            await asyncio.sleep(0.001)
        writer.transport.abort()
    assert rig.engine.aborted == [rig.engine.submitted[0].request_id]


async def test_places_are_given_back_when_clients_leave() -> None:
    script = Waiting(first_token=False)
    rig = Rig(script, max_waiting=2)
    for _ in range(5):
        script.begun.clear()
        call = AsgiCall(rig, CHAT, chat(n=2))
        await script.begun.wait()
        assert (await rig.post(CHAT, chat())).status_code == 429
        call.leave()
        await call.task


def http_post(path: str, body: Any) -> bytes:
    """The bytes of one request."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
