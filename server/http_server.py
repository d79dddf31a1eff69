"""uvicorn's server, as ``upwell serve`` runs it: its limits, its connections, and how late its event loop is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from server.http_protocol import HttpConnection
from server.metrics import Histogram

MAX_HEADER_BYTES = 32 << 10
KEEP_ALIVE_S = 30
CLOSE_GRACE_S = 5
TICK_S = 0.5


class HttpServer(uvicorn.Server):
    """Serves an app until ``stop``.

    Args:
        loop_lag: told every ``TICK_S`` how long after its time the event loop came to a timer.
    """

    def __init__(self, app: ASGIApp, loop_lag: Histogram) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpConnection,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSE_GRACE_S,
            )
        )
        self._loop_lag = loop_lag
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Take no new connections; those with an answer under way have ``CLOSE_GRACE_S`` to end it."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Renew the Date header, and measure, until ``stop``; uvicorn's own looks whether to end ten times a second."""
        loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            due_s = loop.time() + TICK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._stopped.wait()
                    continue
            self._loop_lag.observe(max(0.0, loop.time() - due_s))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``run_server``: uvicorn would close the listener before open requests have ended."""
        yield
