"""The server's view of an engine: submit requests, read token deltas, abort, ask how it is.

``EngineClient`` is what routes are written against. ``bridge.EngineBridge`` implements it over the engine process;
tests implement it in a few lines. All of it runs on one event loop.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.errors import EngineDead, UpwellError
from engine.types import EngineReady, EngineStats, GenerateRequest, TokenDelta


class EngineState(enum.StrEnum):
    """Where the engine is in its life."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    HUNG = "hung"
    """The process lives but has said nothing for too long."""
    DRAINING = "draining"
    STOPPED = "stopped"


class EngineUnavailable(UpwellError):
    """The engine cannot take a request now.

    Attributes:
        retry_after_s: when it is worth trying again.
    """

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TokenStream:
    """Deltas of one or more requests, in order of arrival: ``async for deltas in stream``.

    Each item is the non-empty list of all deltas that have come since the last one, so a slow reader gets fewer,
    longer lists. The stream ends after every request's last delta, and raises ``EngineDead`` if the engine ends first.
    """

    def __init__(self, request_ids: Sequence[str], abort: Callable[[str], None]) -> None:
        self._open = set(request_ids)
        self._abort = abort
        self._pending: list[TokenDelta] = []
        self._failure: EngineDead | None = None
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, delta: TokenDelta) -> None:
        """Take a delta from the engine; called by the engine client."""
        self._pending.append(delta)
        if delta.finish is not None:
            self._open.discard(delta.request_id)
        self._wake()

    def fail(self, failure: EngineDead) -> None:
        """The engine died; what has arrived is still delivered, then ``failure`` is raised."""
        self._failure = failure
        self._wake()

    def close(self) -> None:
        """Abort whatever is still open. Safe to call twice."""
        still_open, self._open = self._open, set()
        if self._failure is None:
            for request_id in still_open:
                self._abort(request_id)
        self._pending.clear()

    def __aiter__(self) -> TokenStream:
        """A stream is its own iterator."""
        return self

    async def __anext__(self) -> list[TokenDelta]:
        """All deltas since the last call.

        Raises:
            EngineDead: the engine ended before every request did.
        """
        while not self._pending:
            if not self._open:
                raise StopAsyncIteration
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        deltas, self._pending = self._pending, []
        return deltas

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineClient(Protocol):
    """An engine, as the routes see it."""

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""

    @property
    def ready(self) -> EngineReady | None:
        """What the engine said when it became ready; kept over a restart, None before the first."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics. Counters start again at zero with a new engine."""

    @property
    def restarts(self) -> int:
        """How often a new engine had to be started."""

    def submit(self, requests: Sequence[GenerateRequest]) -> TokenStream:
        """Hand requests over; their deltas come back on one stream.

        Raises:
            EngineUnavailable: the engine is not ready.
        """
