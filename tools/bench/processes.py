"""Servers as processes: started in a group of their own, their CPU time and memory read from the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

START_TIMEOUT_S = 900
STOP_TIMEOUT_S = 30
_POLL_S = 0.02


class StartFailed(Exception):
    """A server did not become ready; the message ends with what it said."""


class ServerProcess:
    """A running server and what it has started. Output goes to ``log``."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        self.began_s = time.perf_counter()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid

    async def wait_ready(self, port: int, path: str) -> float:
        """Wait until ``path`` answers with 200; return the seconds since the start.

        Raises:
            StartFailed: the process ended, or it took too long.
        """
        deadline_s = self.began_s + START_TIMEOUT_S
        while time.perf_counter() < deadline_s:
            if await _answers(port, path):
                return time.perf_counter() - self.began_s
            if self._process.poll() is not None:
                break
            await asyncio.sleep(_POLL_S)
        raise StartFailed(self.log.read_text(errors="replace")[-2000:])

    def members(self) -> list[int]:
        """The pids of the process and all its descendants, its own first."""
        children: dict[int, list[int]] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(folder.name))
        found = [self.pid]
        for pid in found:  # grows as it goes
            found += children.get(pid, [])
        return found

    def stop(self) -> None:
        """End it, gently if it will."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all its threads, those that have ended too; 0 once it is gone. Needs Linux."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # the process's CPU clock, as clock_getcpuclockid(3) names it
    except OSError:
        return 0.0


def busy_s() -> float:
    """CPU seconds that this machine has spent on anything since it started; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, irq, soft_irq, *_ = map(
            int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        )
        return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")
    return 0.0


def pss_bytes(pid: int) -> int:
    """Memory of a process, pages shared with others counted in part; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def rss_bytes(pid: int) -> int:
    """Resident memory of a process, shared pages counted whole."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def _answers(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.TimeoutError):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        status = await asyncio.wait_for(reader.readline(), 2)
        return b" 200" in status
    return False
