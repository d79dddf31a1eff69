"""The asyncio side of the engine process: start it, talk to it, watch it, start it anew.

The link is one end of a socket pair whose other end the engine inherits, so no other process can connect to either.
When the engine ends, every open stream raises ``EngineDead`` and a new engine is started, at once the first time and
then after growing pauses. An engine that says nothing for ``silence_limit_s`` is taken for hung and killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from engine.config import EngineConfig
from engine.errors import EngineDead, ModelError
from engine.types import (
    Abort,
    EngineFailed,
    EngineReady,
    EngineStats,
    GenerateRequest,
    Inbound,
    LoadProgress,
    Outbound,
    StepOutput,
)
from engine.wire import FrameReader, encode_frame
from server.engine_client import EngineState, EngineUnavailable, TokenStream

MAX_PAUSE_S = 30.0
STEADY_AFTER_S = 60.0
"""An engine that lived this long was healthy: the next restart is immediate again."""
STOP_GRACE_S = 5.0
LOADING_PATIENCE = 4
"""How many times the silence limit an engine may be silent while it loads; every tensor laid out counts as a word."""

log = logging.getLogger("upwell.bridge")


class EngineBridge:
    """Implements ``EngineClient`` over an engine process.

    Args:
        config: what the engine loads.
        silence_limit_s: silence after which an engine is taken for hung.
        environment: the engine's environment variables; None gives it ours.
        on_progress: told how far the loading of weights has come.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        silence_limit_s: float,
        environment: Mapping[str, str] | None = None,
        on_progress: Callable[[LoadProgress], None] = lambda _: None,
    ) -> None:
        self.state = EngineState.LOADING
        self.ready: EngineReady | None = None
        self.stats = EngineStats()
        self.restarts = 0
        self._draining = False
        self._config = config
        self._silence_limit_s = silence_limit_s
        self._environment = environment
        self._on_progress = on_progress
        self._streams: dict[str, TokenStream] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._link: _Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._started: asyncio.Future[EngineReady] | None = None
        self._failure: EngineFailed | None = None

    async def start(self) -> EngineReady:
        """Start the engine and its supervision; returns when it is ready.

        Raises:
            ModelError: the model cannot be served, or not with these settings.
            EngineDead: the engine ended while loading, for a reason of its own.
        """
        self._started = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise())
        return await self._started

    async def close(self) -> None:
        """End the engine and its supervision; open streams fail."""
        self.state = EngineState.STOPPED
        try:
            if self._supervisor is not None:
                self._supervisor.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._supervisor
        finally:
            await self._end_process()
            self._fail_streams("The server is shutting down.")

    def drain(self) -> None:
        """Take no new requests; open ones go on."""
        self._draining = True
        self.state = EngineState.DRAINING

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def submit(self, requests: Sequence[GenerateRequest]) -> TokenStream:
        """Hand requests over; see ``EngineClient.submit``."""
        if self.state is not EngineState.READY:
            raise EngineUnavailable(f"The engine is {self.state}; try again shortly.", retry_after_s=2)
        stream = TokenStream([request.request_id for request in requests], self._abort)
        for request in requests:
            self._streams[request.request_id] = stream
            self._send(request)
        return stream

    def _abort(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) is not None:
            self._send(Abort(request_id))

    def _send(self, message: Inbound) -> None:
        if self._link is not None:
            self._link.send(message)

    async def _supervise(self) -> None:
        """Run one engine after another."""
        pause_s: float | None = None
        while not self._draining:
            began_s = time.monotonic()
            try:
                reason = await self._run_engine()
            except Exception as error:  # no process or descriptor to be had, most likely: it may be another time
                reason = f"no engine could be started: {type(error).__name__}: {error}"
            if self._started is not None and not self._started.done():
                self._started.set_exception(_start_failure(self._failure, reason))
                return
            self.state = EngineState.RESTARTING
            self.restarts += 1
            self.stats = EngineStats()
            num_failed = self._fail_streams("The engine ended unexpectedly; this request was lost. Send it again.")
            log.error("%s; %d open requests failed; starting a new engine", reason, num_failed)
            lived_s = time.monotonic() - began_s
            pause_s = next_pause(pause_s, lived_s)
            await asyncio.sleep(pause_s)

    async def _run_engine(self) -> str:
        """Start an engine and wait until it is gone; returns why."""
        self._failure = None
        ours, theirs = socket.socketpair()
        link = _Link(self._on_message)
        await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
        try:
            with theirs:
                link.send(self._config)  # what cannot be sent fails before there is a process
                self._process = await self._spawn(theirs.fileno())
            self._link = link
            watch = asyncio.create_task(self._kill_if_silent(link))
            try:
                await link.lost.wait()
            finally:
                watch.cancel()
        finally:
            self._link = None
            link.close()
        code = await self._process.wait()
        if self.state is EngineState.HUNG:
            return "the engine said nothing for too long and was killed"
        why = f": {self._failure.message}" if self._failure is not None else ""
        return f"the engine ended with {'signal' if code < 0 else 'exit code'} {abs(code)}{why}"

    async def _spawn(self, descriptor: int) -> asyncio.subprocess.Process:
        """An engine process that inherits a descriptor, in a session of its own: Ctrl-C is not for it."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "engine.process",
            str(descriptor),
            pass_fds=(descriptor,),
            stdin=asyncio.subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )

    async def _kill_if_silent(self, link: _Link) -> None:
        """Kill an engine that hangs; while it loads, one tensor may take longer than any step."""
        while True:
            await asyncio.sleep(min(1.0, self._silence_limit_s / 4))
            loading = self.state in {EngineState.LOADING, EngineState.RESTARTING}
            limit_s = self._silence_limit_s * (LOADING_PATIENCE if loading else 1)
            if time.monotonic() - link.last_heard_s > limit_s:
                self.state = EngineState.HUNG
                self._kill()
                return  # the link breaks, and the engine's end is dealt with where every end is

    async def _end_process(self) -> None:
        """Make sure that no engine is left: ask by closing the link, then kill. One that loads does not listen."""
        if self._process is None:
            return
        if self._link is not None:
            self._link.close()
        if self.ready is None:
            self._kill()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_GRACE_S)
        except TimeoutError:
            self._kill()
            await self._process.wait()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _on_message(self, message: Outbound) -> None:
        if isinstance(message, StepOutput):
            self._on_step(message)
        elif isinstance(message, LoadProgress):
            self._on_progress(message)
        elif isinstance(message, EngineFailed):
            self._failure = message
        else:
            self.ready = message
            self.state = EngineState.DRAINING if self._draining else EngineState.READY
            if self._started is not None and not self._started.done():
                self._started.set_result(message)

    def _on_step(self, output: StepOutput) -> None:
        if output.stats is not None:
            self.stats = output.stats
        for delta in output.deltas:
            stream = self._streams.get(delta.request_id)
            if stream is None:  # aborted while this was under way
                continue
            if delta.finish is not None:
                del self._streams[delta.request_id]
            stream.feed(delta)

    def _fail_streams(self, message: str) -> int:
        streams, self._streams = self._streams, {}
        for stream in set(streams.values()):
            stream.fail(EngineDead(message))
        return len(streams)


class _Link(asyncio.Protocol):
    """Our end of the socket, as messages."""

    def __init__(self, on_message: Callable[[Outbound], None]) -> None:
        self.last_heard_s = time.monotonic()
        self.lost = asyncio.Event()
        self._on_message = on_message
        self._reader = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(Outbound)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand on every whole message."""
        self.last_heard_s = time.monotonic()
        for frame in self._reader.feed(data):
            self._on_message(self._decoder.decode(frame))

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine is gone."""
        self.lost.set()

    def send(self, message: Inbound | EngineConfig) -> None:
        """Queue a message; never waits."""
        if self._transport is not None:
            self._transport.write(encode_frame(message))

    def close(self) -> None:
        """Close the socket, which ends the engine."""
        if self._transport is not None:
            self._transport.close()


def next_pause(last_pause_s: float | None, lived_s: float) -> float:
    """Seconds to wait before the next engine: none the first time and after a steady one, then 1, 2, 4, ... 30."""
    if last_pause_s is None or lived_s > STEADY_AFTER_S:
        return 0.0
    return min(max(2 * last_pause_s, 1.0), MAX_PAUSE_S)


def _start_failure(failure: EngineFailed | None, reason: str) -> Exception:
    if failure is None:
        return EngineDead(f"The engine could not start: {reason}.")
    if failure.expected:
        return ModelError(failure.message)
    return EngineDead(f"The engine could not start: {failure.message}.")
