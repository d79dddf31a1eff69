"""The ``upwell`` command: serve, pull, chat."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from engine.config import EngineConfig
from engine.errors import UpwellError
from engine.weights.store import resolve_model
from server import settings

app = typer.Typer(
    name="upwell",
    help="An OpenAI-compatible inference server for Huawei Ascend NPUs and for the CPU you sit at.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False)


@app.command()
def serve(
    model: settings.Model = settings.DEFAULT_MODEL,
    *,
    host: settings.Host = "127.0.0.1",
    port: settings.Port = 8000,
    api_key: settings.ApiKeys = [],  # noqa: B006  (typer reads the default, nobody changes it)
    insecure: settings.Insecure = False,
    served_model_name: settings.ServedNames = [],  # noqa: B006
    max_waiting: settings.MaxWaiting = 256,
    drain_timeout: settings.DrainTimeout = 60.0,
    device: settings.Device = "auto",
    threads: settings.Threads = None,
    max_model_len: settings.MaxModelLen = None,
    max_num_seqs: settings.MaxNumSeqs = 64,
    max_num_batched_tokens: settings.MaxBatchedTokens = 512,
    engine_timeout: settings.EngineTimeout = 300.0,
    block_size: settings.BlockSize = 16,
    kv_cache_dtype: settings.CacheType = "auto",
    kv_cache_memory_bytes: settings.CacheBytes = "1GiB",
    num_blocks: settings.NumBlocks = None,
    enable_prefix_caching: settings.PrefixCaching = True,
    cache_dir: settings.CacheDir = None,
) -> None:
    """Serve a model over HTTP."""
    from server.run import run_server  # noqa: PLC0415  (pull and chat start faster without the HTTP stack)

    _log_to_stderr()
    with _errors_in_one_line():
        wanted = settings.ServeSettings(
            model=model,
            host=host,
            port=port,
            api_keys=tuple(api_key),
            insecure=insecure,
            served_names=tuple(served_model_name),
            max_waiting=max_waiting,
            drain_timeout_s=drain_timeout,
            engine_timeout_s=engine_timeout,
            cache_dir=settings.cache_dir(cache_dir),
            engine=EngineConfig(
                model_path="",
                device=device,
                threads=threads,
                kv_cache_dtype=kv_cache_dtype,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                block_size=block_size,
                num_blocks=num_blocks,
                kv_cache_bytes=settings.parse_bytes(kv_cache_memory_bytes),
                enable_prefix_caching=enable_prefix_caching,
            ),
        )
        wanted.check()
        asyncio.run(run_server(wanted, console))


@app.command()
def pull(
    model: settings.Model = settings.DEFAULT_MODEL,
    *,
    cache_dir: settings.CacheDir = None,
) -> None:
    """Fetch a model into the cache, and print where it lies."""
    with _errors_in_one_line():
        local = resolve_model(model, settings.cache_dir(cache_dir), console.print)
    print(local.path)


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="One question; without it, a conversation begins.")] = None,
    *,
    url: settings.Url = settings.DEFAULT_URL,
    api_key: settings.ClientKey = None,
    system: Annotated[str | None, typer.Option(help="System message to begin with.")] = None,
    temperature: settings.Temperature = None,
    max_tokens: settings.MaxTokens = 512,
) -> None:
    """Chat with a running server in the terminal."""
    from server.chat_client import Chat  # noqa: PLC0415  (only this command needs an HTTP client)

    with _errors_in_one_line():
        conversation = Chat(url, api_key, system, {"temperature": temperature, "max_tokens": max_tokens})
        if message is not None:
            conversation.ask(message)
        else:
            conversation.talk()


@app.callback(invoke_without_command=True)
def root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options that come before a command."""
    if show_version:
        print(f"upwell {version('upwell')}")
        raise typer.Exit


def main() -> NoReturn:
    """Entry point of the ``upwell`` command."""
    _check_package_names()
    app()
    sys.exit(0)


def _check_package_names() -> None:
    """Other distributions own packages called ``kernels`` or ``server`` too: make sure that ours are ours."""
    import engine  # noqa: PLC0415
    import kernels  # noqa: PLC0415
    import server  # noqa: PLC0415

    homes = {Path(str(module.__file__)).parent.parent for module in (server, engine, kernels)}
    if len(homes) != 1:
        places = ", ".join(sorted(map(str, homes)))
        console.print(
            f"[red]error:[/red] the packages server, engine and kernels come from different places ({places}); "
            "another distribution has taken one of the names. Install upwell into a fresh virtual environment.",
            soft_wrap=True,
        )
        sys.exit(1)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("upwell").setLevel(logging.INFO)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What can be said in a sentence is said in one, and the exit code is 1."""
    try:
        yield
    except UpwellError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
