"""Attention cases run by the executed final HIVM of all passes: results, what the executor found, and what it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.ascend.variant import AttentionVariant
from tools.ascend.cases import Array, AttentionCase, attention_case, rounded, widened
from tools.ascend.hivm.execute import Program, Report
from tools.ascend.int8_cases import QueryCase
from tools.ascend.matrix import CUBE_CORES, Kernel, Pass, compiled
from tools.ascend.traffic import kv_bytes

CHIP = "Ascend910B3"
CORES = CUBE_CORES[CHIP]


@dataclass(frozen=True)
class Executed:
    """What a run left.

    Attributes:
        split, combine: arguments of both passes by name.
        result: [R,heads,v_dim].
        reports: of both passes; with a cache of int8 that of the kernel before them first, which makes queries int8.
    """

    split: Mapping[str, Any]
    combine: Mapping[str, Any]
    result: Array
    reports: tuple[Report, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """Of all passes."""
        return tuple(error for report in self.reports for error in report.errors)

    @property
    def unaligned(self) -> int:
        """Vector operands that were not aligned."""
        return sum(report.counters.unaligned_operands for report in self.reports)

    @property
    def traffic_bytes(self) -> int:
        """Bytes of global memory, read and written."""
        counted = [report.counters for report in self.reports]
        regions = [region for one in counted for region in (*one.traffic.values(), one.workspace)]
        return sum(region.read_bytes + region.written_bytes for region in regions)


class Executor:
    """Runs cases on a 910B3's 20 groups of cores; what has been compiled is kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: dict[tuple[AttentionVariant, Pass], Program] = {}

    def program(self, variant: AttentionVariant, which: Pass) -> Program:
        """One pass for a specialisation.

        Raises:
            ToolFailed: it does not compile.
        """
        key = variant, which
        if key not in self._programs:
            self._programs[key] = compiled(Kernel(variant, which, CHIP), self._folder).program(self._folder)
        return self._programs[key]

    def run(self, case: AttentionCase, *, vectors_first: bool = False, factor: float = 1.0) -> Executed:
        """Both passes; with a cache of int8, on the queries that their own kernel makes.

        Args:
            case: what is attended to.
            vectors_first: whether the vector cores of a group run before the cube core where both can.
            factor: a power of two, which queries are multiplied with, and scores divided by once they have travelled.

        Raises:
            ToolFailed: a pass does not compile.
        """
        split = case.split_arguments(CORES)
        if factor != 1:
            split["q_ptr"] = rounded((widened(split["q_ptr"]) * factor).astype(np.float32), case.variant.dtype)
            split["scale"] /= factor
        reports = [self._make_queries(case, split)] if case.variant.planes == 2 else []
        first = self.program(case.variant, "split")
        reports.append(first.run(list(split.values()), CORES, vectors_first=vectors_first))
        combine = case.combine_arguments(split)
        reports.append(self.program(case.variant, combine_pass(case)).run(list(combine.values()), 2 * CORES))
        return Executed(split, combine, case.result(combine), tuple(reports))

    def _make_queries(self, case: AttentionCase, split: dict[str, Any]) -> Report:
        """Queries as int8 into the arguments of the first pass."""
        variant = case.variant
        queries = QueryCase(variant, case.q.reshape(-1, variant.kv_heads, variant.group, variant.k_dim)).arguments()
        report = self.program(variant, "queries").run(list(queries.values()), 2 * CORES)
        split["q_ptr"], split["q_scale_ptr"] = queries["addends_ptr"], queries["scale_ptr"]
        return report


def combine_pass(case: AttentionCase) -> Pass:
    """The second pass that a case needs."""
    return "combine" if case.sink is None else "combine, sink"


@dataclass(frozen=True)
class Cost:
    """Of one sequence's last query, in all passes.

    Attributes:
        traffic: bytes of global memory, read and written, for each byte of its keys and values, steps of int8 included.
        products: multiplications that the matrix unit was asked for, for each that queries, keys and values need:
            group * (k_dim + v_dim) for each token and head of keys.
        elements: that vector instructions worked on, for each score. One is the least: an exponential.
        instructions: vector instructions, for each 1,024 tokens and head of keys.
    """

    traffic: float
    products: float
    elements: float
    instructions: float


def cost(executor: Executor, variant: AttentionVariant, tokens: int) -> Cost:
    """What a decoding query takes that sees so many tokens.

    Raises:
        ToolFailed: a pass does not compile.
        ValueError: the executor found an error.
    """
    run = executor.run(attention_case(variant, [tokens]))
    if run.errors or run.unaligned:
        raise ValueError(f"{variant}: {run.unaligned} unaligned operands; {'; '.join(run.errors)}")
    pairs = tokens * variant.kv_heads
    vector = list(_vector(run))
    return Cost(
        traffic=run.traffic_bytes / (pairs * kv_bytes(variant.k_dim, variant.v_dim, variant.scores)),
        products=sum(report.counters.macs for report in run.reports)
        / (pairs * variant.group * (variant.k_dim + variant.v_dim)),
        elements=sum(elements for _, elements in vector) / (pairs * variant.group),
        instructions=sum(instructions for instructions, _ in vector) * 1024 / pairs,
    )


def _vector(run: Executed) -> Iterator[tuple[int, int]]:
    """Vector instructions and their elements, by pass and element type."""
    for report in run.reports:
        for kind in report.counters.vector.values():
            yield kind.operations, kind.elements
