"""The paged cache, and attention over it by our own kernel.

A head whose size has no kernel is padded with zeros to the next that has one, in the cache and in queries: that changes
no product. Blocks beyond those asked for take what the rows write that pad a batch out. Keys and values are kept as
they come, or as int8 with a step for each token and head (``int8_cache``).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.ascend.operators import call_variant, register
from kernels.ascend.plan import BLOCK_SIZE, NO_WINDOW, AttentionPlan, plan_attention
from kernels.ascend.platform import Platform
from kernels.ascend.variant import HEAD_DIMS, MAX_GROUP, AttentionVariant, Dtype, power_of_two
from kernels.ops import F32, I32, AttentionBatch, LayerCache, NoKernel

Tensor = Any
PADDING_BLOCKS = 1
"""Blocks of a cache that belong to no sequence."""
PROMPT_ROWS = 64
"""Rows of a tile of queries where prompts are read."""
FUSED_MASK = 2048
"""Rows and columns of the mask that npu_fused_infer_attention_score wants, whatever the lengths are."""
HALF_SCALE = 2.0**-4
"""What queries are multiplied with before scores travel as float16, to keep those within it. A power of two: nothing is
rounded but what becomes subnormal, queries of less than 2^-10."""
MAX_STORED = 8192
"""Elements of a token's keys that fit on chip as they become int8, in heads up to a power of two."""
MAX_TASKS = 4096
"""Tasks of one launch at most."""
MAX_PARTIAL_BYTES = 512 << 20
"""Of the partial sums of one launch, if it has more than a tile: what a step takes beside activations."""


def padded_head(head_dim: int) -> int:
    """Elements that a head takes in the cache.

    Raises:
        NoKernel: there is no kernel for heads of that size.
    """
    for k_dim, v_dim in HEAD_DIMS:
        if k_dim == v_dim and head_dim <= k_dim:
            return k_dim
    raise NoKernel(f"attention heads of {head_dim} elements; there are kernels for up to {HEAD_DIMS[-1][0]}")


@dataclass(frozen=True)
class PaddedCache(LayerCache):
    """A layer's cache, k and v [num_blocks + PADDING_BLOCKS, 128, kv_heads, padded].

    Attributes:
        head_dim: elements of a head before it was padded.
        k_scale, v_scale: of int8, their steps f32[num_blocks + PADDING_BLOCKS, kv_heads, 128]; else None.
    """

    head_dim: int
    k_scale: Tensor = None
    v_scale: Tensor = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All that a block has."""
        return (self.k, self.v) if self.k_scale is None else (self.k, self.v, self.k_scale, self.v_scale)


@dataclass(frozen=True)
class DevicePlan:
    """An ``AttentionPlan`` on the device, as ``operators.ATTENTION`` has it: tiles, tasks, counts.

    Attributes:
        rows: which queries of the step its tiles have.
    """

    tiles: Tensor
    tasks: Tensor
    counts: Tensor
    rows: slice


class PlannedBatch(AttentionBatch):
    """An ``AttentionBatch`` whose q_starts and kv_lens are the host's, so that plans can be made of them."""

    def __init__(self, *_: Tensor) -> None:
        self._plans: dict[tuple[int, int, int], list[DevicePlan]] = {}

    @functools.cached_property
    def decodes(self) -> bool:
        """Whether each sequence has one query at most."""
        return bool((np.diff(self.q_starts) <= 1).all())

    @functools.cached_property
    def lengths(self) -> tuple[list[int], list[int]]:
        """As torch_npu takes them: the end of each sequence's queries, and its tokens in the cache."""
        return self.q_starts[1:].tolist(), self.kv_lens.tolist()

    def plans(self, queries: int, window: int, most_tasks: int) -> list[DevicePlan]:
        """The plans of a step's launches, made and uploaded once for all layers."""
        key = queries, window, most_tasks
        if key not in self._plans:
            plan = plan_attention(self.q_starts, self.kv_lens, queries=queries, window=window)
            self._plans[key] = [self._upload(part) for part in launches(plan, most_tasks)]
        return self._plans[key]

    def _upload(self, plan: AttentionPlan) -> DevicePlan:
        import torch  # noqa: PLC0415

        tiles, tasks, counts = plan_arrays(plan)
        words = torch.from_numpy(np.concatenate([tiles.reshape(-1), tasks.reshape(-1), counts]))
        device = words.to(self.block_table.device)
        ends = tiles.size, tiles.size + tasks.size
        rows = slice(int(plan.tile_query[0]), int(plan.tile_query[-1] + plan.tile_queries[-1]))
        parts = device[: ends[0]].reshape(tiles.shape), device[ends[0] : ends[1]].reshape(tasks.shape)
        return DevicePlan(*parts, device[ends[1] :], rows)


