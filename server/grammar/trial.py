"""Grammars tried out before the engine sees them: in a process that may be killed, with a limit on time and memory.

Built once by the command line, asked by the routes. Invariants: a grammar that takes too long or too much memory, or
the process with it, is refused to the request that sent it and to those that send the same; verdicts are kept, within
so many bytes of grammars.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import OrderedDict
from weakref import WeakValueDictionary

from engine.errors import InvalidRequest
from server.grammar.child import LENGTH

TRIAL_S = 5.0
TRIAL_BYTES = 512 << 20
PATIENCE = 3
"""How often its CPU time a child may take on a busy machine before it is killed."""
MAX_CHILDREN = 4
CACHE_BYTES = 64 << 20
ENTRY_BYTES = 256


class GrammarTrial:
    """Tries grammars out, several at a time; one child is kept for the next."""

    def __init__(self, seconds: float = TRIAL_S, num_bytes: int = TRIAL_BYTES) -> None:
        self._seconds, self._num_bytes = seconds, num_bytes
        self._places = asyncio.Semaphore(MAX_CHILDREN)
        self._idle: list[asyncio.subprocess.Process] = []
        self._verdicts: OrderedDict[str, str | None] = OrderedDict()
        self._kept_bytes = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._is_closed = False

    async def verdict(self, grammar: str, param: str) -> str:
        """What the library says against a grammar; empty if nothing.

        Raises:
            InvalidRequest: it takes too long or too much memory; ``param`` is to blame.
        """
        async with self._locks.setdefault(grammar, asyncio.Lock()):  # others who send the same wait for its verdict
            if grammar in self._verdicts:
                self._verdicts.move_to_end(grammar)
                said = self._verdicts[grammar]
            else:
                said = await self._tried(grammar)
        if said is None:
            raise InvalidRequest(
                f"The grammar of {param} takes more than {self._seconds:g} seconds or {self._num_bytes >> 20} MB to "
                "compile; make it simpler.",
                param=param,
                code="grammar_too_complex",
            )
        return said

    async def close(self) -> None:
        """End the children; one that is at work ends after it."""
        self._is_closed = True
        for child in self._idle:
            await _end(child)
        self._idle.clear()

    async def _tried(self, grammar: str) -> str | None:
        """What is said against it; None if the child did not live to say it.

        That is kept too, unless it may be the machine's doing: a child that got no processor, or was killed by others.
        """
        async with self._places:
            child = self._idle.pop() if self._idle else await self._new_child()
            said = await self._asked(child, grammar)
        if said is not None or child.returncode not in {-signal.SIGKILL, None}:
            self._keep(grammar, said)
        return said

    async def _asked(self, child: asyncio.subprocess.Process, grammar: str) -> str | None:
        try:
            async with asyncio.timeout(PATIENCE * self._seconds):
                said = await _ask(child, grammar)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            await _end(child)
            return None
        except BaseException:  # the client left, most likely: what the child would say next is for nobody
            await _end(child)
            raise
        if self._idle or self._is_closed:
            await _end(child)
        else:
            self._idle.append(child)
        return said

    async def _new_child(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "server.grammar.child", str(self._num_bytes), str(self._seconds),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def _keep(self, grammar: str, said: str | None) -> None:
        self._kept_bytes += ENTRY_BYTES + len(grammar) + len(said or "")
        self._verdicts[grammar] = said
        while self._kept_bytes > CACHE_BYTES and len(self._verdicts) > 1:
            oldest, its = self._verdicts.popitem(last=False)
            self._kept_bytes -= ENTRY_BYTES + len(oldest) + len(its or "")


async def _ask(child: asyncio.subprocess.Process, grammar: str) -> str:
    if child.stdin is None or child.stdout is None:
        raise ConnectionError
    text = grammar.encode()
    child.stdin.write(LENGTH.pack(len(text)) + text)
    await child.stdin.drain()
    (length,) = LENGTH.unpack(await child.stdout.readexactly(LENGTH.size))
    return (await child.stdout.readexactly(length)).decode()


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # not its own kill(), which would reap it before the loop does
            os.kill(child.pid, signal.SIGKILL)
    await child.wait()
