"""Attention cases run by the executed final HIVM, where nothing may be amiss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from kernels.ascend.variant import AttentionVariant
from tests.support.ascend_links import BUILT
from tools.ascend.cases import Array, AttentionCase
from tools.ascend.executed import Executed, Executor
from tools.ascend.host_code import HostKernel
from tools.ascend.lower import lower_combine, lower_split

EXECUTOR = Executor(BUILT)
HOST_CORES = 4


def executed(case: AttentionCase, *, vectors_first: bool = False) -> Executed:
    """Raises AssertionError if the executor found an error, or a vector operand that is not aligned."""
    run = EXECUTOR.run(case, vectors_first=vectors_first)
    assert run.errors == ()
    assert all(report.counters.vector_operands for report in run.reports)
    assert run.unaligned == 0
    return run


@cache
def _host_code(variant: AttentionVariant, has_sink: bool) -> tuple[HostKernel, HostKernel]:
    split = HostKernel(lower_split(variant, HOST_CORES), BUILT)
    return split, HostKernel(lower_combine(variant, 2 * HOST_CORES, has_sink=has_sink), BUILT)


def by_host_code(case: AttentionCase) -> tuple[Mapping[str, Any], Array]:
    """What link 2 gives: the arguments of the first pass, and the result."""
    split_kernel, combine_kernel = _host_code(case.variant, case.sink is not None)
    split = case.split_arguments(HOST_CORES)
    split_kernel.run(split, HOST_CORES)
    combine = case.combine_arguments(split)
    combine_kernel.run(combine, 2 * HOST_CORES)
    return split, case.result(combine)


def check_against_link_2(case: AttentionCase, run: Executed) -> None:
    """Compare partial sums, their statistics and results, to the bit."""
    split, result = by_host_code(case)
    for name in ("partial_ptr", "stats_ptr"):
        assert run.split[name].tobytes() == split[name].tobytes()
    assert run.result.tobytes() == result.tobytes()


def attended(case: AttentionCase) -> Array:
    """The result, [R,heads,v_dim]."""
    return executed(case).result
