"""Cases of the Ascend attention kernel: inputs as it takes them, an oracle in float64, and what it may be off by.

Tests of every link of the chain and the first hour on a chip try the kernel on these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from kernels.ascend.plan import BLOCK_SIZE, NO_WINDOW, SPLIT, AttentionPlan, plan_attention
from kernels.ascend.variant import AttentionVariant, Dtype

Array = Any
"""A NumPy array; bfloat16 is uint16."""
BORDERS = (1, 127, 128, 129, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT + 129)
"""Lengths of contexts around the ends of blocks and of splits."""
UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24, "i32": 0.0}
"""Unit roundoff, to nearest."""
TINY = {"fp16": 2.0**-25, "bf16": 2.0**-134, "fp32": 2.0**-150}
"""Half of the smallest number: what rounding does to results that are smaller than the normal ones."""
STEPS, FINE, ADDENDS = 127, 254, 4
"""Of int8: steps of a row's largest number, steps of a second plane that make one of the first, addends of a query."""
SECOND_PLANE_OFF = 0.5 / (STEPS * FINE) + 2.0**-22
"""What two planes are off by, as a share of a row's largest number: half a step, and roundings in float32."""


def rounded(x: Array, dtype: Dtype) -> Array:
    """Float32 numbers as the kernel's memory holds them: float16, float32, or the upper halves of float32 as uint16."""
    if dtype != "bf16":
        return x.astype({"fp16": np.float16, "fp32": np.float32}[dtype])
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), nearest)


def widened(x: Array) -> Array:
    """The reverse, in float64."""
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def to_int8(x: Array) -> tuple[Array, Array]:
    """Float32 rows [...,n] as the cache has them: i8[...,n], and the step of each f32[...]."""
    most = _largest(x)
    return np.rint(x * (np.float32(STEPS) / most)[..., None]).astype(np.int8), most / np.float32(STEPS)


def to_addends(x: Array) -> tuple[Array, Array]:
    """Float32 rows [...,n] as sums of numbers i8[ADDENDS,...,n], and the step of each f32[...]."""
    step = _largest(x) / np.float32(STEPS * ADDENDS)
    whole = np.rint(x * (np.float32(1) / step)[..., None])
    return np.stack([np.floor((whole + i) / ADDENDS).astype(np.int8) for i in range(ADDENDS)]), step


def _largest(x: Array) -> Array:
    """Of each row by size; NaN where a number is not finite."""
    return np.ascontiguousarray(np.maximum(np.abs(x).max(-1), np.float32(1e-30)) + (x * 0).sum(-1))


def variant_of(
    group: int,
    k_dim: int,
    v_dim: int,
    dtype: Dtype,
    *,
    kv_heads: int = 2,
    scores: Dtype = "fp32",
    queries: int = 1,
) -> AttentionVariant:
    """A specialisation for ``kv_heads`` heads of keys; scores travel as the backend has them unless told otherwise."""
    return AttentionVariant(kv_heads, group, k_dim, v_dim, dtype, scores, queries)


