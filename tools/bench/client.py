"""A load generator that costs little: it keeps what arrives with its time, and reads it when the load is over.

One connection for each stream, kept alive between requests. Works with any OpenAI-compatible server on this machine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

REQUEST_TIMEOUT_S = 600
PROBE_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Job:
    """One request to be made.

    Attributes:
        prompt: as text; ``ids`` is the same as tokens, for peers that are driven in process.
    """

    prompt: str
    ids: list[int]
    max_tokens: int


@dataclass
class Trace:
    """What happened to one request; times are of ``time.perf_counter``.

    Attributes:
        stamps_s: when each piece of the answer arrived; a piece is mostly one token.
        num_tokens: tokens of the answer, as the server counts them.
        prompt_tokens: tokens of the prompt, as the server counts them.
    """

    began_s: float
    stamps_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def first_token_s(self) -> float:
        """Seconds to the first token."""
        return self.stamps_s[0] - self.began_s


@dataclass
class Outcome:
    """What a load gave. ``probes_s`` holds the answer times of a probe beside it, if there was one."""

    traces: list[Trace]
    wall_s: float
    probes_s: list[float] = field(default_factory=list)


class HttpLoad:
    """Runs loads against one server.

    Args:
        base_url: such as ``http://127.0.0.1:8000``.
        model: the name in the API.
        probe_path: what the probe asks for, such as ``/livez``.
        ignore_eos: whether to ask for answers of full length, of a server that knows how to.
    """

    def __init__(self, base_url: str, model: str, probe_path: str, *, ignore_eos: bool = True) -> None:
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._model = model
        self._length = {"ignore_eos": True} if ignore_eos else {}
        self._probe = _head(self._host, "GET", probe_path)

    async def run(self, jobs: Sequence[Job], concurrency: int, *, probe: bool = False) -> Outcome:
        """Make all requests, ``concurrency`` at once, each stream its next as soon as one is answered."""
        waiting = iter([self._request(job) for job in jobs])
        answers: list[_Answer] = []
        connections = [await self._connect() for _ in range(concurrency)]
        probes_s: list[float] = []
        prober = asyncio.create_task(self._keep_probing(probes_s)) if probe else None
        began_s = time.perf_counter()
        await asyncio.gather(*(self._stream(connection, waiting, answers) for connection in connections))
        wall_s = time.perf_counter() - began_s
        if prober is not None:
            prober.cancel()
        return Outcome([answer.trace() for answer in answers], wall_s, probes_s)

    def _request(self, job: Job) -> bytes:
        body = {
            "model": self._model,
            "prompt": job.prompt,
            "max_tokens": job.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | self._length
        return _head(self._host, "POST", "/v1/completions", json.dumps(body).encode())

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(_Connection, self._host, self._port)
        return protocol

    async def _stream(self, connection: _Connection, waiting: Any, answers: list[_Answer]) -> None:
        for request in waiting:
            if connection.lost:
                connection = await self._connect()
            kept = connection.has_answered
            answer = await connection.ask(request)
            if kept and not answer.pieces and connection.lost:  # it was being closed: not the server's fault
                connection = await self._connect()
                answer = await connection.ask(request, answer.began_s)
            answers.append(answer)
        connection.close()

    async def _keep_probing(self, probes_s: list[float]) -> None:
        connection = await self._connect()
        while True:
            began_s = time.perf_counter()
            if connection.lost:
                connection = await self._connect()
            await connection.ask(self._probe)
            took_s = time.perf_counter() - began_s
            probes_s.append(took_s)
            await asyncio.sleep(max(0, PROBE_INTERVAL_S - took_s))


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self.lost = False
        self.has_answered = False
        self._answer: _Answer | None = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of the protocol."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (for the type)
        self._transport = transport

    async def ask(self, request: bytes, began_s: float | None = None) -> _Answer:
        """Send a request and wait until its answer is whole; it counts from ``began_s`` on if it was sent before."""
        answer = self._answer = _Answer(time.perf_counter() if began_s is None else began_s)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._done
        except TimeoutError:
            answer.problem = f"no answer within {REQUEST_TIMEOUT_S} s"
            self.close()
        return answer

    def data_received(self, data: bytes) -> None:
        """Part of the protocol: what runs for every token."""
        answer = self._answer
        if answer is None or self._done is None:
            return
        answer.pieces.append((time.perf_counter(), data))
        if answer.is_whole(data) and not self._done.done():
            self.has_answered = True
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of the protocol."""
        self.lost = True
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def close(self) -> None:
        """Hang up."""
        self.lost = True
        self._transport.close()


class _Answer:
    """The raw bytes of one HTTP answer, and when they came."""

    def __init__(self, began_s: float) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.problem: str | None = None
        self.began_s = began_s
        self._in_body = False
        self._tail = b""
        self._missing: int | None = None

    def is_whole(self, data: bytes) -> bool:
        """Whether ``data`` was the end of it: the last chunk, or the last of ``Content-Length`` bytes."""
        if not self._in_body:
            head, found, data = b"".join(piece for _, piece in self.pieces).partition(b"\r\n\r\n")
            if not found:
                return False
            self._in_body = True
            self._missing = _content_length(head)
        if self._missing is not None:
            self._missing -= len(data)
            return self._missing <= 0
        self._tail = (self._tail + data)[-5:]
        return self._tail == b"0\r\n\r\n"

    def trace(self) -> Trace:
        """Read it all."""
        trace = Trace(self.began_s, error=self.problem)
        raw = b"".join(data for _, data in self.pieces)
        if not raw.startswith(b"HTTP/1.1 200"):
            head, _, body = raw.partition(b"\r\n\r\n")
            status = head.split(b"\r\n")[0].decode(errors="replace")
            trace.error = trace.error or f"answered {status!r} {body[:200].decode(errors='replace')}"
            return trace
        for arrived_s, event in self._events():
            if event == b"[DONE]":
                break
            _read_event(trace, arrived_s, json.loads(event))
        trace.num_tokens = trace.num_tokens or len(trace.stamps_s)
        if not trace.num_tokens:
            trace.error = trace.error or "no token came"
        elif not trace.stamps_s:  # tokens without a text of their own
            trace.stamps_s.append(self.pieces[-1][0])
        return trace

    def _events(self) -> list[tuple[float, bytes]]:
        """The data of each event, with the time when its last byte came.

        The framing of chunks never falls into a line of JSON unless a chunk ends there, which no server here does.
        """
        events, rest = [], b""
        for arrived_s, data in self.pieces:
            *lines, rest = (rest + data).split(b"\n")
            events += [(arrived_s, line[5:].strip()) for line in lines if line.startswith(b"data:")]
        return events


def _read_event(trace: Trace, arrived_s: float, event: dict[str, Any]) -> None:
    if "error" in event:
        trace.error = str(event["error"])
    usage = event.get("usage")
    if usage:
        trace.num_tokens = usage.get("completion_tokens") or 0
        trace.prompt_tokens = usage.get("prompt_tokens") or 0
        trace.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    if any(choice.get("text") for choice in event.get("choices") or []):
        trace.stamps_s.append(arrived_s)


def _head(host: str, method: str, path: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Accept: */*"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _content_length(head: bytes) -> int | None:
    """Bytes of the body, None if it is chunked."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return None