def plan_arrays(plan: AttentionPlan) -> tuple[I32, I32, I32]:
    """A plan as i32[6,tiles], i32[3,N] and i32[2]."""
    tiles = (plan.tile_seq, plan.tile_query, plan.tile_queries, plan.tile_len, plan.tile_task, plan.tile_splits)
    tasks = (plan.task_tile, plan.task_split, plan.order)
    counts = np.array([len(plan.task_tile), len(plan.tile_seq)], dtype=np.int32)
    return np.stack(tiles), np.stack(tasks), counts


def most_tasks_of(variant: AttentionVariant) -> int:
    """Tasks of one launch at most, which bounds its scratch memory."""
    return max(1, min(MAX_TASKS, MAX_PARTIAL_BYTES // (4 * variant.partial_elements(1))))


def launches(plan: AttentionPlan, most_tasks: int) -> list[AttentionPlan]:
    """A plan cut up between tiles, so that no part has more than so many tasks, if it has more than one tile."""
    parts, first = [], 0
    while first < len(plan.tile_seq):
        base = plan.tile_task[first]
        last = int(np.searchsorted(plan.tile_task + plan.tile_splits, base + most_tasks, side="right"))
        if first == 0 and last == len(plan.tile_seq):
            return [plan]
        tiles = slice(first, max(last, first + 1))
        end = int(plan.tile_task[tiles][-1] + plan.tile_splits[tiles][-1])
        mine = plan.order[(plan.order >= base) & (plan.order < end)]
        parts.append(
            AttentionPlan(
                plan.tile_seq[tiles],
                plan.tile_query[tiles],
                plan.tile_queries[tiles],
                plan.tile_len[tiles],
                plan.tile_task[tiles] - base,
                plan.tile_splits[tiles],
                plan.task_tile[base:end] - np.int32(first),
                plan.task_split[base:end],
                mine - base,
            )
        )
        first = tiles.stop
    return parts


def _padded_cache(cache: LayerCache) -> PaddedCache:
    """The cache as this backend made it.

    Raises:
        TypeError: it is another backend's.
    """
    if not isinstance(cache, PaddedCache):
        raise TypeError(f"a {type(cache).__name__} is not a cache of this backend")
    return cache


def is_told_how_caches_lie(schema: Any) -> bool:
    """Whether npu_scatter_pa_kv_cache can be, by its schema; where not, as in torch-npu 2.7.1, it takes PA_NZ alone."""
    return any(argument.name == "cache_mode" for argument in schema.arguments)


class Attention:
    """These operations for one device and dtype.

    Attributes:
        padding_block: the block of the caches that belongs to no sequence.
    """

    def __init__(self, platform: Platform, dtype: Any, *, scores: Dtype = "fp32", fused_prompts: bool = False) -> None:
        """For scores of i32 keys and values are kept as int8.

        With ``fused_prompts`` steps that read prompts go to torch_npu's own attention.
        """
        import torch  # noqa: PLC0415
        import torch_npu  # noqa: PLC0415

        register()
        self._torch, self._npu = torch, torch_npu
        self._platform, self._dtype, self._scores = platform, dtype, scores
        self._int8 = scores == "i32"
        self._scatters = is_told_how_caches_lie(torch.ops.npu.npu_scatter_pa_kv_cache.default._schema)
        self._fused_mask = self._causal_mask() if fused_prompts else None
        self.padding_block = 0

    def alloc_cache(self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> PaddedCache:
        """An empty cache.

        Raises:
            ValueError: blocks are not of 128 tokens.
            NoKernel: there is none for such heads.
        """
        if block_size != BLOCK_SIZE:
            raise ValueError(f"blocks must have {BLOCK_SIZE} tokens, but have {block_size}")
        padded = padded_head(head_dim)
        if self._int8 and power_of_two(kv_heads) * padded > MAX_STORED:
            raise NoKernel(
                f"{kv_heads} heads of {head_dim} elements in a cache of int8, which are written in one tile of up to "
                f"{MAX_STORED}; --kv-cache-dtype auto serves them"
            )
        self.padding_block = num_blocks
        shape = (num_blocks + PADDING_BLOCKS, block_size, kv_heads, padded)
        blocks = {"dtype": self._torch.int8 if self._int8 else self._dtype, "device": self._platform.device}
        k, v = (self._torch.zeros(shape, **blocks) for _ in range(2))
        if not self._int8:
            return PaddedCache(k, v, head_dim)
        steps = {"dtype": self._torch.float32, "device": self._platform.device}
        k_scale, v_scale = (self._torch.zeros(shape[0], kv_heads, block_size, **steps) for _ in range(2))
        return PaddedCache(k, v, head_dim, k_scale, v_scale)

    def read_cache(self, cache: LayerCache) -> tuple[F32, F32]:
        """Keys and values, each f32[num_blocks,128,kv_heads,head_dim], without the padding."""
        own = _padded_cache(cache)
        k, v = (x[:-PADDING_BLOCKS, ..., : own.head_dim].float() for x in (own.k, own.v))
        if self._int8:
            steps = (x[:-PADDING_BLOCKS].transpose(1, 2)[..., None] for x in (own.k_scale, own.v_scale))
            k, v = (x * step for x, step in zip((k, v), steps, strict=True))
        return k.cpu().numpy(), v.cpu().numpy()

    def copy_block(self, cache: LayerCache, source: int, target: int) -> None:
        """One block's keys and values also in another."""
        for part in _padded_cache(cache).parts:
            part[target].copy_(part[source])

    def cache_token_bytes(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of one token's keys and values in one layer's cache."""
        head_bytes = padded_head(head_dim) + 4 if self._int8 else 2 * padded_head(head_dim)
        return 2 * kv_heads * head_bytes

    def write_kv(self, cache: LayerCache, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Keys and values of [T,kv_heads,d] to slots i32[T]. Batch-invariant: rows do not meet."""
        own = _padded_cache(cache)
        k, v = (self._padded(x, own) for x in (k, v))
        if self._int8:
            self._torch.ops.upwell.store_int8(k, v, slots, *own.parts, self._platform.vector_cores)
        elif self._scatters:
            self._npu.npu_scatter_pa_kv_cache(k, v, own.k, own.v, slots, cache_mode="Norm")
        else:
            for rows, stored in ((k, own.k), (v, own.v)):
                self._npu.npu_scatter_nd_update_(stored.view(-1, *rows.shape[1:]), slots[:, None], rows)

    def paged_attention(
        self, q: Tensor, cache: LayerCache, batch: AttentionBatch, scale: float, window: int | None
    ) -> Tensor:
        """Each query over the tokens up to its own: q [T,heads,d] -> [T,heads,d].

        Batch-invariant: what is computed for a query depends on its position; see ``paged_decode``.

        Raises:
            NoKernel: there is none for such heads.
        """
        own = _padded_cache(cache)
        num_heads, kv_heads = q.shape[1], own.k.shape[2]
        group = num_heads // kv_heads
        if not 1 <= group <= MAX_GROUP:
            raise NoKernel(f"{group} heads of queries share a head of keys; there are kernels for up to {MAX_GROUP}")
        if not isinstance(batch, PlannedBatch):
            batch = PlannedBatch(batch.q_starts.cpu().numpy(), batch.kv_lens.cpu().numpy(), batch.block_table)
        padded, reach = self._padded(q, own), NO_WINDOW if window is None else window
        if self._fused_mask is not None and not batch.decodes:
            return self._fused(padded, own, batch, scale, window)[..., : own.head_dim]
        queries = 1 if batch.decodes else max(1, PROMPT_ROWS // group)
        if self._scores == "fp16":
            padded, scale = padded * HALF_SCALE, scale / HALF_SCALE
        most_tasks = most_tasks_of(call_variant(q.dtype, own.k, own.v, group, self._scores, queries))
        out = None
        for plan in batch.plans(queries, reach, most_tasks):
            part = self._torch.ops.upwell.paged_attention(
                padded, own.k, own.v, own.k_scale, own.v_scale, batch.block_table, plan.tiles, plan.tasks, plan.counts,
                None, scale, reach, queries, self._scores, self._platform.cube_cores,
            )  # fmt: skip
            if out is None:
                out = part
            else:
                out[plan.rows] = part[plan.rows]
            del part  # or the next launch's results are beside it
        if out is None:
            return self._torch.empty_like(q)
        return out[..., : own.head_dim]

    def _fused(self, q: Tensor, cache: PaddedCache, batch: PlannedBatch, scale: float, window: int | None) -> Tensor:
        """The same by npu_fused_infer_attention_score, which adds in an order of its own, not known here."""
        blocks, block_size, kv_heads, _ = cache.k.shape
        ends, tokens = batch.lengths
        limits = (
            {"sparse_mode": 3} if window is None else {"sparse_mode": 4, "pre_tokens": window - 1, "next_tokens": 0}
        )
        return self._npu.npu_fused_infer_attention_score(
            q,
            cache.k.view(blocks, block_size, -1),
            cache.v.view(blocks, block_size, -1),
            atten_mask=self._fused_mask,
            actual_seq_lengths=ends,
            actual_seq_lengths_kv=tokens,
            block_table=batch.block_table,
            num_heads=q.shape[1],
            num_key_value_heads=kv_heads,
            scale=scale,
            input_layout="TND",
            block_size=block_size,
            **limits,
        )[0]

    def _causal_mask(self) -> Tensor:
        """What the device wants as a mask when it is to look at positions alone: true where a key comes later."""
        ones = self._torch.ones(FUSED_MASK, FUSED_MASK, dtype=self._torch.bool)
        return self._torch.triu(ones, diagonal=1).to(self._platform.device)

    def _padded(self, x: Tensor, cache: PaddedCache) -> Tensor:
        missing = cache.k.shape[3] - cache.head_dim
        return self._torch.nn.functional.pad(x, (0, missing)) if missing else x.contiguous()
