"""How many threads the kernels use when nobody says.

Threads of a step wait for each other, so one more than there is processor time for slows all of them down. Two things
bound it: the processors this process may run on, and, in a container, the processor time its control groups grant.
Source: the Linux kernel's documentation, "Control Group v2" (``cpu.max``) and "CFS Bandwidth Control" (version 1).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Processors' worth of time that the control groups of this process grant it; None where they set no limit.

    The least of the group's own limit and those of the groups around it, as far as they can be seen from here.
    """
    limits = [limit for folder in _group_folders(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _group_folders(root: Path) -> Iterator[Path]:
    """The folders of this process' groups that may limit it, and of all groups around them."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A version 1 hierarchy is mounted by its controllers' names, version 2 alone or beside version 1.
        for mount in (controllers, "cpu") if controllers else ("", "unified"):
            top = root / "sys/fs/cgroup" / mount
            seen = _seen_from(top, PurePosixPath(path.strip("/")))
            yield from (top / each for each in (seen, *seen.parents))


def _seen_from(top: Path, group: PurePosixPath) -> PurePosixPath:
    """Where a group lies below a mount: its path there, or the longest end of it, or the mount itself.

    In a container the path may be the host's, and what is mounted be any of the groups on its way.
    """
    ends = () if ".." in group.parts else (PurePosixPath(*group.parts[n:]) for n in range(len(group.parts)))
    return next((end for end in ends if (top / end).is_dir()), PurePosixPath())


def _limit(folder: Path) -> float | None:
    """What one group grants, of either version."""
    maximum = _text(folder / "cpu.max")
    if maximum is not None:
        quota, period = [*maximum.split(), "", ""][:2]
    else:
        quota, period = (_text(folder / name) or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    # "max" and -1 stand for no limit.
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _siblings(root: Path, cpu: int) -> str:
    """The processors of one core, as the kernel writes them; the processor itself where it does not say."""
    return _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _text(path: Path) -> str | None:
    """What a file says, if it can be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
