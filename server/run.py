"""``upwell serve``: the order in which things start and stop.

The socket is bound first, so that a port in use is known at once; then the engine loads while the API already answers
``/livez`` and refuses requests with a 503. A Ctrl-C or SIGTERM before the server is ready ends it at once, whatever it
is at, with 128 and the signal's number as exit code. After that a first one lets open requests finish, a second one
does not, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape

from engine.errors import ConfigError
from engine.freed_memory import return_freed_memory
from engine.tokenizer import load_tokenizer
from engine.types import EngineReady, LoadProgress
from engine.weights.pypi import stop_downloads
from engine.weights.store import LocalModel, resolve_model
from server.app import create_app
from server.bridge import EngineBridge
from server.chat_profile import ChatProfile, profile_of
from server.chat_template import ChatTemplate
from server.context import ModelPrompts, ServerContext
from server.guard import LOOPBACK_HOSTS
from server.http_server import HttpServer
from server.settings import ServeSettings, engine_environment, is_loopback

if TYPE_CHECKING:
    from rich.progress import Progress

NORMALISED_CHARS = 4
"""A tokenizer that normalises its text may make one character of several; none makes one of more than four."""


async def run_server(settings: ServeSettings, console: Console) -> None:
    """Serve until a signal ends it.

    Raises:
        UpwellError: it could not start.
    """
    signals = _signals(asyncio.get_running_loop())
    stopped = asyncio.create_task(signals.get())
    ready = asyncio.Event()
    serving = asyncio.create_task(_start(settings, console, _Stop(stopped, signals, ready)))
    await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not ready.is_set() and not serving.done():
        serving.cancel()
        await asyncio.wait([serving])
        stop_downloads()
        # Threads that still fetch or read a model would be waited for by any other way out.
        os._exit(128 + stopped.result())
    await serving


@dataclass(frozen=True)
class _Stop:
    """The signals that end the server.

    Attributes:
        first: done when the first one has come.
        others: those after it.
        ready: set once the first one lets open requests finish.
    """

    first: asyncio.Task[signal.Signals]
    others: asyncio.Queue[signal.Signals]
    ready: asyncio.Event


async def _start(settings: ServeSettings, console: Console, stop: _Stop) -> None:
    """Find the model, start the engine, and serve until ``stop`` has been asked for."""
    began_s = time.monotonic()
    sock = bind(settings.host, settings.port)
    with contextlib.closing(sock):
        model = await asyncio.to_thread(resolve_model, settings.model, settings.cache_dir, console.print)
        config = msgspec.structs.replace(settings.engine, model_path=utf8_path(model.path))
        with _weights_bar(console) as on_progress:
            bridge = EngineBridge(
                config,
                silence_limit_s=settings.engine_timeout_s,
                environment=engine_environment(),
                on_progress=on_progress,
            )
            try:
                await _serve(settings, model, bridge, sock, console, began_s, stop)
            finally:
                await bridge.close()


async def _serve(
    settings: ServeSettings,
    model: LocalModel,
    bridge: EngineBridge,
    sock: socket.socket,
    console: Console,
    began_s: float,
    stop: _Stop,
) -> None:
    loading = asyncio.create_task(bridge.start())
    tokenizer = await asyncio.to_thread(load_tokenizer, Path(model.path))
    source = tokenizer.chat_template
    template = None if source is None else ChatTemplate(source, tokenizer.special_tokens)
    profile = ChatProfile(has_template=False) if template is None else _profile(template, settings)
    prompts = ModelPrompts(tokenizer, template, profile)
    await asyncio.to_thread(prompts.prepare)
    return_freed_memory()
    names = settings.served_names or (model.name,)
    context = ServerContext(
        engine=bridge,
        prompts=prompts,
        vocabulary=tokenizer,
        model_names=names,
        max_chars_per_token=NORMALISED_CHARS * tokenizer.longest_token_bytes,
        max_waiting=settings.max_waiting,
        api_keys=settings.api_keys,
        allowed_hosts=LOOPBACK_HOSTS | {settings.host} if is_loopback(settings.host) else None,
    )
    server = HttpServer(create_app(context), context.loop_lag)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        ready = await loading
        stop.ready.set()
        _banner(console, settings, names[0], ready, sock, time.monotonic() - began_s)
        await stop.first
        await _drain(bridge, stop.others, settings.drain_timeout_s, console)
        server.stop()
        await serving
    finally:
        await context.grammars.close()


def _profile(template: ChatTemplate, settings: ServeSettings) -> ChatProfile:
    return profile_of(template.source, family=settings.tool_call_parser, thoughts=settings.reasoning_parser)


def utf8_path(path: Path) -> str:
    """A path as text, which is how it goes to the engine.

    Raises:
        ConfigError: it is not valid UTF-8.
    """
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the model's path {text!a} is not valid UTF-8; give it another name.") from None
    return text


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        number = error.errno or 0  # a failed look-up has a negative one of its own
        reason = os.strerror(number) if number > 0 else str(error.strerror or error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}. Choose another --port or --host.") from error
    # Accepted connections inherit it; asyncio would set it only on sockets made with the protocol's number.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _signals(loop: asyncio.AbstractEventLoop) -> asyncio.Queue[signal.Signals]:
    received: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, received.put_nowait, number)
    return received


async def _drain(
    bridge: EngineBridge, signals: asyncio.Queue[signal.Signals], timeout_s: float, console: Console
) -> None:
    """Wait until open requests have ended, time is up, or another signal comes."""
    bridge.drain()
    if bridge.num_open:
        console.print(f"Finishing {bridge.num_open} open requests; press Ctrl-C again to stop now.")
    again = asyncio.create_task(signals.get())
    deadline_s = time.monotonic() + timeout_s
    while bridge.num_open and not again.done() and time.monotonic() < deadline_s:
        await asyncio.wait([again], timeout=0.05)
    again.cancel()
    if bridge.num_open:
        await bridge.close()  # gives every open stream its error event


@contextlib.contextmanager
def _weights_bar(console: Console) -> Iterator[Callable[[LoadProgress], None]]:
    """On a terminal, a progress bar that follows the engine's loading of weights, and goes when it is done."""
    if not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415  (1 MB, for terminals)

    columns = (TextColumn("Loading weights"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _OnProgress(progress)


class _OnProgress:
    """Moves the bar; stops drawing once all is loaded."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("weights", total=None)

    def __call__(self, message: LoadProgress) -> None:
        self._progress.update(self._task, completed=message.done_bytes, total=message.total_bytes)
        if message.done_bytes >= message.total_bytes:
            self._progress.stop()


def _banner(
    console: Console, settings: ServeSettings, name: str, ready: EngineReady, sock: socket.socket, took_s: float
) -> None:
    """Say that it is ready, and what to try."""
    host, port = sock.getsockname()[:2]
    url = escape(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_keys else ""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    question = json.dumps({"model": name, "messages": messages})
    cache_tokens = ready.num_blocks * ready.block_size
    lines = [
        f"[bold green]Ready[/] on [bold]{url}[/] after {took_s:.1f} s",
        f"  model    {escape(name)} ({ready.architecture}), context length {ready.max_model_len:,} tokens",
        f"  backend  {escape(ready.backend)}",
        f"  cache    {cache_tokens:,} tokens in {ready.num_blocks:,} blocks, {ready.kv_cache_bytes / 2**20:,.0f} MiB",
        f"  try      curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\",
        f"             -d '{escape(question)}'",
        "  stop     Ctrl-C",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)
