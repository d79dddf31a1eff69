"""An end to a request that its client sets: ``X-Request-Timeout: SECONDS``.

The fourth layer of the app, below ``auth``. Time runs from when the head of the request has come, whatever it is then
spent on: the rest of the body, waiting, generating, a client that does not read. When it is up, the request is
cancelled as if its client had left (its places and blocks are free at once) and answered with ``DeadlineExceeded``:
before the first byte as an HTTP error, inside a stream as its last event. Invariant: a complete response stays so.
"""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import InvalidRequest
from server.envelope import record_of
from server.errors import DeadlineExceeded, answer_for
from server.sse import EVENT_STREAM, EventWriter, event

HEADER = "X-Request-Timeout"
MAX_TIMEOUT_S = 86_400
"""A day. What takes longer is no mistake of the server's to be caught by a deadline."""

_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")


class Deadline:
    """ASGI middleware; see the module. Only methods that do work take the header: POST."""

    def __init__(self, app: ASGIApp, *, write_stall_s: float) -> None:
        self._app = app
        self._write_stall_s = write_stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request within its time.

        Raises:
            InvalidRequest: the header is not a number of seconds.
            DeadlineExceeded: time is up. If a stream had begun, its error event has been sent.
            ClientDisconnected: and the client does not read that.
        """
        timeout_s = timeout_of(Headers(scope=scope)) if scope["type"] == "http" and scope["method"] == "POST" else None
        if timeout_s is None:
            await self._app(scope, receive, send)
            return
        response = _Response(send)
        try:
            async with asyncio.timeout(timeout_s) as timeout:
                await self._app(scope, receive, response.send)
        except TimeoutError:
            if not timeout.expired():
                raise
            if not response.is_complete:
                raise await self._ended(scope, response, timeout_s) from None

    async def _ended(self, scope: Scope, response: _Response, timeout_s: float) -> DeadlineExceeded:
        """The error, told to the reader of a stream."""
        error = DeadlineExceeded(timeout_s)
        if response.is_stream:
            told = event(answer_for(error, record_of(scope).request_id).body)
            await EventWriter(scope, response.send, started=True).write_within(self._write_stall_s, told, last=True)
        return error


class _Response:
    """What has been sent of a response. A message whose sending was cancelled was not sent: see ``http_protocol``."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_stream = False
        self.is_complete = False

    async def send(self, message: Message) -> None:
        """ASGI's ``send``."""
        await self._send(message)
        if message["type"] == "http.response.start":
            self.is_stream = Headers(raw=message["headers"]).get("content-type") == EVENT_STREAM
        else:
            self.is_complete = not message.get("more_body", False)


def timeout_of(headers: Headers) -> float | None:
    """Seconds that the request may take; None for any.

    Raises:
        InvalidRequest: not a number above 0, at most ``MAX_TIMEOUT_S``.
    """
    given = headers.getlist(HEADER)
    if not given:
        return None
    seconds = float(given[0]) if len(given) == 1 and _DECIMAL.fullmatch(given[0]) else 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"{HEADER} must be seconds as a decimal number above 0, {MAX_TIMEOUT_S} at most, such as 2.5.",
            param=HEADER,
        )
    return seconds
