"""triton-ascend's compiler dies of a signal now and then, by no fault of what it compiles; then it is asked again.

Of 4,000 runs of ``triton-adapter-opt`` 3.2.0 on one and the same module of ours up to 7 ended with a segmentation
fault, in its pass ``discrete-mask-access-conversion``; all others gave the same text.
"""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Callable
from typing import TypeVar

TRIES = 4
CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}
"""Return codes of a program that ended by itself; one that was ended, by Ctrl-C or for want of memory, is let go."""
T = TypeVar("T")

log = logging.getLogger("upwell.engine")


def crashes_survived(run: Callable[[], T]) -> T:
    """What ``run`` returns, called again if a program that it called crashed.

    Raises:
        whatever ``run`` raises: at once if no program was, else at the last of ``TRIES`` calls.
    """
    for _ in range(TRIES - 1):
        try:
            return run()
        except Exception as error:
            if not _was_a_crash(error):
                raise
            log.warning("a compiler crashed, and is asked again: %s", str(error).strip().partition("\n")[0])
    return run()


def _was_a_crash(error: BaseException | None) -> bool:
    """Whether a program's crash led to this error: triton raises its own in place of it."""
    while error is not None:
        if isinstance(error, subprocess.CalledProcessError) and error.returncode in CRASHES:
            return True
        error = error.__cause__ or error.__context__
    return False
