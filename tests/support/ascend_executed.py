"""Attention cases run by the executed final HIVM, where nothing may be amiss."""

from __future__ import annotations

from tests.support.ascend_links import BUILT
from tools.ascend.cases import Array, AttentionCase
from tools.ascend.executed import Executed, Executor

EXECUTOR = Executor(BUILT)


def executed(case: AttentionCase, *, vectors_first: bool = False) -> Executed:
    """Raises AssertionError if the executor found an error, or a vector operand that is not aligned."""
    run = EXECUTOR.run(case, vectors_first=vectors_first)
    assert run.errors == ()
    assert all(report.counters.vector_operands for report in run.reports)
    assert run.unaligned == 0
    return run


def attended(case: AttentionCase) -> Array:
    """The result, [R,heads,v_dim]."""
    return executed(case).result
