"""Streams: how an answer comes in pieces, and every way in which one can end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from engine.types import GenerateRequest, TokenDelta
from server import sse
from tests.server.rig import CHAT, TEXT, AsgiCall, Rig, chat, error_of, events_of, text
from tests.support.fake_engine import Die, FakeEngine, Step, deltas_for, failure, says


async def test_a_chat_stream() -> None:
    response = await Rig(says("Hey")).post(CHAT, chat("Hi", stream=True))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events_of(response.text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "H"},
        {"content": "e"},
        {"content": "y"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_usage_comes_last_and_only_if_asked_for() -> None:
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events_of((await Rig(says("Hey")).post(CHAT, chat("Hi", **fields))).text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert {chunk["usage"] for chunk in chunks} == {None}
    fields["stream_options"]["include_usage"] = False
    events = events_of((await Rig(says("Hey")).post(CHAT, chat("Hi", **fields))).text)
    assert all("usage" not in event for event in events[:-1])


async def test_an_empty_answer_has_its_role_and_its_end() -> None:
    *chunks, done = events_of((await Rig(says("")).post(CHAT, chat(stream=True))).text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}]
    assert chunks[0]["choices"][0]["finish_reason"] == "stop"


async def test_nothing_is_sent_before_the_first_delta() -> None:
    begin = asyncio.Event()

    def script(request: GenerateRequest) -> Iterator[Step]:
        yield begin
        yield from deltas_for(request, "x")

    call = AsgiCall(Rig(script, keep_alive_s=0.001), CHAT, chat(stream=True))
    await asyncio.sleep(0.02)
    assert call.sent.empty()
    begin.set()
    await call.task
    assert (await call.sent.get())["status"] == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("numerical_error", 500, "server_error"),
        ("context_length_exceeded", 400, "invalid_request_error"),
        ("invalid_value", 400, "invalid_request_error"),
        ("something_new", 500, "server_error"),
    ],
)
async def test_a_failure_before_the_first_token_is_an_http_error(
    stream: bool, code: str, status: int, kind: str
) -> None:
    rig = Rig(lambda request: [failure(request, code, "It went wrong.", "messages")])
    error = error_of(await rig.post(CHAT, chat(stream=stream)), status)
    assert error == {"message": "It went wrong.", "type": kind, "param": "messages", "code": code}


async def test_a_failure_inside_a_stream_is_its_last_event() -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        yield TokenDelta(request.request_id, [72], "H")
        yield failure(request, "numerical_error", "Not a number.")

    response = await Rig(script).post(CHAT, chat(stream=True))
    assert response.status_code == 200
    chunk, error = events_of(response.text)
    assert chunk["choices"][0]["finish_reason"] is None
    assert error == {
        "error": {"message": "Not a number.", "type": "server_error", "param": None, "code": "numerical_error"}
    }


async def test_one_failed_choice_ends_all_of_them_and_the_rest_is_aborted() -> None:
    never = asyncio.Event()

    def script(request: GenerateRequest) -> Iterator[Step]:
        yield TokenDelta(request.request_id, [72], "H")
        if request.sampling.choice == 1:
            yield failure(request, "numerical_error", "Not a number.")
        yield never

    rig = Rig(script)
    *_, error = events_of((await rig.post(CHAT, chat(stream=True, n=3))).text)
    assert error["error"]["code"] == "numerical_error"
    assert len(rig.engine.aborted) == 2
    assert rig.engine.num_open == 0


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_engine_dies_before_the_first_token(path: str, stream: bool) -> None:
    body = (chat if path == CHAT else text)(stream=stream)
    response = await Rig(lambda request: [Die()]).post(path, body)
    error = error_of(response, 503)
    assert (error["type"], error["code"]) == ("service_unavailable_error", "engine_restarted")
    assert 1 <= int(response.headers["retry-after"]) <= 30


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_the_engine_dies_inside_a_stream(path: str) -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        yield TokenDelta(request.request_id, [72], "H")
        yield Die()

    rig = Rig(script)
    response = await rig.post(path, (chat if path == CHAT else text)(stream=True))
    assert response.status_code == 200
    chunk, error = events_of(response.text)
    assert chunk["choices"][0]["finish_reason"] is None
    assert error["error"]["code"] == "engine_restarted"
    assert rig.engine.aborted == [], "a dead engine is not asked to abort"


async def test_the_engine_dies_inside_a_whole_answer() -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        yield TokenDelta(request.request_id, [72], "H")
        yield Die()

    assert error_of(await Rig(script).post(CHAT, chat()), 503)["code"] == "engine_restarted"


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_an_engine_that_is_not_ready(path: str) -> None:
    rig = Rig()
    rig.engine.state = type(rig.engine.state).RESTARTING
    response = await rig.post(path, (chat if path == CHAT else text)(stream=True))
    assert error_of(response, 503)["code"] == "engine_unavailable"
    assert response.headers["retry-after"] == "7"
    response = await Rig(engine=FakeEngine(ready=None)).post(path, (chat if path == CHAT else text)())
    assert error_of(response, 503)["code"] == "engine_unavailable"
    assert "retry-after" in response.headers


async def test_a_defect_inside_a_stream_says_only_the_request_id(caplog: pytest.LogCaptureFixture) -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        yield TokenDelta(request.request_id, [72], "H")
        yield TokenDelta(request.request_id, ["secret"], "i", logprobs=[3])  # type: ignore[list-item]

    response = await Rig(script).post(CHAT, chat("secret", stream=True, logprobs=True), headers={"x-request-id": "r-1"})
    _, error = events_of(response.text)
    assert error["error"]["code"] == "internal_error"
    assert "r-1" in error["error"]["message"]
    assert "secret" not in response.text + caplog.text
    assert "id=r-1 internal error AttributeError in" in caplog.text


async def test_a_quiet_stream_gets_comments() -> None:
    go_on = asyncio.Event()

    def script(request: GenerateRequest) -> Iterator[Step]:
        yield TokenDelta(request.request_id, [72], "H")
        yield go_on
        yield from deltas_for(request, "i")

    call = AsgiCall(Rig(script, keep_alive_s=0.001), CHAT, chat(stream=True))
    assert (await call.next_body()).startswith(b"data: ")
    assert await call.next_body() == b": keep-alive\n\n"
    assert await call.next_body() == b": keep-alive\n\n"
    go_on.set()
    await call.task
    rest = b"".join([(await call.sent.get()).get("body", b"") for _ in range(call.sent.qsize())])
    events = [event for event in events_of(rest.decode()) if event != "[DONE]"]
    assert [event["choices"][0]["delta"] for event in events] == [{"content": "i"}]


async def test_deltas_that_come_together_are_sent_together() -> None:
    come = asyncio.Event()

    def script(request: GenerateRequest) -> Iterator[Step]:
        if request.sampling.choice == 0:
            yield come
            come.clear()
        else:
            yield TokenDelta(request.request_id, [97], "a")
            come.set()
        yield from deltas_for(request, "b")

    call = AsgiCall(Rig(script), CHAT, chat(stream=True, n=2))
    await call.task
    sent = [call.sent.get_nowait() for _ in range(call.sent.qsize())]
    bodies = [message["body"] for message in sent if message["type"] == "http.response.body"]
    assert max(body.count(b"data: {") for body in bodies) == 2
    assert [body.count(b"data: [DONE]") for body in bodies].count(1) == 1


@pytest.mark.parametrize("size", [1, 200, 1 << 18])
async def test_what_has_waited_is_sent_in_portions(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is lost or comes twice, however much goes at a time."""
    monkeypatch.setattr(sse, "PORTION_BYTES", size)
    response = await Rig(says("x" * 50)).post(CHAT, chat(stream=True, n=3, max_tokens=50))
    contents = {0: "", 1: "", 2: ""}
    for event in events_of(response.text)[:-1]:
        (choice,) = event["choices"]
        contents[choice["index"]] += choice["delta"].get("content", "")
    assert set(contents.values()) == {"x" * 50}
    events = [b"%d;" % number * (1 + number % 7) for number in range(500)]
    portions = list(sse._in_portions(events))
    assert b"".join(portions) == b"".join(events)
    assert all(size <= len(portion) < size + max(map(len, events)) for portion in portions[:-1])
