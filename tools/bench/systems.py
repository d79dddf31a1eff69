"""What is measured: Upwell, and the peers that are installed. None is installed or downloaded from here.

A system says whether it is there, and starts. What runs then takes loads, and tells its CPU time and memory. A peer is
to be seen at its best, so a system may start differently for loads of long contexts.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from kernels.cpu.library import find_library
from kernels.cpu.threads import default_threads
from tools.bench.client import HttpLoad, Job, Outcome, Trace
from tools.bench.processes import ServerProcess, StartFailed, cpu_s, free_port, pss_bytes, rss_bytes
from tools.bench.scrape import Scrape

Command = Callable[[int, bool], list[str]]
"""From a port, and whether for long contexts, to a command line."""


class Running(Protocol):
    """A started system."""

    start_s: float

    async def ready(self) -> None:
        """Wait until it serves, and set ``start_s``. Raises ``StartFailed``."""

    async def run(self, jobs: Sequence[Job], concurrency: int, *, probe: bool) -> Outcome:
        """Make the requests of a load."""

    def pids(self) -> Mapping[str, Sequence[int]]:
        """Role -> processes: ``api`` serves HTTP, ``engine`` computes; a server of one process is all ``engine``."""

    async def metrics(self) -> Scrape | None:
        """Its metrics as they are now, None if it does not tell them."""

    async def backend(self) -> str | None:
        """What computes, in its own words, None if it does not say."""

    async def close(self) -> None:
        """End it."""


@dataclass(frozen=True)
class System:
    """Something that serves.

    Attributes:
        missing: why it cannot be measured, or None.
        http: whether it is driven over HTTP.
        start: starts it; the argument says whether for long contexts.
        one_shape: whether it starts the same way for all loads.
        weights: the format of the weights it serves, for the report.
    """

    name: str
    weights: str
    missing: str | None
    start: Callable[[bool], Running]
    http: bool = True
    one_shape: bool = True

    @property
    def label(self) -> str:
        """Name and weights."""
        return f"{self.name} ({self.weights})" if self.weights else self.name


@dataclass(frozen=True)
class Plan:
    """How an HTTP server is started.

    Attributes:
        command: its arguments, for a port.
        model: its model's name in the API.
        ready_path: answers with 200 once requests are served.
        probe_path: answers without the engine.
        ignore_eos: whether it knows that field.
        tells: whether it tells its metrics and its backend, as Upwell does at ``/metrics`` and ``/health``.
    """

    command: Command
    model: str
    ready_path: str
    probe_path: str
    environment: Mapping[str, str] | None = None
    ignore_eos: bool = True
    tells: bool = False


class HttpServer:
    """A server over HTTP."""

    def __init__(self, name: str, plan: Plan, logs: Path, *, long_context: bool) -> None:
        self.start_s = 0.0
        self._plan = plan
        self._port = free_port()
        self.log = logs / f"{name}{'-long' if long_context else ''}.log"
        self._process = ServerProcess(plan.command(self._port, long_context), self.log, dict(plan.environment or {}))
        url = f"http://127.0.0.1:{self._port}"
        self._load = HttpLoad(url, plan.model, plan.probe_path, ignore_eos=plan.ignore_eos)

    async def ready(self) -> None:
        """Wait until it serves. Raises as ``ServerProcess.wait_ready`` does."""
        self.start_s = await self._process.wait_ready(self._port, self._plan.ready_path)

    async def run(self, jobs: Sequence[Job], concurrency: int, *, probe: bool) -> Outcome:
        """Make the requests of a load."""
        return await self._load.run(jobs, concurrency, probe=probe)

    def pids(self) -> Mapping[str, Sequence[int]]:
        """Processes by role; with several, the first one started serves HTTP."""
        members = self._process.members()
        others = [pid for pid in members if pid != self._process.pid]
        return {"api": [self._process.pid], "engine": others} if others else {"engine": members}

    async def metrics(self) -> Scrape | None:
        """What its metrics are now."""
        return Scrape(await self._get("/metrics")) if self._plan.tells else None

    async def backend(self) -> str | None:
        """What computes, in its own words."""
        return str(json.loads(await self._get("/health"))["backend"]) if self._plan.tells else None

    async def _get(self, path: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer.partition(b"\r\n\r\n")[2].decode(errors="replace")

    async def close(self) -> None:
        """End it."""
        await asyncio.to_thread(self._process.stop)


class InProcess:
    """A peer without a server of its own, driven by ``child`` scripts in its Python: JSON lines in and out."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.start_s = 0.0
        self._began_s = time.perf_counter()
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file)
        self._log = log

    async def ready(self) -> None:
        """Wait until it has loaded its model.

        Raises:
            StartFailed: it ended.
        """
        await self._answer()
        self.start_s = time.perf_counter() - self._began_s

    async def run(self, jobs: Sequence[Job], concurrency: int, *, probe: bool) -> Outcome:
        """Make the requests of a load."""
        requests = [{"ids": job.ids, "max_tokens": job.max_tokens} for job in jobs]
        line = json.dumps({"concurrency": concurrency, "requests": requests}) + "\n"
        assert self._process.stdin is not None  # noqa: S101  (for the type)
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        answer = json.loads(await self._answer())
        traces = [Trace(**trace) for trace in answer["traces"]]
        return Outcome(traces, answer["wall_s"])

    async def metrics(self) -> Scrape | None:
        """It has none."""
        return None

    async def backend(self) -> str | None:
        """It does not say."""
        return None

    def pids(self) -> Mapping[str, Sequence[int]]:
        """One process."""
        return {"engine": [self._process.pid]}

    async def close(self) -> None:
        """End it."""
        self._process.terminate()
        await asyncio.to_thread(self._process.wait)

    async def _answer(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101  (for the type)
        line = await asyncio.to_thread(self._process.stdout.readline)
        if not line:
            raise StartFailed(self._log.read_text(errors="replace")[-2000:])
        return line


@dataclass(frozen=True)
class Usage:
    """CPU seconds of a running system, by role."""

    cpu_s: Mapping[str, float]

    @classmethod
    def of(cls, running: Running) -> Self:
        """As it is now."""
        return cls({role: sum(map(cpu_s, pids)) for role, pids in running.pids().items()})

    def since(self, before: Usage) -> dict[str, float]:
        """CPU seconds by role that were used since ``before``."""
        return {role: used - before.cpu_s.get(role, 0.0) for role, used in self.cpu_s.items()}


def memory(running: Running) -> dict[str, int]:
    """Memory of all processes of a system, bytes: ``pss`` and ``rss``."""
    pids = [pid for group in running.pids().values() for pid in group]
    return {"pss": sum(map(pss_bytes, pids)), "rss": sum(map(rss_bytes, pids))}


def thread_count(asked: int | None) -> int:
    """How many threads every system computes with: what was asked for, or what Upwell would take."""
    return default_threads().count if asked is None else asked


def upwell(model: str, extra: Sequence[str], threads: int, logs: Path) -> System:
    """Upwell, from the environment that this runs in, with as many threads as every peer.

    Raises:
        ValueError: ``extra`` asks for a number of threads.
    """
    if any(argument.startswith("--threads") for argument in extra):
        raise ValueError("--upwell-args: --threads is the benchmark's own, since it is the same for all; give it there")
    program = Path(sys.executable).with_name("upwell")

    def command(port: int, long_context: bool) -> list[str]:
        own = ["--port", str(port), "--served-model-name", "bench", "--threads", str(threads)]
        return [str(program), "serve", model, *own, *extra]

    blas = {"OPENBLAS_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    numpy_computes = find_library() is None or any("reference" in argument for argument in extra)
    plan = Plan(command, "bench", "/readyz", "/livez", blas if numpy_computes else None, tells=True)
    missing = None if program.exists() else f"{program} is not installed"
    return System("upwell", "as stored", missing, lambda long_context: _http("upwell", plan, logs, long_context))


def _http(name: str, plan: Plan, logs: Path, long_context: bool) -> HttpServer:
    return HttpServer(name, plan, logs, long_context=long_context)
