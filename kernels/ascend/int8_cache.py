"""Numbers as int8 for the attention kernel, in Triton: keys and values into the cache, and queries.

A row, a token's head, has one step. The largest number of keys and values is 127 of them: to round them to whole steps
is what a cache of int8 costs in accuracy. That of queries is 508, more than int8 holds: a query goes as four addends,
which the matrix cores add up again as they multiply.

Only triton-ascend's compiler and the Triton interpreter read this file: it is a list of kernels, importable where
triton is installed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.ascend import variant

STEPS = tl.constexpr(127.0)
"""Of the first plane, for the largest number of a row."""
FINE = tl.constexpr(254.0)
"""Steps of a second plane that make one of the first: what the first leaves over is half a step at most."""
ADDENDS = tl.constexpr(variant.ADDENDS)
LEAST = tl.constexpr(1.0e-30)
"""Of a row's largest number, so that a row of zeros has a step that can be divided by."""
WHOLE = tl.constexpr(1.5 * 2**23)
"""Added to a float32 of less than 2^22 it leaves no room for a fraction: the sum is to nearest, ties to even."""


@triton.jit
def nearest(x):
    """Float32 of less than 2^22 to the nearest whole number, ties to even."""
    return (x + WHOLE) - WHOLE


@triton.jit
def as_int8(x):
    """Whole float32 numbers within ±127. Tiles of two axes are converted so, or not at all."""
    return tl.cast(x, tl.int8, overflow_mode="saturate")


@triton.jit
def largest(x):
    """Of each row of x f32[rows, n], none of whose numbers is negative. A maximum may pass over NaN."""
    return tl.maximum(tl.max(x, 1), LEAST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def magnitude(x):
    """The largest of each row of x f32[rows, n] by size; NaN where a number is not finite, since int8 cannot be."""
    return largest(tl.abs(x)) + tl.sum(x * 0.0, 1)


@triton.jit(do_not_specialize=["slots_ptr", "num_tokens"])  # type: ignore[untyped-decorator]
def store_keys_values(
    k_ptr,
    v_ptr,
    slots_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scale_ptr,
    v_scale_ptr,
    num_tokens,
    KV_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    CORES: tl.constexpr,
):
    """Keys and values of tokens to their slots, rounded.

    Shapes: k and v [num_tokens, KV_HEADS, K_DIM or V_DIM] f16 or bf16; slots i32[num_tokens]; caches
    i8[blocks, BLOCK, KV_HEADS, d]; scales f32[blocks, KV_HEADS, BLOCK]. ROWS: KV_HEADS or the next power of two.
    Batch-invariant: rows do not meet.
    """
    for token in range(tl.program_id(0), num_tokens, CORES):
        slot = tl.load(slots_ptr + token)
        scale_at = slot // BLOCK * (KV_HEADS * BLOCK) + slot % BLOCK
        store_rows(
            k_ptr + token * (KV_HEADS * K_DIM), k_cache_ptr + slot.to(tl.int64) * (KV_HEADS * K_DIM),
            k_scale_ptr + scale_at, KV_HEADS, ROWS, K_DIM, BLOCK,
        )  # fmt: skip
        store_rows(
            v_ptr + token * (KV_HEADS * V_DIM), v_cache_ptr + slot.to(tl.int64) * (KV_HEADS * V_DIM),
            v_scale_ptr + scale_at, KV_HEADS, ROWS, V_DIM, BLOCK,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def store_rows(
    x_ptr, cache_ptr, scale_ptr, KV_HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One token's heads x [KV_HEADS, DIM] -> i8 [KV_HEADS, DIM], and a step each f32, BLOCK apart."""
    heads = tl.arange(0, ROWS)
    real = heads < KV_HEADS
    at = heads[:, None] * DIM + tl.arange(0, DIM)[None, :]
    x = tl.load(x_ptr + at, mask=real[:, None], other=0.0).to(tl.float32)
    most = magnitude(x)
    steps = x * (127.0 / most)[:, None]  # a constexpr is not divided under Triton's interpreter
    tl.store(cache_ptr + at, as_int8(nearest(steps)), mask=real[:, None])
    tl.store(scale_ptr + heads * BLOCK, most / STEPS, mask=real)


@triton.jit(do_not_specialize=["num_queries"])  # type: ignore[untyped-decorator]
def split_queries(
    q_ptr,
    addends_ptr,
    scale_ptr,
    num_queries,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    CORES: tl.constexpr,
):
    """Queries as sums of ``ADDENDS`` numbers of int8, times a step.

    Shapes: q [num_queries, KV_HEADS, GROUP, DIM] f16 or bf16; addends i8[ADDENDS, KV_HEADS, num_queries, GROUP, DIM];
    scale f32[KV_HEADS, num_queries, GROUP]. ROWS: GROUP or the next power of two. Batch-invariant: rows do not meet.
    """
    heads = tl.arange(0, ROWS)
    real = heads < GROUP
    at = heads[:, None] * DIM + tl.arange(0, DIM)[None, :]
    for index in range(tl.program_id(0), num_queries * KV_HEADS, CORES):
        q = tl.load(q_ptr + index * (GROUP * DIM) + at, mask=real[:, None], other=0.0).to(tl.float32)
        step = magnitude(q) / (STEPS * ADDENDS)
        steps = nearest(q * (1.0 / step)[:, None])
        row = (index % KV_HEADS) * num_queries + index // KV_HEADS
        tl.store(scale_ptr + row * GROUP + heads, step, mask=real)
        for i in tl.static_range(ADDENDS):
            addend = tl.floor((steps + i) / ADDENDS)
            addend_at = (i * KV_HEADS * num_queries + row) * (GROUP * DIM)
            tl.store(addends_ptr + addend_at + at, as_int8(addend), mask=real[:, None])
