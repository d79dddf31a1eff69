"""What the control groups around this process grant it: in a container, less than what the machine has.

Source: the Linux kernel's documentation, "Control Group v2" (``cpu.max``, ``memory.max``), "CFS Bandwidth Control" and
"Memory Resource Controller" (both version 1).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def memory_bytes(root: Path = _ROOT) -> int:
    """Bytes of memory that this process may fill: the machine's, or what its control groups grant if that is less.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    folders = _group_folders(root, "memory")
    return min([machine, *(limit for folder in folders if (limit := _memory_limit(folder)) is not None)])


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Processors' worth of time that the control groups of this process grant it; None where they set no limit.

    The least of the group's own limit and those of the groups around it, as far as they can be seen from here.
    """
    limits = [limit for folder in _group_folders(root, "cpu") if (limit := _cpu_limit(folder)) is not None]
    return min(limits, default=None)


def _group_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process' groups that may limit it in this, and of all groups around them."""
    for line in (text_of(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        # A version 1 hierarchy is mounted by its controllers' names, version 2 alone or beside version 1.
        for mount in (controllers, controller) if controllers else ("", "unified"):
            top = root / "sys/fs/cgroup" / mount
            seen = _seen_from(top, PurePosixPath(path.strip("/")))
            yield from (top / each for each in (seen, *seen.parents))


def _seen_from(top: Path, group: PurePosixPath) -> PurePosixPath:
    """Where a group lies below a mount: its path there, or the longest end of it, or the mount itself.

    In a container the path may be the host's, and what is mounted be any of the groups on its way.
    """
    ends = () if ".." in group.parts else (PurePosixPath(*group.parts[n:]) for n in range(len(group.parts)))
    return next((end for end in ends if (top / end).is_dir()), PurePosixPath())


def _cpu_limit(folder: Path) -> float | None:
    """Processors' worth of time that one group grants, of either version."""
    maximum = text_of(folder / "cpu.max")
    if maximum is not None:
        quota, period = [*maximum.split(), "", ""][:2]
    else:
        quota, period = (text_of(folder / name) or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    # "max" and -1 stand for no limit.
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _memory_limit(folder: Path) -> int | None:
    """Bytes that one group grants, of either version."""
    maximum = text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes") or ""
    return int(maximum) if maximum.isdecimal() else None


def text_of(path: Path) -> str | None:
    """What a file says, if it can be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
