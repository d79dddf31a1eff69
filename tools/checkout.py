"""Which state of the code a tool measures."""

from __future__ import annotations

import subprocess


def commit() -> str:
    """The checkout's, with a ``+`` if something in it has changed since; "unknown" outside of one."""
    command = ("git", "describe", "--always", "--exclude=*", "--abbrev=7", "--dirty=+")
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        told = ""
    return told or "unknown"
