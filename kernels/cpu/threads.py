"""How many threads the kernels use when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

MAX_THREADS = 256
"""``kMaxThreads`` of ``work.hpp``."""
_TOPOLOGY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Physical cores among the processors that this process may use: two threads of one core share its vector units."""
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), MAX_THREADS))


def _siblings(cpu: int) -> str:
    """The processors of one core, as the kernel writes them; the processor itself where it does not say."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
