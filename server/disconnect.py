"""Noticing that a client has left, for streaming and whole answers alike.

A server need not cancel a handler when its client leaves (uvicorn never does for whole answers), so the routes watch
``receive()`` themselves. Invariant: when the block is left, no task of it is left behind.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive

from engine.errors import UpwellError


class ClientDisconnected(UpwellError):
    """The client left before its answer was complete; nobody is there to be told."""


class DisconnectWatch:
    """``async with DisconnectWatch(receive)``: cancels the block when the client leaves.

    To be entered once the body has been read. Leaving the block because of the client raises ``ClientDisconnected``.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> None:
        """Begin to watch."""
        task = asyncio.current_task()
        if task is None:  # pragma: no cover - an async with block always runs in a task
            raise RuntimeError("DisconnectWatch must be entered in a task.")
        self._task = task
        self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching; turn the watcher's own cancellation into ``ClientDisconnected``."""
        self._watcher.cancel()
        if self._gone and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientDisconnected("The client left.") from None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()
