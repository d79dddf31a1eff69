"""What scores as f16, and a cache of int8, cost: errors of executed results, and how far weights move."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kernels.ascend.attention import HALF_SCALE
from kernels.ascend.plan import BLOCK_SIZE
from kernels.ascend.variant import AttentionVariant, Dtype
from tools.ascend.cases import AttentionCase, attention_case, widened
from tools.ascend.executed import Executor

LOUDNESS = (1, 4, 16, 64, 8000)
"""By what keys are multiplied; queries and values are of unit variance."""
TOKENS = 4096
_LARGEST = 65504.0


@dataclass(frozen=True)
class ScoreCost:
    """At one loudness.

    Attributes:
        largest: Q Kᵀ, before it is scaled.
        f32, f16: root of the mean square, and maximum, of what results are off by as scores travel so.
        divergence: the most of Kullback and Leibler of a query's weights, in nats, for scores as f16.
        saturated: scores beyond the largest f16, although the backend multiplies queries with ``HALF_SCALE`` first.
    """

    largest: float
    f32: tuple[float, float]
    f16: tuple[float, float]
    divergence: float
    saturated: int


@dataclass(frozen=True)
class CacheCost:
    """Of a cache of int8, at one loudness: roots of the mean square.

    Attributes:
        result: of the result itself.
        wide: what results are off by with a cache of f16.
        int8: what they are off by with one of int8, against the same keys and values before they were rounded to it.
        added: what they are off by against the rounded ones: what the kernel itself is off by.
        divergence: the most of Kullback and Leibler of a query's weights, in nats, for the keys as rounded.
    """

    result: float
    wide: float
    int8: float
    added: float
    divergence: float


def cache_cost(executor: Executor, loudness: float) -> CacheCost:
    """For f16, heads of 128 and a group of 7.

    Raises:
        ToolFailed: a kernel does not compile.
        ValueError: the executor found an error.
    """
    variant = AttentionVariant(2, 7, 128, 128, "fp16", "fp32")
    wide, int8 = (attention_case(each, [TOKENS], loud=loudness) for each in (variant, replace(variant, scores="i32")))
    runs = [executor.run(case) for case in (wide, int8)]
    if errors := [error for run in runs for error in run.errors]:
        raise ValueError("; ".join(errors))
    right = wide.oracle[0]
    of_wide, of_int8 = (widened(run.result) for run in runs)
    return CacheCost(
        result=_mean(right),
        wide=_mean(of_wide - right),
        int8=_mean(of_int8 - right),
        added=_mean(of_int8 - int8.oracle[0]),
        divergence=_divergence(_scores(wide), _scores(int8), wide.scale),
    )


def _mean(x: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt((x**2).mean()))


def score_cost(executor: Executor, loudness: float) -> ScoreCost:
    """For f16, heads of 64 and a group of 7.

    Raises:
        ToolFailed: a kernel does not compile.
        ValueError: the executor found an error.
    """
    errors: dict[Dtype, tuple[float, float]] = {}
    saturated = 0
    for scores in ("fp32", "fp16"):
        variant = AttentionVariant(2, 7, 64, 64, "fp16", scores)
        case = attention_case(variant, [TOKENS], loud=loudness)
        run = executor.run(case, factor=HALF_SCALE if scores == "fp16" else 1.0)
        if run.errors:
            raise ValueError("; ".join(run.errors))
        off = np.abs(widened(run.result) - case.oracle[0])
        errors[scores] = float(np.sqrt((off**2).mean())), float(off.max())
        saturated = sum(report.counters.saturated for report in run.reports)
    exact = _scores(case)
    travelling = np.clip(exact * HALF_SCALE, -_LARGEST, _LARGEST).astype(np.float16)
    rounded = travelling.astype(np.float64) / HALF_SCALE
    largest = float(np.abs(exact).max())
    return ScoreCost(largest, errors["fp32"], errors["fp16"], _divergence(exact, rounded, case.scale), saturated)


def _scores(case: AttentionCase) -> npt.NDArray[np.float64]:
    """Q Kᵀ of the only query in float64: [heads,tokens]."""
    blocks = case.block_table[0, : TOKENS // BLOCK_SIZE]
    q, k, _ = case.numbers
    keys = k[blocks].reshape(TOKENS, case.variant.kv_heads, case.variant.k_dim)
    products: npt.NDArray[np.float64] = np.einsum("hd,thd->ht", q[0], np.repeat(keys, case.variant.group, axis=1))
    return products


def _divergence(exact: npt.NDArray[np.float64], rounded: npt.NDArray[np.float64], scale: float) -> float:
    """The largest of all heads."""
    right, other = (scaled - np.logaddexp.reduce(scaled, 1)[:, None] for scaled in (exact * scale, rounded * scale))
    return float((np.exp(right) * (right - other)).sum(1).max())
