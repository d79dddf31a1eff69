"""Requests that end when the time of ``X-Request-Timeout`` is up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from engine.errors import InvalidRequest
from engine.types import GenerateRequest, TokenDelta
from server.deadline import MAX_TIMEOUT_S, Deadline, timeout_of
from server.grammar.trial import GrammarTrial
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, events_of, text
from tests.server.test_disconnect import Waiting, ended, http_post
from tests.support.fake_engine import BytePrompts, Step, says

SOON = {"X-Request-Timeout": "0.05"}
"""Long enough for a request to reach the fake engine, which is what these tests end it in."""
LATE = {"X-Request-Timeout": "60"}
ERROR = {
    "message": "The answer was not complete within the 0.05 s of X-Request-Timeout; it was ended. "
    "Allow more time, or ask for less.",
    "type": "timeout_error",
    "param": None,
    "code": "deadline_exceeded",
}


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    """The body of either API."""
    return (chat if path == CHAT else text)(**fields)


def all_was_aborted(rig: Rig) -> bool:
    """Whether the engine has nothing left of what it was given."""
    given = {request.request_id for request in rig.engine.submitted}
    return bool(given) and set(rig.engine.aborted) == given and rig.engine.num_open == 0


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("stream", "first_token"), [(True, False), (False, False), (False, True)])
async def test_before_the_first_byte(
    path: str, stream: bool, first_token: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "upwell")
    rig = Rig(Waiting(first_token=first_token), max_waiting=2)
    response = await rig.post(path, body_of(path, stream=stream, n=2), headers=SOON)
    assert error_of(response, 504) == ERROR
    assert 1 <= int(response.headers["retry-after"]) <= 4
    assert all_was_aborted(rig)
    assert "status=504 error=deadline_exceeded" in caplog.text
    assert (await ended(rig))["abort"] == 2
    rig.engine.script = says("again")
    assert (await rig.post(path, body_of(path, n=2))).status_code == 200, "the places are free"


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_amid_a_stream(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "upwell")
    rig = Rig(Waiting(first_token=True), max_waiting=1)
    response = await rig.post(path, body_of(path, stream=True), headers=SOON)
    assert response.status_code == 200
    first, last = events_of(response.text)
    assert first["choices"]
    assert last == {"error": ERROR}
    assert all_was_aborted(rig)
    assert "status=200 error=deadline_exceeded" in caplog.text
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_amid_a_stream_on_a_socket() -> None:
    rig = Rig(Waiting(first_token=True))
    async with rig.socket() as (host, port), httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
        response = await client.post(CHAT, json=chat(stream=True), headers=SOON)
        assert events_of(response.text)[-1] == {"error": ERROR}
        assert all_was_aborted(rig)
        rig.engine.script = says("again")
        assert (await client.post(CHAT, json=chat())).status_code == 200, "the connection goes on"


async def test_amid_the_body_on_a_socket() -> None:
    rig = Rig()
    async with rig.socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        head, _, body = http_post(CHAT, chat()).partition(b"\r\n\r\n")
        writer.write(head + b"\r\nX-Request-Timeout: 0.05\r\n\r\n" + body[:-5])
        assert (await reader.readline()).split()[1] == b"504"
        writer.close()
    assert rig.engine.submitted == []


async def test_while_the_prompt_is_tokenised() -> None:
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(BytePrompts):
        def text(self, prompt: str, *, add_special: bool = True) -> list[int]:
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            return [1]

    rig = Rig(prompts=Slow(), max_chars_per_token=1000)
    response = await rig.post(TEXT, text("x" * 30_000), headers=SOON)
    go_on.set()
    assert error_of(response, 504) == ERROR
    assert rig.engine.submitted == []


async def test_while_a_grammar_is_tried() -> None:
    class Slow(GrammarTrial):
        async def verdict(self, grammar: str, param: str) -> str:
            await asyncio.Event().wait()
            raise AssertionError("it waits for ever")

    rig = Rig(grammars=Slow(), max_waiting=1)
    for _ in range(2):
        response = await rig.post(TEXT, text(response_format={"type": "json_object"}), headers=SOON)
        assert error_of(response, 504) == ERROR
    assert rig.engine.submitted == []


@pytest.mark.parametrize("stream", [True, False])
async def test_time_enough(stream: bool) -> None:
    plain = await Rig(says("abc")).post(TEXT, text(stream=stream))
    timed = await Rig(says("abc")).post(TEXT, text(stream=stream), headers=LATE)
    assert timed.status_code == 200
    assert len(timed.content) == len(plain.content)


async def test_a_client_that_does_not_read_keeps_nothing_of_the_engine() -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        while True:
            yield TokenDelta(request.request_id, [120] * 1000, "x" * 1_000)

    rig = Rig(script, max_waiting=1, write_stall_s=60)
    async with rig.socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port, limit=1)
        head, _, body = http_post(CHAT, chat(stream=True)).partition(b"\r\n\r\n")
        writer.write(head + b"\r\nX-Request-Timeout: 0.2\r\n\r\n" + body)
        await reader.read(1)
        while rig.engine.num_open or not rig.engine.submitted:
            await asyncio.sleep(0.001)
        rig.engine.script = says("next")
        assert (await rig.post(CHAT, chat())).status_code == 200, "its place is free"
        writer.transport.abort()
    first, _ = rig.engine.submitted
    assert rig.engine.aborted == [first.request_id]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before(stream: bool) -> None:
    script = Waiting(first_token=False)
    rig = Rig(script)
    async with rig.socket() as (host, port):
        _, writer = await asyncio.open_connection(host, port)
        head, _, body = http_post(CHAT, chat(stream=stream)).partition(b"\r\n\r\n")
        writer.write(head + b"\r\nX-Request-Timeout: 60\r\n\r\n" + body)
        await script.begun.wait()
        writer.transport.abort()
        while rig.engine.num_open:
            await asyncio.sleep(0.001)
    assert all_was_aborted(rig)


BAD = [
    "",
    "0",
    "0.0",
    "-1",
    "nan",
    "inf",
    "1e3",
    "+1",
    ".5",
    "5.",
    "1,5",
    "5s",
    "soon",
    "١",
    "86400.1",
    "100000",
    "1_0",
]


@pytest.mark.parametrize("given", BAD)
async def test_what_is_no_time(given: str) -> None:
    rig = Rig()
    error = error_of(await rig.post(CHAT, chat(), headers=[("X-Request-Timeout", given.encode())]), 400)
    assert (error["param"], error["code"]) == ("X-Request-Timeout", "invalid_value")
    assert "X-Request-Timeout must be" in error["message"]
    assert rig.engine.submitted == []


async def test_two_times() -> None:
    error = error_of(await Rig().post(CHAT, chat(), headers=[*LATE.items(), *LATE.items()]), 400)
    assert error["param"] == "X-Request-Timeout"


@given(st.text("0123456789.eE+-_ naif", max_size=12))
def test_any_header_is_a_time_or_refused(given: str) -> None:
    try:
        seconds = timeout_of(Headers({"X-Request-Timeout": given}))
    except InvalidRequest:
        return
    assert seconds == float(given)
    assert 0 < seconds <= MAX_TIMEOUT_S


async def exchange(app: Any) -> list[Message]:
    """What the layer sends around ``app`` when time is up."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is to be received")

    scope = {"type": "http", "method": "POST", "headers": [(b"x-request-timeout", b"0.01")]}
    await Deadline(app, write_stall_s=1.0)(scope, receive, send)
    return sent


async def test_a_complete_response_stays_so() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole", "more_body": False})
        await asyncio.Event().wait()

    assert [message.get("body") for message in await exchange(app)] == [None, b"whole"]


async def test_a_time_out_of_the_apps_own_is_its_own() -> None:
    async def app(*_: Any) -> None:
        raise TimeoutError("another")

    with pytest.raises(TimeoutError, match="another"):
        await exchange(app)


async def test_the_sdk_sees_a_time_out() -> None:
    rig = Rig(Waiting(first_token=False))
    async with rig.socket() as (host, port):
        client = openai.AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(
                model=chat()["model"], messages=[{"role": "user", "content": "Hi"}], extra_headers=SOON
            )
        await client.close()
    assert caught.value.status_code == 504
    assert json.loads(caught.value.response.text) == {"error": ERROR}
