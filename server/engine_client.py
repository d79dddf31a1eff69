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

Shortcut = Callable[[TokenDelta], bool]
"""Takes a delta at once, or answers False."""


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
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._shortcut: Shortcut | None = None

    def feed(self, delta: TokenDelta) -> None:
        """Take a delta from the engine; called by the engine client."""
        if delta.finish is not None:
            self._open.discard(delta.request_id)
        elif self._shortcut is not None:
            try:
                if self._shortcut(delta):
                    return
            except Exception as error:  # this answer's own trouble: the engine client has others to feed
                self._failure = error
        self._pending.append(delta)
        self._wake()

    def fail(self, failure: EngineDead) -> None:
        """The engine died; what has arrived is still delivered, then ``failure`` is raised."""
        self._failure = failure
        self._open.clear()
        self._wake()

    def close(self) -> None:
        """Abort whatever is still open. Safe to call twice."""
        still_open, self._open = self._open, set()
        for request_id in still_open:
            self._abort(request_id)
        self._pending.clear()

    def __aiter__(self) -> TokenStream:
        """A stream is its own iterator."""
        return self

    async def __anext__(self) -> list[TokenDelta]:
        """All deltas since the last call. Raises as ``read`` does."""
        deltas = await self.read()
        if not deltas:
            raise StopAsyncIteration
        return deltas

    async def read(self, shortcut: Shortcut | None = None) -> list[TokenDelta]:
        """All deltas since the last call; none at the end of the stream.

        Args:
            shortcut: while this waits, offered each delta the moment it comes, unless it is a request's last. Those
                for which it answers True are dealt with, and this goes on waiting: no task is woken for them.

        Raises:
            EngineDead: the engine ended before every request did.
            Exception: what ``shortcut`` raised.
        """
        while not self._pending:
            if self._failure is not None:
                raise self._failure
            if not self._open:
                return []
            self._waiter, self._shortcut = asyncio.get_running_loop().create_future(), shortcut
            try:
                await self._waiter
            finally:
                self._shortcut = None
        deltas, self._pending = self._pending, []
        return deltas

    def _wake(self) -> None:
        self._shortcut = None  # what comes from now on follows what the reader was woken for
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
