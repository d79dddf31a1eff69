"""What the machine can do at most, measured by ``limits.cpp``, which is compiled when it is needed."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

SOURCE = Path(__file__).with_name("limits.cpp")

DECODE_GOP = 0.27
"""Operations of one decoded token of the default model: 2 x 134.5 million weights."""
PREFILL_GOP = 0.214
"""Of one prompt token: the same without the output layer, which only a prompt's last token needs."""


@dataclass(frozen=True)
class Limits:
    """The figures of ``limits.cpp``, the best of its rounds; rates over all threads unless they say otherwise.

    Attributes:
        weights_gbs: reading a buffer of the weights' size again and again, which may stay in a cache.
        large_gbs: reading a buffer that no cache holds.
        raw: all that the program printed, medians included.
    """

    weights_bytes: int
    weights_gbs: float
    large_gbs: float
    int8_gops: float
    fma_gflops: float
    raw: dict[str, Any]

    @classmethod
    def from_raw(cls, raw: dict[str, Any]) -> Self:
        """From what the program printed."""
        return cls(
            weights_bytes=raw["weights_bytes"],
            weights_gbs=raw["read_weights_n_gbs"]["best"],
            large_gbs=raw["read_large_n_gbs"]["best"],
            int8_gops=raw["int8_n_gops"]["best"],
            fma_gflops=raw["fma_n_gflops"]["best"],
            raw=raw,
        )

    @property
    def one_stream(self) -> float:
        """Tokens/s of one stream that reads all weights for each token and does nothing else."""
        return self.weights_gbs * 1e9 / self.weights_bytes

    @property
    def one_stream_from_memory(self) -> float:
        """The same where no cache keeps any of the weights from one token to the next."""
        return self.large_gbs * 1e9 / self.weights_bytes

    @property
    def prefill(self) -> float:
        """Prompt tokens/s if the int8 units did nothing but multiply."""
        return self.int8_gops / PREFILL_GOP

    @property
    def tiny_requests(self) -> float:
        """Requests/s of eight tokens in and one out, at the int8 units' limit."""
        return self.int8_gops / (7 * PREFILL_GOP + DECODE_GOP)

    @property
    def many_streams(self) -> float:
        """Answer tokens/s with as many prompt tokens as answer tokens, both at the int8 units' limit."""
        return 1 / (DECODE_GOP / self.int8_gops + PREFILL_GOP / self.int8_gops)


class NotMeasured(Exception):
    """The limits could not be measured; the message says why."""


def run_program(folder: Path, *arguments: str | int) -> dict[str, Any]:
    """Compile the program into ``folder``, run it with these arguments, and return what it printed.

    Raises:
        NotMeasured: there is no C++ compiler, or it does not compile this.
    """
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise NotMeasured("a C++ compiler is needed to measure the machine's limits; install g++.")
    program = folder / "limits"
    command = [compiler, "-O3", "-std=c++20", "-pthread", str(SOURCE), "-o", str(program)]
    compiled = subprocess.run(command, check=False, capture_output=True, text=True)
    if compiled.returncode:
        raise NotMeasured(f"{compiler} does not compile {SOURCE.name}: {compiled.stderr.strip()[-300:]}")
    done = subprocess.run([str(program), *map(str, arguments)], check=True, capture_output=True, text=True)
    raw: dict[str, Any] = json.loads(done.stdout)
    return raw


def higher_of(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Two runs of the program in one: the higher figure of each kind, with the best of each run as ``both``.

    A host may move a virtual machine while it is measured: processors that share a last-level cache read memory at
    little more than half the rate of such that do not. What is held to a limit is held to the higher one.
    """
    merged = dict(before)
    for key, first in before.items():
        if isinstance(first, dict):
            second = after[key]
            higher = max(first, second, key=lambda figure: float(figure["best"]))
            merged[key] = higher | {"both": [first["best"], second["best"]]}
    return merged


def cpu_name() -> str:
    """The processor's name for itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache of a processor here, None where the kernel does not tell."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.removesuffix("K")) << 10 for size in sizes if size.endswith("K")), default=None)
