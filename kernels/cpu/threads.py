"""How many threads the kernels use when nobody says.

Threads of a step wait for each other, so one more than there is processor time for slows all of them down. Two things
bound it: the processors this process may run on, and, in a container, the processor time its control groups grant.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kernels.control_groups import cpu_quota, text_of

MAX_THREADS = 256
"""``kMaxThreads`` of ``work.hpp``."""
_ROOT = Path("/")


@dataclass(frozen=True)
class ThreadCount:
    """A number of threads, and why it is that one."""

    count: int
    reason: str

    def __str__(self) -> str:
        """As the start's log has it: ``2 threads (physical cores)``."""
        return f"{self.count} thread{'' if self.count == 1 else 's'} ({self.reason})"


def default_threads(root: Path = _ROOT) -> ThreadCount:
    """As many as there are physical cores to run on, or whole processors in the quota of the control group if fewer.

    Two threads of one core share its vector units. Of a quota of 1.5 processors one thread is made: two would both be
    stopped for a quarter of the time. There is always one.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    cores = len(one_of_each_core(root))
    quota = cpu_quota(root)
    if quota is not None and quota < cores:
        granted = ThreadCount(max(1, int(quota)), f"CPU quota of {quota:.4g}")
    else:
        granted = ThreadCount(max(1, cores), "physical cores")
    if granted.count > MAX_THREADS:
        return ThreadCount(MAX_THREADS, "the most there can be")
    return granted


def one_of_each_core(root: Path = _ROOT) -> list[int]:
    """Of the processors this process may run on the first one of each physical core, in order."""
    by_core = {_siblings(root, cpu): cpu for cpu in sorted(os.sched_getaffinity(0), reverse=True)}
    return sorted(by_core.values())


def _siblings(root: Path, cpu: int) -> str:
    """The processors of one core, as the kernel writes them; the processor itself where it does not say."""
    return text_of(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
