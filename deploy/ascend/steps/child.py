"""A process whose lines are printed as they come, and kept for what they say of its end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

from kernels.ascend.machine import Ran

GRACE_S = 5.0
LAST_LINES = 200
"""What is looked through for an error's code where a process ended badly."""


def run_child(
    words: Sequence[str], timeout_s: float, *, own_session: bool, environment: Mapping[str, str] | None = None
) -> Ran:
    """Run a command; killed after a time, or with us.

    Args:
        words: the command.
        timeout_s: how long it may take.
        own_session: whether it is killed with all that it started, which then a Ctrl-C does not reach by itself; else
            it stays in our session, is killed alone, and what it started has to see that.
        environment: of the command; None is our own.
    """
    said: deque[str] = deque(maxlen=LAST_LINES)
    child = subprocess.Popen(  # noqa: S603  (it is a script of ours)
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=own_session, env=environment,
    )  # fmt: skip

    def echo() -> None:
        for line in child.stdout or ():
            print(line, end="", flush=True)
            said.append(line)

    reader = threading.Thread(target=echo, daemon=True)
    reader.start()
    late = False
    try:
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                _kill(child, own_session=own_session)
    with suppress(subprocess.TimeoutExpired):  # one that a driver holds fast does not even die
        child.wait(GRACE_S)
    reader.join(GRACE_S)  # what it started has its output too, and is given time to end
    if child.stdout and not reader.is_alive():
        child.stdout.close()
    return Ran(None if late else child.returncode, "".join(said), reason=f"no answer within {timeout_s:.4g} s")


def _kill(child: subprocess.Popen[str], *, own_session: bool) -> None:
    if own_session:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
