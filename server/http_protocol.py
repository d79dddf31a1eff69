"""uvicorn's HTTP/1.1 connection, with an end to its patience, and a short way for what is sent at every token.

uvicorn waits for ever for the head of a request: a few thousand silent connections would use up the server's
descriptors. Here a connection must deliver a whole head within ``HEAD_TIMEOUT_S``, or it is closed.

Sending a piece of a body the ASGI way takes longer than making it. ``write_chunk`` sends one without a coroutine, where
nothing has to be waited for.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_TIMEOUT_S = 10.0

_STATE = "upwell.connection"


class HttpConnection(H11Protocol):
    """One connection. Between requests uvicorn's own keep-alive time-out applies."""

    _head_timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, _STATE: self}, _loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head that has begun, not for anything once it is complete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head_timer is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def takes_chunks(self) -> bool:
        """Whether ``write_chunk`` may be called: a body is being sent, the client reads, and it knows of chunks."""
        conn = self.conn
        return not self.flow.write_paused and conn.our_state is h11.SEND_BODY and conn.their_http_version == b"1.1"

    def write_chunk(self, data: bytes) -> None:
        """Send a piece, not empty, of a body whose response has no Content-Length."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def connection_of(scope: Scope) -> HttpConnection | None:
    """The connection that a request came on; None where another ASGI server runs the app."""
    connection = scope.get("state", {}).get(_STATE)
    return connection if isinstance(connection, HttpConnection) else None
