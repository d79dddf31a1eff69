"""Bytes through global memory that the attention kernel takes, by formula; ``executed.cost`` counts them."""

from __future__ import annotations

from kernels.ascend.plan import SPLIT
from kernels.ascend.variant import Dtype
from tools.ascend.cases import ADDENDS

TRAFFIC_GOAL = 1.3
"""Bytes through global memory for each byte of keys and values, in long contexts."""
STEP_BYTES = 4
"""Of a key's or a value's step in a cache of int8."""


def kv_bytes(k_dim: int, v_dim: int, scores: Dtype) -> int:
    """Bytes of a token's key and value in the cache, for each head of keys: two an element, or of int8 with steps."""
    return k_dim + v_dim + 2 * STEP_BYTES if scores == "i32" else 2 * (k_dim + v_dim)


def traffic(group: int, k_dim: int, v_dim: int, scores: Dtype) -> float:
    """Bytes read and written in global memory for each byte of keys and values that a long context has, by count.

    What crosses between cores is written once and read once: scores and weights for each token and row; queries,
    partial sums and their statistics for each split. With a cache of int8, weights and sums are of two planes, and each
    of the two vector cores reads the steps of all tokens.
    """
    score_bytes = 2 if scores == "fp16" else 4
    for_token = group * 2 * (score_bytes + 2)
    for_split = group * (2 * k_dim + 2 * 4 * v_dim)
    if scores == "i32":
        for_token += 2 * STEP_BYTES
        for_split = group * (ADDENDS * k_dim + 2 * 2 * 4 * v_dim)
    return 1 + (for_token + for_split / SPLIT) / kv_bytes(k_dim, v_dim, scores)


def share_of_16_bits(group: int, k_dim: int, v_dim: int) -> float:
    """Bytes that decoding moves with a cache of int8, for each that it moves with one of 16 bits and scores as f32."""
    moved = (kv_bytes(k_dim, v_dim, kind) * traffic(group, k_dim, v_dim, kind) for kind in ("i32", "fp32"))
    of_int8, of_16_bits = moved
    return of_int8 / of_16_bits
