"""A tensor parallel process other than the engine's: ``python -P -m engine.follower FD``.

Its whole world is one connected Unix socket, inherited as ``FD``, whose other end is the engine process, rank 0. It
loads its part of the model, and then runs each step that the engine runs. When the other end closes, it ends, whatever
it is at, and takes the ranks' rendezvous with it, which an engine that was killed has left. What it cannot mend it
reports as ``EngineFailed``, and ends too.
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

from engine.errors import ConfigError, ModelError
from engine.freed_memory import return_freed_memory
from engine.loading import load_part
from engine.model_runner import ModelRunner
from engine.parallel import GRACE_S, remove_rendezvous
from engine.process import NO_MEMORY, Link, failure_of, progress_to
from engine.rank_messages import FollowerReady, FollowerStart, decode_order
from engine.types import EngineFailed
from kernels.ops import BackendUnavailable, Parallel, StepInputs


def follow(link: Link, runner: ModelRunner) -> None:
    """Run what the engine runs, until it closes the socket.

    Raises:
        EOFError, ConnectionError: it has.
        BadFrame: it sent something that is not an order.
    """
    while True:
        for frame in link.frames(None):
            order = decode_order(frame)
            if isinstance(order, StepInputs):
                runner.forward(order)
            else:
                runner.copy_blocks(order)


def load(link: Link, start: FollowerStart) -> ModelRunner:
    """This rank's part of the model, once it has said that it is ready."""
    runner = load_part(start.config, start.parallel, start.cache, start.limits, progress_to(link))
    return_freed_memory()
    link.send(FollowerReady())
    return runner


def end_with(sock: socket.socket, place: Parallel) -> None:
    """From now on, end this process when the other end of the socket closes; a step that is amid has ``GRACE_S``.

    A step may wait for ranks that are gone, in native code, where no exception reaches it.
    """
    closed = select.poll()
    closed.register(sock, 0)  # that the other end has closed is told unasked

    def watch() -> None:
        closed.poll()
        remove_rendezvous(place)
        time.sleep(GRACE_S)
        os._exit(0)

    threading.Thread(target=watch, name="engine", daemon=True).start()


def _is_closed(sock: socket.socket) -> bool:
    """Whether the other end has gone."""
    closed = select.poll()
    closed.register(sock, 0)
    return bool(closed.poll(0))


def main(descriptor: int) -> int:
    """Run until the engine goes away; exit code 1 after a failure, 2 where there is no such device."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sock = socket.socket(fileno=descriptor)
    link = Link(sock)
    start, code = None, 1
    try:
        start = msgspec.msgpack.decode(link.first_frame(), type=FollowerStart)
        end_with(sock, start.parallel)
        follow(link, load(link, start))
    except (EOFError, ConnectionError):
        return _gone(start)
    except BackendUnavailable as error:
        failure, code = EngineFailed(str(error), expected=True), 2
    except (ModelError, ConfigError) as error:
        failure = EngineFailed(str(error), expected=True)
    except MemoryError:
        failure = EngineFailed(NO_MEMORY, expected=True)
    except Exception as error:
        if _is_closed(sock):  # what ranks ask of each other fails where one has gone
            return _gone(start)
        failure = failure_of(error)
    with contextlib.suppress(ConnectionError):  # an engine that has gone need not be told
        link.send(failure)
    return code


def _gone(start: FollowerStart | None) -> int:
    """The exit code where the engine has gone, when what it may have left is removed."""
    if start is not None:
        remove_rendezvous(start.parallel)
    return 0


def run() -> None:
    """Be the process. It ends without what an interpreter does last, which may wait for ranks that are gone."""
    code = main(int(sys.argv[1]))
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    run()
