"""What the API process spends on a streamed token, beside the floor: the same bytes written to the same sockets.

The server's own process runs as in ``upwell serve``, but the engine at the other end of its socket pair computes
nothing: every ``STEP_S`` it sends one token for each open request. Counted is the CPU time of the API process alone,
for answers of ``SHORT`` and of ``LONG`` tokens: the difference is what a token costs, the rest what a request does.

    .venv/bin/python -m tools.bench_api [--streams N] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import msgspec

from engine.config import EngineConfig
from engine.process import Link
from engine.tokenizer import load_tokenizer
from engine.types import (
    EngineReady,
    FinishReason,
    GenerateRequest,
    Inbound,
    StepOutput,
    TokenDelta,
    Usage,
)
from engine.weights.store import resolve_model
from server.app import create_app
from server.bridge import EngineBridge
from server.context import ModelPrompts, ServerContext
from server.http_server import HttpServer
from server.run import bind
from server.settings import DEFAULT_MODEL, cache_dir
from tools.bench.client import HttpLoad, Job
from tools.bench.processes import ServerProcess, cpu_s, free_port

STEP_S = 0.02
SHORT, LONG = 128, 512
NAME = "paced"
TEXTS = (" the", " time", ",", " of", " answer", "\n", " that", ' "We', " is", " Überlegung")
READY = EngineReady("Paced", 49152, 8192, 4096, 16, NAME, {}, 0, 0)


class PacedBridge(EngineBridge):
    """The bridge to an engine that takes its time, and nothing else."""

    async def _spawn(self, descriptor: int) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "tools.bench_api", "--engine", str(descriptor)]
        return await asyncio.create_subprocess_exec(*command, pass_fds=(descriptor,))


def run_engine(descriptor: int) -> None:
    """The engine's end: one delta for each open request, every ``STEP_S``."""
    link = Link(socket.socket(fileno=descriptor))
    link.first_frame()
    link.send(READY)
    decoder = msgspec.msgpack.Decoder(Inbound)
    open_requests: dict[str, tuple[GenerateRequest, int]] = {}
    step = 0
    while True:
        began_s = time.monotonic()
        for frame in link.frames(0 if open_requests else 1.0):
            message = decoder.decode(frame)
            if isinstance(message, GenerateRequest):
                open_requests[message.request_id] = (message, 0)
            else:
                open_requests.pop(message.request_id, None)
        deltas = []
        for request, num_tokens in list(open_requests.values()):
            deltas.append(_delta(request, num_tokens + 1, step))
            open_requests[request.request_id] = (request, num_tokens + 1)
            if deltas[-1].finish:
                del open_requests[request.request_id]
        link.send(StepOutput(deltas, None))
        step += 1
        time.sleep(max(0.0, STEP_S - (time.monotonic() - began_s)))


def _delta(request: GenerateRequest, num_tokens: int, step: int) -> TokenDelta:
    token_ids, text = [step % 49152], TEXTS[(step + num_tokens) % len(TEXTS)]
    if num_tokens < request.sampling.max_tokens:
        return TokenDelta(request.request_id, token_ids, text)
    usage = Usage(len(request.prompt_ids), num_tokens, 0, 0.0, 0.0, 0.0, 0)
    return TokenDelta(request.request_id, token_ids, text, None, FinishReason.LENGTH, usage)


async def run_server(port: int) -> None:
    """The API process."""
    tokenizer = load_tokenizer(resolve_model(DEFAULT_MODEL, cache_dir(None), print).path)
    bridge = PacedBridge(EngineConfig(model_path=NAME), silence_limit_s=60)
    await bridge.start()
    context = ServerContext(
        engine=bridge, prompts=ModelPrompts(tokenizer, None), vocabulary=tokenizer, model_names=(NAME,)
    )
    await HttpServer(create_app(context), context.loop_lag).serve(sockets=[bind("127.0.0.1", port)])


class Floor(asyncio.Protocol):
    """A connection that answers anything with ready-made chunks, as many as the request's ``max_tokens``."""

    open: ClassVar[dict[Floor, int]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (for the type)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """A request, or a look at whether it is ready."""
        if data.startswith(b"GET"):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.transport.close()
            return
        self.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        Floor.open[self] = int(data.split(b'"max_tokens": ')[1].split(b",")[0])

    @classmethod
    async def step_for_ever(cls) -> None:
        """One chunk for each open answer, every ``STEP_S``."""
        event = b'data: {"choices":[{"text":" the' + b" " * 150 + b'"}]}\n\n'
        chunk = b"%x\r\n%b\r\n" % (len(event), event)
        while True:
            await asyncio.sleep(STEP_S)
            for connection, left in list(cls.open.items()):
                connection.transport.write(chunk)
                cls.open[connection] = left - 1
                if left == 1:
                    connection.transport.write(b"0\r\n\r\n")
                    del cls.open[connection]


async def run_floor(port: int) -> None:
    """Nothing but the writes."""
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port)
    async with server:
        await Floor.step_for_ever()


async def measure(role: str, num_streams: int, rounds: int) -> None:
    """Print microseconds a token, of the best round."""
    port = free_port()
    command = [sys.executable, "-m", "tools.bench_api", role, str(port)]
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(command, Path(folder) / "log")
        try:
            await server.wait_ready(port, "/livez")
            load = HttpLoad(f"http://127.0.0.1:{port}", NAME, "/livez")
            await spent(load, server.pid, num_streams, 16)
            spent_s = {n: [await spent(load, server.pid, num_streams, n) for _ in range(rounds)] for n in (SHORT, LONG)}
        finally:
            server.stop()
    short_s, long_s = (min(spent_s[n]) for n in (SHORT, LONG))
    token_us = 1e6 * (long_s - short_s) / (LONG - SHORT) / num_streams
    all_us = sorted(1e6 * one / SHORT / num_streams for one in spent_s[SHORT])
    print(f"{role.removeprefix('--'):<9}{all_us[0]:>8.1f}{all_us[-1]:>8.1f}{token_us:>12.1f}", end="")
    print(f"{1e6 * short_s / num_streams - token_us * SHORT:>12.0f}")


async def spent(load: HttpLoad, pid: int, num_streams: int, num_tokens: int) -> float:
    """CPU seconds of the process for one answer on each stream."""
    before_s = cpu_s(pid)
    outcome = await load.run([Job("word " * 126, [], num_tokens)] * num_streams, num_streams)
    failed = [trace.error for trace in outcome.traces if trace.error]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return cpu_s(pid) - before_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("floor", "server"))
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--server", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--floor", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine is not None:
        run_engine(args.engine)
    elif args.server is not None:
        asyncio.run(run_server(args.server))
    elif args.floor is not None:
        asyncio.run(run_floor(args.floor))
    else:
        print(
            f"us of CPU {args.streams} streams, answers of {SHORT}: a token, best and worst; a further token; a request"
        )
        for role in ("floor", "server"):
            if args.only in (None, role):
                asyncio.run(measure(f"--{role}", args.streams, args.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
