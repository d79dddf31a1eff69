"""A time-out that is cheap to move, for what happens at every token.

A stream needs two time-outs a token, and entering ``asyncio.timeout`` costs more than encoding the token. ``Patience``
is entered once, and moving its deadline is one assignment. Used by ``sse`` alone.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Patience:
    """``async with Patience() as patience``: the block ends with TimeoutError once ``allow`` was not called in time.

    The timer is only touched when it fires, or when a deadline comes to lie before it.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("Patience must be entered in a task.")
        self._loop = asyncio.get_running_loop()
        self._task = task
        self._num_cancels_before = task.cancelling()
        self._deadline_s = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._expired = False

    def allow(self, seconds: float) -> None:
        """From now on, ``seconds`` may pass before the next call."""
        self._deadline_s = self._loop.time() + seconds
        if self._deadline_s < self._timer_s:
            self._arm()

    async def __aenter__(self) -> Self:
        """The deadline is set by the first ``allow``."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the timer; turn its own cancellation into TimeoutError."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._expired:
            return
        ours_alone = self._task.uncancel() <= self._num_cancels_before
        if ours_alone and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = self._deadline_s
        self._timer = self._loop.call_at(self._timer_s, self._fire)

    def _fire(self) -> None:
        self._timer, self._timer_s = None, float("inf")
        if self._loop.time() < self._deadline_s:
            self._arm()
        else:
            self._expired = True
            self._task.cancel()
