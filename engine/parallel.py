"""Tensor parallelism as the engine sees it: the other ranks' processes, started, told what to do, and watched.

The engine process is rank 0. It alone schedules, samples and knows requests; before each forward pass it sends the
step's inputs to the others, ``follower`` processes, which run the same pass on their part of the weights. What ranks
gather of each other makes them wait, and one that is gone would be waited for ever: so a thread watches the others'
sockets, and an engine without all of its followers ends. They in turn end when the engine's end of their socket closes,
whatever way it went.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlparse

import msgspec

from engine.config import CacheConfig, EngineConfig
from engine.engine import Runner
from engine.errors import ConfigError, FollowerFailed, UpwellError
from engine.rank_messages import FollowerReady, FollowerStart, FromFollower, encode_copies, encode_step
from engine.types import EngineFailed, LoadProgress
from engine.wire import BadFrame, FrameReader, encode_frame
from kernels.ascend.errors import is_out_of_memory
from kernels.ops import F32, I32, DrawParams, Parallel, Scores, StepInputs, StepLimits

FOLLOWER = (sys.executable, "-P", "-m", "engine.follower")
"""The command of a follower; the number of its descriptor comes behind it."""
_FILE = "file://"
GRACE_S = 1.0
"""Time for whoever fails to say why by itself, before another says it."""
STOP_S = 3.0
LOOK_S = 0.2

Progress = Callable[[int, int], None]
OnFailure = Callable[[FollowerFailed], None]


@dataclass
class _Follower:
    """One of them: what has come from it is the watching thread's to change.

    Attributes:
        loaded: bytes it has laid out, and all of its own, once it has said so.
    """

    rank: int
    process: subprocess.Popen[bytes]
    sock: socket.socket
    reader: FrameReader = field(default_factory=FrameReader)
    loaded: tuple[int, int] | None = None
    is_ready: bool = False


class Followers:
    """All ranks but 0, from ``start`` to ``close``; a context that closes them.

    Args:
        on_failure: called in a thread of its own when one fails, after ``GRACE_S``: whoever waits for the follower in
            native code then waits for ever, and no exception reaches it. None leaves it to ``check`` and ``blamed``.
        command: of a follower.
    """

    def __init__(self, on_failure: OnFailure | None = None, command: Sequence[str] = FOLLOWER) -> None:
        self._on_failure, self._command = on_failure, tuple(command)
        self._followers: list[_Follower] = []
        self._changed = threading.Condition()
        self._failure: FollowerFailed | None = None
        self._closed = False
        self._watch: threading.Thread | None = None
        self._folder: str | None = None
        self._decoder = msgspec.msgpack.Decoder(FromFollower)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def leader(self, size: int) -> Parallel:
        """This process' place among so many. The rendezvous is a file that only this user can reach, and no port.

        Raises:
            ConfigError: the folder for temporary files cannot be in a URL of torch's.
        """
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="upwell-ranks-", dir=_parent())
        return Parallel(0, size, f"{_FILE}{self._folder}/rendezvous")

    def start(self, config: EngineConfig, cache: CacheConfig, limits: StepLimits) -> None:
        """Start ranks 1 to ``config.tensor_parallel_size`` - 1, each of which loads its part of the model."""
        place = self.leader(config.tensor_parallel_size)
        for rank in range(1, place.size):
            follower = _Follower(rank, *_spawned(self._command))
            self._followers.append(follower)
            parallel = Parallel(rank, place.size, place.rendezvous)
            self._send(follower, encode_frame(FollowerStart(config, parallel, cache, limits)))
        self._watch = threading.Thread(target=self._run_watch, name="followers", daemon=True)
        self._watch.start()

    def progress(self, done_bytes: int, total_bytes: int) -> tuple[int, int]:
        """How far all ranks are, when this one has laid out so many bytes of its own; the others have about as many."""
        with self._changed:
            others = [follower.loaded or (0, total_bytes) for follower in self._followers]
        return done_bytes + sum(done for done, _ in others), total_bytes + sum(total for _, total in others)

    def wait_until_ready(self, tell: Callable[[], None]) -> None:
        """Return when all are ready; ``tell`` is called several times a second until then.

        Raises:
            FollowerFailed: one cannot be.
        """
        while True:
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                if all(follower.is_ready for follower in self._followers):
                    return
                self._changed.wait(LOOK_S)
            tell()

    def send(self, order: bytes) -> None:
        """Write one frame to each.

        Raises:
            FollowerFailed: one is gone.
        """
        for follower in self._followers:
            self._send(follower, order)

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Around what needs them: an error that comes of a follower's failure becomes that failure.

        Raises:
            FollowerFailed: in place of the error.
        """
        try:
            yield
        except (UpwellError, MemoryError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            with self._changed:
                self._changed.wait_for(lambda: self._failure is not None, 2 * GRACE_S)
                failure = self._failure
            if failure is None:
                raise
            raise failure from error

    def close(self) -> None:
        """End them, by closing their sockets and, if that is not enough, by killing them."""
        self._closed = True
        for follower in self._followers:
            with contextlib.suppress(OSError):
                follower.sock.shutdown(socket.SHUT_RDWR)
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join()
        deadline_s = time.monotonic() + STOP_S
        for follower in self._followers:
            try:
                follower.process.wait(max(deadline_s - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                follower.process.kill()
                follower.process.wait()
            follower.sock.close()
        self._followers.clear()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _send(self, follower: _Follower, frame: bytes) -> None:
        try:
            follower.sock.sendall(frame)
        except OSError as error:
            with self._changed:
                self._changed.wait_for(lambda: self._failure is not None, GRACE_S)
                failure = self._failure
            raise failure or FollowerFailed(follower.rank, f"its socket broke: {error}") from error

    def _run_watch(self) -> None:
        """Read what followers say until one fails or they are closed."""
        ready = select.poll()
        by_number = {follower.sock.fileno(): follower for follower in self._followers}
        for number in by_number:
            ready.register(number, select.POLLIN)
        failure = None
        while failure is None and not self._closed:
            for number, _ in ready.poll():
                failure = failure or self._heard(by_number[number])
        if failure is None or self._closed:
            return
        with self._changed:
            self._failure = failure
            self._changed.notify_all()
        if self._on_failure is not None:
            time.sleep(GRACE_S)
            if not self._closed:
                self._remove_folder()
                self._on_failure(failure)

    def _heard(self, follower: _Follower) -> FollowerFailed | None:
        """Take in what has come from one; why it failed, if it has."""
        data = b""
        with contextlib.suppress(ConnectionError):  # it is reset where one ends with orders unread
            data = follower.sock.recv(1 << 16)
        try:
            messages = [self._decoder.decode(frame) for frame in follower.reader.feed(data)]
        except (BadFrame, msgspec.MsgspecError) as error:
            return FollowerFailed(follower.rank, f"{type(error).__name__}: {error}")
        if not data:
            return None if self._closed else FollowerFailed(follower.rank, _how_it_ended(follower.process))
        with self._changed:
            for message in messages:
                if isinstance(message, EngineFailed):
                    return FollowerFailed(follower.rank, message.message, expected=message.expected)
                if isinstance(message, LoadProgress):
                    follower.loaded = (message.done_bytes, message.total_bytes)
                elif isinstance(message, FollowerReady):
                    follower.is_ready = True
            self._changed.notify_all()
        return None


def remove_rendezvous(place: Parallel) -> None:
    """Remove a rendezvous that its leader made, if that is still there: a leader that is killed leaves it."""
    file = Path(place.rendezvous.removeprefix(_FILE))
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _parent() -> str:
    """The folder for temporary files, in which that of a rendezvous is made.

    Torch reads a path as ``urlparse`` does, which unescapes nothing: what a URL ends a path with, or has not at all,
    cannot be in it, and ranks that looked for each other elsewhere would wait.
    """
    folder = str(Path(tempfile.gettempdir()).absolute())
    if urlparse(f"{_FILE}{folder}/rendezvous").path != f"{folder}/rendezvous":
        raise ConfigError(
            f"tensor parallel processes cannot meet in {folder!r}, the folder for temporary files: a name with '#', "
            "'?', a tab or a line break is not one that torch can be told; set TMPDIR to another folder."
        )
    return folder


def _spawned(command: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process that inherits one end of a socket, and the other end; it is in our session, and ends with it."""
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        process = subprocess.Popen(  # noqa: S603  (our own module, or what a test has in its place)
            [*command, str(number)], pass_fds=(number,), stdin=subprocess.DEVNULL, env=os.environ
        )
    return process, ours


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        return "it closed its socket"
    return f"it ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"


class LeadingRunner:
    """Rank 0's part of a model, whose steps the followers run too; implements ``engine.Runner``."""

    def __init__(self, own: Runner, followers: Followers) -> None:
        self._own, self._followers = own, followers
        self.vocab_size = own.vocab_size

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy blocks of the cache, (from, to), one after the other, in every rank.

        Raises:
            FollowerFailed: one is gone.
        """
        if copies:
            self._followers.send(encode_copies(copies))
            self._own.copy_blocks(copies)

    def forward(self, batch: StepInputs) -> Scores:
        """Write the batch's keys and values, and score the next tokens of ``batch.logit_rows``.

        Batch-invariant. The scores hold until the next step.

        Raises:
            FollowerFailed: one is gone.
        """
        with self._followers.blamed():
            self._followers.send(encode_step(batch))
            return self._own.forward(batch)

    def draw(self, logits: F32, params: DrawParams) -> I32:
        """One token a row, at random, by this rank alone: f32[n,V] -> i32[n]."""
        return self._own.draw(logits, params)

    def native_cpu_s(self) -> float:
        """CPU seconds that this rank's native code has spent in steps so far."""
        return self._own.native_cpu_s()

    def native_wall_s(self) -> float:
        """Seconds that this rank's calls of native code have taken so far; 0 without native code."""
        return self._own.native_wall_s()

    def native_rested(self) -> int:
        """Native calls so far that one of several threads made alone."""
        return self._own.native_rested()
