"""Streams on a real socket, where tokens are written in the callback that brings them while the client keeps up."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine.types import GenerateRequest, TokenDelta
from server.http_protocol import HttpConnection
from server.patience import Patience
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, events_of, text
from tests.server.test_disconnect import http_post
from tests.support.fake_engine import ByteVocabulary, Die, Step, deltas_for, failure, says


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What goes the short way, in order."""
    taken: list[bytes] = []
    write_chunk = HttpConnection.write_chunk

    def noting(connection: HttpConnection, data: bytes) -> None:
        assert connection.transport.get_write_buffer_size() <= 1 << 16, "a client that does not read is waited for"
        taken.append(data)
        write_chunk(connection, data)

    monkeypatch.setattr(HttpConnection, "write_chunk", noting)
    return taken


async def post(rig: Rig, path: str, body: Any) -> httpx.Response:
    """One request on a socket."""
    async with rig.socket() as (host, port), httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
        return await client.post(path, json=body)


def alike(body: str) -> str:
    """A stream without what differs from request to request."""
    return re.sub(r'"id":"[^"]*","object":"([^"]*)","created":\d+', r'"object":"\1"', body)


SAYING = 'He said: "Ünïcødé"\n\\ \t\x01 🜁 </s>'


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("usage", [False, True])
async def test_the_short_way_sends_the_same_bytes(chunks: list[bytes], path: str, logprobs: bool, usage: bool) -> None:
    fields: dict[str, Any] = {"n": 2, "stream": True, "stream_options": {"include_usage": usage}, "seed": 1}
    if logprobs:
        fields |= {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    body = (chat if path == CHAT else text)(**fields)
    rig = Rig(says(SAYING))
    long_way = await rig.post(path, body)
    assert not chunks
    short_way = await post(rig, path, body)
    assert alike(short_way.text) == alike(long_way.text)
    assert short_way.headers["content-type"] == long_way.headers["content-type"]
    in_the_middle = 2 * (len(SAYING.encode()) - 2)  # the first tokens begin the answer, the last ones end it
    if logprobs:
        assert len(chunks) == in_the_middle
    else:
        assert 0 < len([chunk for chunk in chunks if chunk]) <= in_the_middle


async def test_http_1_0_knows_no_chunks(chunks: list[bytes]) -> None:
    rig = Rig(says(SAYING))
    async with rig.socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(http_post(TEXT, text(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert b"transfer-encoding" not in head.lower()
    *events, done = events_of(body.decode())
    assert "".join(event["choices"][0]["text"] for event in events) == SAYING
    assert done == "[DONE]"
    assert not chunks


async def test_a_slow_reader_gets_everything_in_order(chunks: list[bytes]) -> None:
    num_deltas, block = 600, "x" * 20_000

    def script(request: GenerateRequest) -> Iterator[Step]:
        for i in range(num_deltas):
            yield TokenDelta(request.request_id, [120], f"{i}:{block};")
        yield from deltas_for(request, "end")

    rig = Rig(script)
    async with rig.socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port, limit=1)
        writer.write(http_post(TEXT, text(stream=True)))
        data = await reader.read(1)
        while rig.engine.num_open:  # the engine says all it has to say to a client that reads nothing
            await asyncio.sleep(0.001)
        while not data.endswith(b"0\r\n\r\n"):
            data += await reader.read(1 << 20)
        writer.close()
    numbers = [int(n) for n in re.findall(rb"(\d+):x+;", data)]
    assert numbers == list(range(num_deltas))
    assert data.count(b"x" * len(block)) == num_deltas
    assert 0 < len(chunks) < num_deltas, "both ways were taken"


async def test_after_a_pause_the_short_way_is_taken_again(chunks: list[bytes]) -> None:
    read, block = asyncio.Event(), "x" * 1_000_000

    def script(request: GenerateRequest) -> Iterator[Step]:
        for _ in range(20):
            yield TokenDelta(request.request_id, [120], block)
        yield read
        yield from deltas_for(request, "abc", [1, 2, 3])

    async with Rig(script).socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(http_post(TEXT, text(stream=True)))
        await reader.read(1)
        await asyncio.sleep(0)
        num_bytes = 0
        while num_bytes < 20 * len(block):
            num_bytes += len(await reader.read(1 << 20))
        before = len(chunks)
        read.set()
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            rest += await reader.read(1 << 20)
        writer.close()
    assert before < 20
    assert len(chunks) > before


class Breaking(ByteVocabulary):
    """Has no string for one token, which no real vocabulary is without."""

    def token_bytes(self, token_id: int) -> bytes:
        if token_id == ord("!"):
            raise KeyError(token_id)
        return super().token_bytes(token_id)


async def test_what_breaks_in_the_short_way_ends_that_stream_alone() -> None:
    never, good = asyncio.Event(), asyncio.Event()

    def script(request: GenerateRequest) -> Iterator[Step]:
        broken = request.sampling.logprobs is not None
        yield from list(deltas_for(request, "a!bc" if broken else "abcd", [1, 2, 3]))[:3]
        yield never if broken else good
        yield from list(deltas_for(request, "abcd", [1, 2, 3]))[3:]

    rig = Rig(script, vocabulary=Breaking())
    async with rig.socket() as (host, port), httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
        other = asyncio.create_task(client.post(TEXT, json=text(stream=True)))
        response = await client.post(CHAT, json=chat(stream=True, logprobs=True))
        good.set()
        assert events_of((await other).text)[-1] == "[DONE]"
    first, error = events_of(response.text)
    assert first["choices"][0]["delta"]["content"] == "a"
    assert error["error"]["type"] == "server_error"
    broken = [request.request_id for request in rig.engine.submitted if request.sampling.logprobs is not None]
    assert rig.engine.aborted == broken


@pytest.mark.parametrize("end", ["failure", "death"])
async def test_ends_that_are_errors(chunks: list[bytes], end: str) -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        yield from list(deltas_for(request, "abcd", [1, 2, 3]))[:3]
        yield failure(request, "numerical_error", "Not a number.") if end == "failure" else Die()

    *events, error = events_of((await post(Rig(script), CHAT, chat(stream=True))).text)
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["a", "b", "c"]
    assert error["error"]["code"] == ("numerical_error" if end == "failure" else "engine_restarted")
    assert len(chunks) == 2


async def test_silence_after_the_short_way_is_filled_and_the_stream_goes_on(chunks: list[bytes]) -> None:
    go_on = asyncio.Event()

    def script(request: GenerateRequest) -> Iterator[Step]:
        yield from list(deltas_for(request, "abcdef", range(6)))[:3]
        yield go_on
        yield from list(deltas_for(request, "abcdef", range(6)))[3:]

    async with Rig(script, keep_alive_s=0.01).socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(http_post(TEXT, text(stream=True)))
        await reader.readuntil(b": keep-alive\n\n")
        await reader.readuntil(b": keep-alive\n\n")
        go_on.set()
        rest = await reader.readuntil(b"0\r\n\r\n")
        writer.close()
    texts = [json.loads(data)["choices"][0]["text"] for data in re.findall(rb"data: (\{.*\})", rest)]
    assert texts == ["d", "e", "f"]
    assert len(chunks) == 4


async def test_every_token_puts_off_the_time_out(chunks: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []
    allow = Patience.allow
    monkeypatch.setattr(Patience, "allow", lambda self, seconds: (allowed.append(seconds), allow(self, seconds))[1])
    await post(Rig(says("x" * 50), keep_alive_s=1234), TEXT, text(stream=True))
    assert len(chunks) == 48
    assert allowed.count(1234) >= len(chunks)


async def test_an_error_before_the_stream_is_an_http_error() -> None:
    rig = Rig(lambda request: [failure(request, "invalid_value", "No.", "prompt")])
    assert error_of(await post(rig, TEXT, text(stream=True)), 400)["message"] == "No."
