"""Answers as server-sent events: framing, keep-alive, and errors inside a stream.

Called by the routes. Invariants: HTTP 200 is sent only once there is something to show, so an early failure is a real
HTTP error; ``data: [DONE]`` ends complete answers and nothing else; after an error event nothing follows.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
from starlette.types import Scope, Send

from engine.types import TokenDelta
from server.disconnect import ClientDisconnected
from server.engine_client import TokenStream
from server.generation import AnswerFormat, CallProgress
from server.http_protocol import connection_of
from server.patience import Patience

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

EVENT_STREAM = "text/event-stream; charset=utf-8"

_HEADERS = [
    (b"content-type", EVENT_STREAM.encode()),
    (b"x-accel-buffering", b"no"),
]

PORTION_BYTES = 1 << 18
"""Events that have been waited for are encoded and written so much at a time."""

_STALLED = "The client has stopped reading."

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class StreamLimits:
    """Attributes as in ``context.ServerContext``."""

    keep_alive_s: float
    write_stall_s: float


def event(data: msgspec.Struct) -> bytes:
    """One event."""
    return b"data: %b\n\n" % _encode(data)


class EventWriter:
    """Sends the events of one answer; the response begins with the first of them.

    Attributes:
        started: whether HTTP 200 has been sent.
        writing: whether events are being sent at this moment.
    """

    def __init__(self, scope: Scope, send: Send, *, started: bool = False) -> None:
        self._connection = connection_of(scope)
        self._send = send
        self.started = started
        self.writing = False

    @property
    def can_write_now(self) -> bool:
        """Whether ``write_now`` may be called: the response has begun, and nothing is in the way of its next event."""
        return self._connection is not None and self._connection.takes_chunks

    def write_now(self, events: bytes) -> None:
        """``write`` without waiting; only where ``can_write_now`` says so."""
        if events and self._connection is not None:
            self._connection.write_chunk(events)

    async def write(self, events: bytes, *, last: bool = False) -> None:
        """Send ``events``, and with ``last`` the end of the response; waits for as long as the client does not read."""
        self.writing = True
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})
        self.writing = False

    async def write_within(self, seconds: float, events: bytes, *, last: bool = False) -> None:
        """``write``, but for a client that has stopped reading.

        Raises:
            ClientDisconnected: the client has not read for ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.write(events, last=last)
        except TimeoutError:
            raise ClientDisconnected(_STALLED) from None


async def stream_answer(
    deltas: TokenStream,
    progress: CallProgress,
    answer_format: AnswerFormat,
    writer: EventWriter,
    *,
    include_usage: bool,
    limits: StreamLimits,
) -> None:
    """Send every delta as it comes, and comments while none does.

    Raises:
        UpwellError: the engine died or a choice failed; an error event is for the caller to send.
        ClientDisconnected: the client does not read.
    """
    while True:
        try:
            async with Patience() as patience:
                await _pump(deltas, progress, answer_format, writer, patience, limits)
            break
        except TimeoutError:
            if writer.writing:
                raise ClientDisconnected(_STALLED) from None
            await writer.write_within(limits.write_stall_s, KEEP_ALIVE)
    tail = event(answer_format.usage_chunk(progress.usage())) if include_usage else b""
    await writer.write_within(limits.write_stall_s, tail + DONE, last=True)


async def _pump(
    deltas: TokenStream,
    progress: CallProgress,
    answer_format: AnswerFormat,
    writer: EventWriter,
    patience: Patience,
    limits: StreamLimits,
) -> None:
    """From the engine to the client until the answer is complete; nothing is lost if it is cancelled while waiting.

    While the client keeps up, events are written in the callback that brings their delta: the loop below begins the
    answer, ends it, and takes over where the client has to be waited for.
    """

    def write_now(delta: TokenDelta) -> bool:
        if not writer.can_write_now:
            return False
        writer.write_now(_events(progress, answer_format, delta))
        patience.allow(limits.keep_alive_s)
        return True

    while True:
        patience.allow(limits.keep_alive_s if writer.started else math.inf)
        batch = await deltas.read(write_now)
        if not batch:
            return
        for events in _in_portions(_events(progress, answer_format, delta) for delta in batch):
            patience.allow(limits.write_stall_s)
            await writer.write(events)
            if len(events) >= PORTION_BYTES:  # others do not wait until all is encoded that this client had not read
                patience.allow(math.inf)
                await asyncio.sleep(0)


def _in_portions(events: Iterable[bytes]) -> Iterator[bytes]:
    """Events one after the other, some ``PORTION_BYTES`` at a time."""
    portion, size = [], 0
    for each in events:
        portion.append(each)
        size += len(each)
        if size >= PORTION_BYTES:
            yield b"".join(portion)
            portion, size = [], 0
    if size:
        yield b"".join(portion)


def _events(progress: CallProgress, answer_format: AnswerFormat, delta: TokenDelta) -> bytes:
    chunk = answer_format.chunk(progress.take(delta), delta)
    return b"" if chunk is None else event(chunk)
