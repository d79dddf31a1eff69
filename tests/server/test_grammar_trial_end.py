"""The processes in which grammars are tried out end with the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.errors import InvalidRequest
from server.grammar.forms import of_schema
from server.grammar.trial import GrammarTrial

SLOW = of_schema({"allOf": [{"pattern": f"a{{{i}}}.*b.{{{i}}}"} for i in range(29)]})


def is_alive(pid):
    return Path(f"/proc/{pid}").exists()


async def test_a_child_that_waits_ends():
    trial = GrammarTrial()
    assert await trial.verdict(of_schema(True), "x") == ""
    (child,) = trial._idle
    assert is_alive(child.pid)
    await trial.close()
    assert not is_alive(child.pid)


@pytest.fixture
def watched(monkeypatch):
    """A trial, and the children that it has had."""
    trial = GrammarTrial(seconds=1.0)
    children = []
    new_child = trial._new_child

    async def noted():
        children.append(await new_child())
        return children[-1]

    monkeypatch.setattr(trial, "_new_child", noted)
    return trial, children


async def test_a_child_at_work_ends_after_it(watched):
    trial, children = watched
    asking = asyncio.create_task(trial.verdict(of_schema(True), "x"))
    while not children:
        await asyncio.sleep(0)
    await trial.close()
    assert await asking == ""
    assert not is_alive(children[0].pid)


async def test_a_child_that_takes_too_long_ends(watched):
    trial, children = watched
    with pytest.raises(InvalidRequest):
        await trial.verdict(SLOW, "x")
    assert not is_alive(children[0].pid)


async def test_a_child_whose_client_leaves_ends(watched):
    trial, children = watched
    asking = asyncio.create_task(trial.verdict(SLOW, "x"))
    while not children:
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not is_alive(children[0].pid)
