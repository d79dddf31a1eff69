"""The engine process: ``python -P -m engine.process FD``.

Its whole world is one connected Unix socket, inherited as ``FD``. The first frame in is an ``EngineConfig``; then
``Inbound`` messages come in and ``Outbound`` ones go out. The loop steps while there is work and otherwise waits,
saying each second that it is alive. When the other end closes the socket, the process ends: it never outlives its
server. A failure it cannot mend is reported as ``EngineFailed`` and ends the process; the server starts another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time

import msgspec

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import ConfigError, FollowerFailed, InvalidRequest, ModelError
from engine.freed_memory import return_freed_memory
from engine.loading import Progress, load_engine
from engine.parallel import Followers
from engine.rank_messages import FromFollower
from engine.types import (
    Abort,
    EngineFailed,
    ErrorInfo,
    FinishReason,
    GenerateRequest,
    Inbound,
    LoadProgress,
    Outbound,
    StepOutput,
    TokenDelta,
)
from engine.wire import BadFrame, FrameReader, encode_frame
from kernels.ascend.errors import explain, is_out_of_memory
from kernels.ascend.stubs_refused import refuse_stubs
from kernels.ops import BackendUnavailable

HEARTBEAT_S = 1.0
PROGRESS_EVERY_S = 0.05
LAST_WORD_S = 1.0
NO_MEMORY = (
    "there is not enough memory for this model, its KV cache and its largest step; lower --num-blocks, "
    "--kv-cache-memory-bytes (set it, if it is not) or --max-num-batched-tokens, or serve a smaller model."
)
NO_DEVICE_MEMORY = (
    "the device has not enough memory for this model, its KV cache and its largest step; lower "
    "--kv-cache-memory-bytes (set it, if it is not) or --num-blocks, --max-num-batched-tokens or --max-model-len, end "
    "other processes on the device, or serve a smaller model."
)

log = logging.getLogger("upwell.engine")


class Link:
    """The socket, as messages in and out."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._reader = FrameReader()
        self._readable = select.poll()  # unlike select(), it takes descriptors of any number
        self._readable.register(sock, select.POLLIN)

    def send(self, message: Outbound | FromFollower) -> None:
        """Write one message; waits while the server does not read. For any thread.

        Raises:
            ConnectionError: the server is gone.
        """
        with self._sending:
            self._socket.sendall(encode_frame(message))

    def frames(self, wait_s: float | None) -> list[bytes]:
        """What arrives within ``wait_s`` seconds (None: wait for ever).

        Raises:
            EOFError: the server closed the socket.
            BadFrame: it sent something that is not a frame.
        """
        if not self._readable.poll(None if wait_s is None else 1000 * wait_s):
            return []
        data = self._socket.recv(1 << 18)
        if not data:
            raise EOFError
        return self._reader.feed(data)

    def first_frame(self) -> bytes:
        """Wait for the one message that comes before the engine is ready.

        Raises:
            EOFError: the server closed the socket.
            BadFrame: it sent more than that one, or something that is not a frame.
        """
        frames: list[bytes] = []
        while not frames:
            frames = self.frames(None)
        if len(frames) > 1:
            raise BadFrame("a request before the engine was ready")
        return frames[0]


def serve(link: Link, engine: Engine) -> None:
    """Take requests and step, until the server closes the socket.

    Raises:
        EOFError, ConnectionError: it has.
        BadFrame: it sent something that is not a frame.
    """
    decoder = msgspec.msgpack.Decoder(Inbound)
    while True:
        refused: list[TokenDelta] = []
        for frame in link.frames(0 if engine.has_work else HEARTBEAT_S):
            refused += _take(engine, decoder.decode(frame))
        output = engine.step()
        link.send(StepOutput(refused + output.deltas, output.stats))


def _take(engine: Engine, message: Inbound) -> list[TokenDelta]:
    """Hand a message to the engine; what it refuses comes back as the request's only delta."""
    if isinstance(message, Abort):
        engine.abort(message.request_id)
        return []
    return _submit(engine, message)


def _submit(engine: Engine, request: GenerateRequest) -> list[TokenDelta]:
    try:
        engine.submit(request)
    except InvalidRequest as error:
        info = ErrorInfo(error.code, str(error), error.param)
        return [TokenDelta(request.request_id, [], "", finish=FinishReason.ERROR, error=info)]
    return []


def _load(link: Link, followers: Followers) -> Engine:
    config = msgspec.msgpack.decode(link.first_frame(), type=EngineConfig)
    refuse_stubs()
    engine, ready = load_engine(config, progress_to(link), followers)
    return_freed_memory()
    link.send(ready)
    return engine


def progress_to(link: Link) -> Progress:
    """What sends how far loading is: several times a second, and when it is done."""
    last_sent_s = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last_sent_s
        now_s = time.monotonic()
        if now_s - last_sent_s >= PROGRESS_EVERY_S or done == total:
            last_sent_s = now_s
            link.send(LoadProgress(done, total))

    return progress


def why(error: Exception) -> str:
    """What to say of an error that nobody foresaw: what its Ascend code means if it has one, else where to look."""
    return f"{type(error).__name__}; {explain(str(error)) or 'see the log'}"


def failure_of(error: Exception) -> EngineFailed:
    """What to say of an error that ends a process and that Upwell did not raise; it is logged."""
    if is_out_of_memory(error):
        log.exception("the device's memory is used up", exc_info=error)
        return EngineFailed(NO_DEVICE_MEMORY, expected=True)
    log.exception("a process of the engine failed", exc_info=error)
    return EngineFailed(why(error), expected=False)


def _end_without(link: Link, failure: FollowerFailed) -> None:
    """End this process, whose step waits for a rank that is gone and will not end. Called in another thread."""
    last_word = threading.Thread(target=_say, args=(link, failure), daemon=True)
    last_word.start()
    last_word.join(LAST_WORD_S)
    os._exit(1)


def _say(link: Link, failure: FollowerFailed) -> None:
    with contextlib.suppress(OSError):  # a server that has gone need not be told
        link.send(EngineFailed(str(failure), failure.expected))


def main() -> int:
    """Run until the server goes away; exit code 1 after a failure, 2 where the device's libraries are stubs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle: it lets streams finish first
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    code = 1
    try:
        with Followers(lambda failure: _end_without(link, failure)) as followers:
            serve(link, _load(link, followers))
    except (EOFError, ConnectionError):
        return 0
    except BackendUnavailable as error:
        failure, code = EngineFailed(str(error), expected=True), 2
    except (ModelError, ConfigError) as error:
        failure = EngineFailed(str(error), expected=True)
    except FollowerFailed as error:
        failure = EngineFailed(str(error), error.expected)
    except MemoryError:
        failure = EngineFailed(NO_MEMORY, expected=True)
    except Exception as error:
        failure = failure_of(error)
    with contextlib.suppress(ConnectionError):  # a server that has gone need not be told
        link.send(failure)
    return code


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    os._exit(exit_code)  # without what an interpreter does last, which may wait for ranks that are gone
