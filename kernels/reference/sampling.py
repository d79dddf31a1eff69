"""From logits to the next token, row by row, in float64 and in an order fixed by the vocabulary.

A row is worked on alone, so a token never depends on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kernels.ops import Candidates, DrawParams, HostScores, Scores, StepInputs, StepLimits, Tensor

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
Ids = npt.NDArray[np.intp]

FIRST_GUESS = 64
"""How many of the likeliest tokens are sorted first, when some are looked for that reach a probability together."""


def record(forward: Callable[[StepInputs], Tensor], _limits: StepLimits) -> Callable[[StepInputs], Scores]:
    """There is nothing to record: each step calls ``forward``, whatever its size."""
    return lambda inputs: scores_of(forward(inputs))


def scores_of(logits: F32) -> Scores:
    """Logits f32[R,V], not copied, with the best token of each row i32[R], as ``Scores`` says."""
    best = logits.argmax(axis=1).astype(np.int32)
    best[~np.isfinite(logits).all(axis=1)] = -1
    return HostScores(logits, best)


def draw(logits: F32, params: DrawParams) -> I32:
    """One token a row, from the distribution that temperature, top_k, top_p and min_p leave, in that order.

    Tokens are laid side by side, each as wide as it is likely: by rising id, or with top_k or top_p from the likeliest
    down, the lower id first on a tie. The token that lies at ``uniform`` of the whole is taken.

    Shapes: logits f32[n,V], -inf means never; params of n rows -> i32[n].
    Batch-invariant: rows do not meet.
    Source: Holtzman et al. (2019), top_p; Fan et al. (2018), top_k; Nguyen et al. (2024), min_p.

    Raises:
        ValueError: the parameters are not of n rows.
    """
    columns = (params.temperature, params.top_k, params.top_p, params.min_p, params.uniform)
    rows = zip(logits, *(column.tolist() for column in columns), strict=True)
    return np.array([_draw_row(row.astype(np.float64), *values) for row, *values in rows], dtype=np.int32)


def draw_among(candidates: Candidates, params: DrawParams, draw: Callable[[F32, DrawParams], I32]) -> I32:
    """The token of each row that ``draw`` would take from the whole of it, found among its highest logits: i32[n].

    It is -1 where they do not say: where ``top_k`` ends between equal logits, lower ids go first, and those need not be
    among the candidates. All others are known, and what ``draw`` is given of them is in the order it would put them in.

    Batch-invariant: rows do not meet.

    Args:
        candidates: more than ``top_k`` of each row, or all that it has.
        params: of n rows, with a ``top_k`` above 0.
        draw: a backend's.
    """
    order = np.lexsort((candidates.ids, -candidates.logits))
    rows, count = np.arange(len(order)), order.shape[1]
    logits, ids = candidates.logits[rows[:, None], order], candidates.ids[rows[:, None], order]
    ends = np.minimum(params.top_k, count)
    is_open = (ends < count) & (logits[rows, ends - 1] == logits[rows, np.minimum(ends, count - 1)])
    return np.where(is_open, np.int32(-1), ids[rows, draw(logits, params)])


def _draw_row(logits: F64, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    ids = highest(logits, top_k) if top_k else np.arange(len(logits))
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        weights = np.exp((logits[ids] - logits[ids].max()) / temperature)
    if top_p < 1.0:
        kept = nucleus(weights, top_p)
        ids, weights = ids[kept], weights[kept]
    if min_p > 0.0:
        kept = np.flatnonzero(weights >= min_p * weights.max())
        ids, weights = ids[kept], weights[kept]
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    if index == len(ids):  # rounding carried the product up to the total itself
        index = int(np.flatnonzero(weights)[-1])
    return int(ids[index])


def highest(values: F32 | F64, count: int) -> Ids:
    """Indices of the ``count`` highest of values [V], highest first, the lower index first on a tie; all if fewer."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    if count < len(values):
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= threshold)
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def nucleus(weights: F64, top_p: float) -> Ids:
    """Indices of the smallest set of highest weights that holds at least ``top_p`` of the total, highest first.

    Weights f64[V] need not add up to 1; the lower index goes first on a tie.
    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2019).
    """
    goal = top_p * weights.sum()
    count = FIRST_GUESS
    while True:  # nearly always few tokens suffice, so do not sort the whole vocabulary
        order = highest(weights, count)
        cumulative = np.cumsum(weights[order])
        if cumulative[-1] >= goal:
            return order[: int(np.searchsorted(cumulative, goal)) + 1]
        if count >= len(weights):
            return order
        count *= 16
