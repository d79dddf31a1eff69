"""Answers as server-sent events: framing, keep-alive, and errors inside a stream.

Called by the routes. Invariants: HTTP 200 is sent only once there is something to show, so an early failure is a real
HTTP error; ``data: [DONE]`` ends complete answers and nothing else; after an error event nothing follows.
"""

from __future__ import annotations

import asyncio

import msgspec
from starlette.types import Send

from engine.types import TokenDelta
from server.disconnect import ClientDisconnected
from server.engine_client import TokenStream
from server.generation import AnswerFormat, CallProgress

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]

_encode = msgspec.json.Encoder().encode


def event(data: msgspec.Struct) -> bytes:
    """One event."""
    return b"data: %b\n\n" % _encode(data)


class EventWriter:
    """Sends the events of one answer; the response begins with the first of them.

    Attributes:
        started: whether HTTP 200 has been sent.
    """

    def __init__(self, send: Send, *, write_stall_s: float) -> None:
        self._send = send
        self._write_stall_s = write_stall_s
        self.started = False

    async def write(self, events: bytes, *, last: bool = False) -> None:
        """Send ``events``, and with ``last`` the end of the response.

        Raises:
            ClientDisconnected: the client has not read for ``write_stall_s``.
        """
        try:
            async with asyncio.timeout(self._write_stall_s):
                if not self.started:
                    self.started = True
                    await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await self._send({"type": "http.response.body", "body": events, "more_body": not last})
        except TimeoutError:
            raise ClientDisconnected("The client has stopped reading.") from None


async def stream_answer(
    deltas: TokenStream,
    progress: CallProgress,
    answer_format: AnswerFormat,
    writer: EventWriter,
    *,
    include_usage: bool,
    keep_alive_s: float,
) -> None:
    """Send every delta as it comes.

    Raises:
        UpwellError: the engine died or a choice failed; an error event is for the caller to send.
        ClientDisconnected: the client does not read.
    """
    while (batch := await _next_batch(deltas, writer, keep_alive_s)) is not None:
        events = b"".join([_events(progress, answer_format, delta) for delta in batch])
        if events:
            await writer.write(events)
    tail = event(answer_format.usage_chunk(progress.usage())) if include_usage else b""
    await writer.write(tail + DONE, last=True)


def _events(progress: CallProgress, answer_format: AnswerFormat, delta: TokenDelta) -> bytes:
    chunk = answer_format.chunk(progress.take(delta), delta)
    return b"" if chunk is None else event(chunk)


async def _next_batch(deltas: TokenStream, writer: EventWriter, keep_alive_s: float) -> list[TokenDelta] | None:
    """The next deltas, or None after the last; comments are sent while there are none."""
    if not writer.started:
        return await anext(deltas, None)
    while True:
        try:
            async with asyncio.timeout(keep_alive_s):
                return await anext(deltas, None)
        except TimeoutError:
            await writer.write(KEEP_ALIVE)
