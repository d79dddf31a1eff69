"""Bytes through global memory that the attention kernel takes, by formula; ``executed.cost`` counts them."""

from __future__ import annotations

from kernels.ascend.plan import SPLIT
from kernels.ascend.variant import Dtype

TRAFFIC_GOAL = 1.3
"""Bytes through global memory for each byte of keys and values, in long contexts."""


def traffic(group: int, k_dim: int, v_dim: int, scores: Dtype) -> float:
    """Bytes read and written in global memory for each byte of keys and values that a long context has, by count.

    Keys and values are of two bytes an element. What crosses between cores is written once and read once: scores and
    weights for each token and row; queries, partial sums and their statistics for each split.
    """
    kv_bytes = 2 * (k_dim + v_dim)
    for_token = group * 2 * ((4 if scores == "fp32" else 2) + 2)
    for_split = group * (2 * k_dim + 2 * 4 * v_dim)
    return 1 + (for_token + for_split / SPLIT) / kv_bytes
