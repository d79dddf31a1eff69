"""The limits that an operation is held to, all measured in the same run by ``tools/bench/limits.cpp``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from tools.bench.limits import run_program
from tools.bench_kernels.work import Unit, Work

MOST_READ = 1 << 29
"""Bytes of the largest buffer that is read: no cache holds it."""


@dataclass(frozen=True)
class Roofs:
    """For some number of threads.

    Attributes:
        reads: (bytes of a buffer, GB/s when it is read again and again), by rising size; the last one is memory.
        gops: operations a second in each arithmetic, in 1e9.
    """

    threads: int
    reads: Sequence[tuple[int, float]]
    gops: dict[Unit, float]

    @classmethod
    def from_raw(cls, raw: dict[str, Any], *, one: bool) -> Self:
        """From what the program printed, for one thread or for all."""
        which = "1" if one else "n"
        gops: dict[Unit, float] = {
            "int8": raw[f"int8_{which}_gops"]["best"],
            "i16": raw[f"i16_{which}_gops"]["best"],
            "f32": raw[f"fma_{which}_gflops"]["best"],
        }
        reads = [(read["bytes"], read[f"{which}_gbs"]) for read in raw["reads"]]
        return cls(1 if one else raw["threads"], reads, gops)

    def read_gbs(self, num_bytes: int) -> float:
        """GB/s of reading so many bytes again and again: measured sizes are interpolated, by logarithm."""
        sizes, rates = zip(*self.reads, strict=True)
        return float(np.interp(math.log(max(num_bytes, 1)), np.log(sizes), rates))

    @property
    def memory_gbs(self) -> float:
        """GB/s of memory itself."""
        return self.reads[-1][1]

    def bound(self, work: Work, *, cold: bool = False) -> tuple[str, float]:
        """What limits the work, ``read`` or its arithmetic, and the least seconds that it can take."""
        gbs = self.memory_gbs if cold else self.read_gbs(work.num_bytes)
        moving, computing = work.num_bytes / gbs / 1e9, work.num_ops / self.gops[work.unit] / 1e9
        return ("read", moving) if moving >= computing else (work.unit, computing)


def measure_roofs(threads: int, folder: Path) -> dict[str, Any]:
    """What the program prints; see ``Roofs.from_raw``.

    Raises:
        NotMeasured: there is no C++ compiler, or it does not compile the program.
    """
    return run_program(folder, "--threads", threads, "--reads", MOST_READ, "--large-bytes", MOST_READ, "--rounds", 5)
