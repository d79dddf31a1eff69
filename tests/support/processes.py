"""Processes as /proc has them: whose children they are, and whether they are gone."""

from __future__ import annotations

import time
from pathlib import Path


def children(pid):
    """The processes that one has started and that have not ended: pid -> command line."""
    out = {}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            if is_running(child):
                out[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return out


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def are_gone(pids, within_s):
    """Whether none of them runs any more, at the latest after so long."""
    deadline_s = time.monotonic() + within_s
    while any(map(is_running, pids)):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True
