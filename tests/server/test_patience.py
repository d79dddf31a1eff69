"""A time-out that can be moved."""

from __future__ import annotations

import asyncio

import pytest

from server.patience import Patience


async def waiting(*allowed_s: float) -> None:
    """Wait for what never comes, with these calls of ``allow``."""
    async with Patience() as patience:
        for seconds in allowed_s:
            patience.allow(seconds)
        await asyncio.Event().wait()


async def test_it_ends() -> None:
    with pytest.raises(TimeoutError):
        await waiting(0.001)


async def test_an_earlier_deadline_takes_the_place_of_a_later_one() -> None:
    with pytest.raises(TimeoutError):
        await waiting(1000, 0.001)


async def test_a_later_deadline_takes_the_place_of_an_earlier_one() -> None:
    async with Patience() as patience:
        for _ in range(5):
            patience.allow(0)
            patience.allow(1000)
            await asyncio.sleep(0.001)  # the timer of the first deadline fires meanwhile


async def test_the_last_of_several_deadlines_ends_it() -> None:
    with pytest.raises(TimeoutError):
        await waiting(0, 1000, 0.001)


async def test_without_a_deadline_it_waits() -> None:
    async with Patience():
        await asyncio.sleep(0.001)


async def test_a_cancellation_from_outside_stays_one() -> None:
    task = asyncio.create_task(waiting(1000))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_outside_wins_over_the_time_out() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting(0)
    assert task.uncancel() == 0


async def fails() -> None:
    """Fail within a deadline."""
    async with Patience() as patience:
        patience.allow(1000)
        raise KeyError


async def test_other_errors_pass() -> None:
    with pytest.raises(KeyError):
        await fails()