@dataclass(frozen=True)
class AttentionCase:
    """Sequences with some queries each, and what they see.

    Attributes:
        q: [R,heads,k_dim]; k, v: [blocks,128,kv_heads,d]; block_table: i32[B,M].
        k_scale, v_scale: f32[blocks,kv_heads,128], the steps of keys and values of int8; else None.
        q_starts: i32[B+1]; kv_lens: i32[B].
        sink: f32[kv_heads,group], or None.
    """

    variant: AttentionVariant
    q: Array
    k: Array
    v: Array
    block_table: Array
    q_starts: Array
    kv_lens: Array
    window: int
    sink: Array | None
    k_scale: Array | None = None
    v_scale: Array | None = None

    @property
    def scale(self) -> float:
        """Of scores: one over the root of a key's elements."""
        return float(self.variant.k_dim**-0.5)

    @cached_property
    def plan(self) -> AttentionPlan:
        """The lists that the kernel goes by."""
        return plan_attention(self.q_starts, self.kv_lens, queries=self.variant.queries, window=self.window)

    @cached_property
    def queries(self) -> tuple[Array, Array | None]:
        """As the kernel takes them: by head, with an int8 cache in addends, and then their steps."""
        variant = self.variant
        by_head = self.q.reshape(len(self.q), variant.kv_heads, variant.group, -1).transpose(1, 0, 2, 3)
        if variant.planes == 1:
            return np.ascontiguousarray(by_head), None
        with np.errstate(invalid="ignore"):
            return to_addends(widened(by_head).astype(np.float32))

    @cached_property
    def numbers(self) -> tuple[Array, Array, Array]:
        """Queries, keys and values as the kernel's arguments have them, in float64: the shapes of q, k and v."""
        k, v = widened(self.k), widened(self.v)
        if self.k_scale is None or self.v_scale is None:
            return widened(self.q), k, v
        addends, step = self.queries
        q = widened(addends).sum(0) * widened(step)[..., None]
        k, v = (x * widened(scale).transpose(0, 2, 1)[..., None] for x, scale in ((k, self.k_scale), (v, self.v_scale)))
        return q.transpose(1, 0, 2, 3).reshape(self.q.shape), k, v

    def split_arguments(self, cores: int) -> dict[str, Any]:
        """What ``paged_attention_split`` is called with, by name, in order; scratch memory full of NaN."""
        variant, plan, num_tasks = self.variant, self.plan, len(self.plan.task_tile)
        nothing = [np.zeros(1, dtype=np.float32) for _ in range(3)]
        q, q_scale = self.queries
        return {
            "q_ptr": q, "k_ptr": self.k, "v_ptr": self.v, "q_scale_ptr": nothing[0] if q_scale is None else q_scale,
            "k_scale_ptr": nothing[1] if self.k_scale is None else self.k_scale,
            "v_scale_ptr": nothing[2] if self.v_scale is None else self.v_scale, "block_table_ptr": self.block_table,
            "tile_seq_ptr": plan.tile_seq, "tile_query_ptr": plan.tile_query, "tile_queries_ptr": plan.tile_queries,
            "tile_len_ptr": plan.tile_len, "order_ptr": plan.order,
            "task_tile_ptr": plan.task_tile, "task_split_ptr": plan.task_split, "num_tasks_ptr": _one(num_tasks),
            "scores_ptr": unwritten(variant.score_elements(cores), variant.scores),
            "weights_ptr": unwritten(variant.weight_elements(cores), variant.numbers),
            "partial_ptr": unwritten(variant.partial_elements(num_tasks), variant.sums),
            "stats_ptr": unwritten(variant.stats_elements(num_tasks), "fp32"),
            "scale": self.scale, "q_query_stride": variant.group * variant.k_dim,
            "q_head_stride": len(self.q) * variant.group * variant.k_dim,
            "window": self.window, "max_blocks": self.block_table.shape[1],
        }  # fmt: skip

    def combine_arguments(self, split: dict[str, Any]) -> dict[str, Any]:
        """What ``paged_attention_combine`` is called with after the split pass."""
        variant, plan = self.variant, self.plan
        out = np.full((variant.kv_heads, len(self.q), variant.group, variant.v_dim), np.nan, dtype=np.float32)
        return {
            "partial_ptr": split["partial_ptr"], "stats_ptr": split["stats_ptr"],
            "sink_ptr": np.zeros(1, dtype=np.float32) if self.sink is None else self.sink,
            "tile_query_ptr": plan.tile_query, "tile_queries_ptr": plan.tile_queries,
            "tile_task_ptr": plan.tile_task, "tile_splits_ptr": plan.tile_splits,
            "num_tiles_ptr": _one(len(plan.tile_seq)), "out_ptr": rounded(out, variant.dtype),
            "out_query_stride": variant.group * variant.v_dim,
            "out_head_stride": len(self.q) * variant.group * variant.v_dim,
        }  # fmt: skip

    def result(self, combine: dict[str, Any]) -> Array:
        """The kernel's result as [R,heads,v_dim]."""
        out: Array = combine["out_ptr"].transpose(1, 0, 2, 3)
        return out.reshape(len(self.q), -1, self.variant.v_dim)

    @cached_property
    def oracle(self) -> tuple[Array, Array]:
        """The result in float64, and how far from it the kernel may be: both [R,heads,v_dim].

        A weight exp(s) is off by its rounding and by what its score is off by, itself a rounding; the sum of weights
        likewise; the result is rounded once more. All of it is a share of the weighted mean of |v|, but for ``TINY``.
        """
        variant, group = self.variant, self.variant.group
        out = np.empty((*self.q.shape[:2], variant.v_dim))
        limit = np.empty_like(out)
        q, k, v = self.numbers
        for row, (seq, length) in enumerate(self.seen()):
            begin = max(0, length - self.window)
            blocks = self.block_table[seq, : -(-length // BLOCK_SIZE)]
            keys = k[blocks].reshape(-1, variant.kv_heads, variant.k_dim)[begin:length]
            values = v[blocks].reshape(-1, variant.kv_heads, variant.v_dim)[begin:length]
            for head in range(q.shape[1]):
                scores = keys[:, head // group] @ q[row, head] * self.scale
                most = scores.max() if self.sink is None else max(scores.max(), self.sink.reshape(-1)[head])
                weights = np.exp(scores - most)
                total = weights.sum() + (0 if self.sink is None else np.exp(self.sink.reshape(-1)[head] - most))
                out[row, head] = weights @ values[:, head // group] / total
                score_off = np.abs(scores).max() * (UNIT[variant.scores] + 2.0**-22)
                share = 2 * UNIT[variant.dtype] + 2 * score_off + 2.0**-18
                limit[row, head] = TINY[variant.dtype] + share * (weights @ np.abs(values[:, head // group]) / total)
                if variant.planes == 2:
                    limit[row, head] += self._planes_off(weights, values[:, head // group], begin) / total
        return out, limit

    def _planes_off(self, weights: Array, values: Array, begin: int) -> Array:
        """What sums of values [n,v_dim] are off by since weights f64[n] are in planes, from token ``begin`` on."""
        splits = (begin + np.arange(len(weights))) // SPLIT
        most = np.abs(values).max(1)
        heaviest = np.zeros(splits[-1] + 1)
        # A value's largest number is 127 of its steps: a weight times its step is off by a share of the heaviest.
        np.maximum.at(heaviest, splits, weights * most)
        off = SECOND_PLANE_OFF * heaviest[splits]
        return off @ (np.abs(values) / np.maximum(most, 1e-300)[:, None])

    def worst(self, got: Array) -> float:
        """The largest error as a share of what rounding explains; infinite where a result is not finite."""
        want, limit = self.oracle
        off = np.abs(widened(got) - want)
        return float(np.max(off / limit)) if np.isfinite(off).all() else float("inf")

    def check(self, got: Array) -> None:
        """Compare a result [R,heads,v_dim] with the oracle.

        Raises:
            AssertionError: the kernel is off by more than rounding explains.
        """
        worst = self.worst(got)
        if not worst <= 1:
            largest = np.nanmax(np.abs(widened(got) - self.oracle[0]))
            raise AssertionError(
                f"{self.variant}: {worst:.3g} times what rounding explains; largest error {largest:.3g}"
            )

    def seen(self) -> list[tuple[int, int]]:
        """For each query its sequence, and how many tokens there are up to it."""
        spans = zip(self.kv_lens.tolist(), np.diff(self.q_starts).tolist(), strict=True)
        return [(seq, total - count + 1 + i) for seq, (total, count) in enumerate(spans) for i in range(count)]

    def only(self, query: int) -> AttentionCase:
        """One query alone, with its sequence alone in the block table."""
        seq, length = self.seen()[query]
        return replace(
            self,
            variant=replace(self.variant, queries=1),
            q=self.q[query : query + 1],
            block_table=self.block_table[seq : seq + 1, : -(-length // BLOCK_SIZE)].copy(),
            q_starts=np.array([0, 1], dtype=np.int32),
            kv_lens=np.array([length], dtype=np.int32),
        )


def attention_case(
    variant: AttentionVariant,
    lengths: Sequence[int | tuple[int, int]],
    *,
    seed: int = 0,
    window: int = NO_WINDOW,
    sink: bool = False,
    loud: float = 1.0,
    empty: float = float("nan"),
) -> AttentionCase:
    """Random sequences, given as (tokens in the cache, of which queries) or as tokens, of which one is a query.

    Blocks lie in random order; slots that belong to no token hold ``empty``; the table is padded with -1.

    Args:
        variant: the specialisation.
        lengths: of the sequences.
        seed: of all random numbers.
        window: how many tokens a query sees at most.
        sink: whether heads have a logit without a value.
        loud: a factor of keys, and so of scores.
        empty: what lies where no token is.
    """
    rng = np.random.default_rng(seed)
    pairs = [(length, 1) if isinstance(length, int) else length for length in lengths]
    blocks_of = [-(-total // BLOCK_SIZE) for total, _ in pairs]
    order = iter(rng.permutation(sum(blocks_of) + 1).astype(np.int32))
    table = np.full((len(pairs), max(blocks_of)), -1, dtype=np.int32)
    for row, count in zip(table, blocks_of, strict=True):
        row[:count] = [next(order) for _ in range(count)]
    shape = (sum(blocks_of) + 1, BLOCK_SIZE, variant.kv_heads)
    k = np.full((*shape, variant.k_dim), empty, dtype=np.float32)
    v = np.full((*shape, variant.v_dim), empty, dtype=np.float32)
    for seq, (total, _) in enumerate(pairs):
        blocks, offsets = table[seq][np.arange(total) // BLOCK_SIZE], np.arange(total) % BLOCK_SIZE
        k[blocks, offsets] = loud * rng.standard_normal((total, variant.kv_heads, variant.k_dim))
        v[blocks, offsets] = rng.standard_normal((total, variant.kv_heads, variant.v_dim))
    q_starts = np.cumsum([0, *(queries for _, queries in pairs)]).astype(np.int32)
    kv_lens = np.array([total for total, _ in pairs], dtype=np.int32)
    q = rng.standard_normal((int(q_starts[-1]), variant.kv_heads * variant.group, variant.k_dim)).astype(np.float32)
    logits = rng.standard_normal((variant.kv_heads, variant.group)).astype(np.float32) if sink else None
    if variant.planes == 1:
        q, k, v = (rounded(x, variant.dtype) for x in (q, k, v))
        return AttentionCase(variant, q, k, v, table, q_starts, kv_lens, window, logits)
    (k, k_scale), (v, v_scale) = (_cached(x, variant.dtype) for x in (k, v))
    q = rounded(q, variant.dtype)
    return AttentionCase(variant, q, k, v, table, q_starts, kv_lens, window, logits, k_scale, v_scale)


def unwritten(elements: int, dtype: Dtype) -> Array:
    """Memory that nobody has written yet: NaN, or the largest whole number."""
    if dtype == "i8":
        return np.full(elements, 127, dtype=np.int8)
    if dtype == "i32":
        return np.full(elements, 2**31 - 1, dtype=np.int32)
    return rounded(np.full(elements, np.nan, dtype=np.float32), dtype)


def _cached(x: Array, dtype: Dtype) -> tuple[Array, Array]:
    """[blocks,128,kv_heads,d], of ``dtype``, as int8, where no token is with steps of NaN: f32[blocks,kv_heads,128]."""
    with np.errstate(invalid="ignore"):
        codes, step = to_int8(widened(rounded(x, dtype)).astype(np.float32))
    return codes, np.ascontiguousarray(step.transpose(0, 2, 1))


def _one(number: int) -> Array:
    return np.array([number], dtype=np.int32)
