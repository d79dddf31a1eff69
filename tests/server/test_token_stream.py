"""The stream between an engine client and the task that reads it."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import EngineDead
from engine.types import FinishReason, TokenDelta
from server.engine_client import TokenStream


def delta(text: str, finish: FinishReason | None = None) -> TokenDelta:
    """One delta of the one request."""
    return TokenDelta("r", [1], text, finish=finish)


async def waiting(stream: TokenStream, taken: list[str], refused: str = "") -> asyncio.Task[list[TokenDelta]]:
    """A reader that waits, whose shortcut takes all texts but those in ``refused``."""

    def shortcut(one: TokenDelta) -> bool:
        if one.text in refused:
            return False
        taken.append(one.text)
        return True

    task = asyncio.create_task(stream.read(shortcut))
    await asyncio.sleep(0)
    return task


async def test_what_the_shortcut_takes_wakes_nobody() -> None:
    stream, taken = TokenStream(["r"], lambda _: None), list[str]()
    reader = await waiting(stream, taken)
    stream.feed(delta("a"))
    stream.feed(delta("b"))
    await asyncio.sleep(0)
    assert not reader.done()
    stream.feed(delta("c", FinishReason.STOP))
    assert [one.text for one in await reader] == ["c"]
    assert taken == ["a", "b"]
    assert await stream.read() == []


async def test_what_follows_a_refused_delta_stays_behind_it() -> None:
    stream, taken = TokenStream(["r"], lambda _: None), list[str]()
    reader = await waiting(stream, taken, refused="b")
    for text in "abc":
        stream.feed(delta(text))
    assert [one.text for one in await reader] == ["b", "c"]
    assert taken == ["a"]


async def test_a_shortcut_ends_with_its_call() -> None:
    stream, taken = TokenStream(["r"], lambda _: None), list[str]()
    reader = await waiting(stream, taken)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    stream.feed(delta("a"))
    assert [one.text for one in await stream.read()] == ["a"]
    assert taken == []


async def test_a_dead_engine_is_told_after_what_it_said_and_not_asked_to_abort() -> None:
    aborted: list[str] = []
    stream = TokenStream(["r"], aborted.append)
    stream.feed(delta("a"))
    stream.fail(EngineDead("gone"))
    assert [one.text for one in await stream.read()] == ["a"]
    with pytest.raises(EngineDead):
        await stream.read()
    stream.close()
    assert aborted == []


async def test_closing_aborts_what_is_open_once() -> None:
    aborted: list[str] = []
    stream = TokenStream(["r"], aborted.append)
    stream.close()
    stream.close()
    assert aborted == ["r"]
