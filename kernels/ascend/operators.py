"""Our kernels as operations of torch: ``torch.ops.upwell.paged_attention``, on NPUs by Triton-Ascend.

Registered with torch's dispatcher, so that a graph captures it as any other, and that other devices can have kernels
under the same schema.
"""

from __future__ import annotations

import functools
from typing import Any

from kernels.ascend.variant import AttentionVariant, Dtype

Tensor = Any
SCHEMA = (
    "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor tiles, Tensor tasks, "
    "Tensor counts, Tensor? sink, float scale, int window, int queries, str scores, int cores) -> Tensor"
)
"""q [T,heads,k_dim]; caches [blocks,128,kv_heads,k_dim or v_dim]; block_table i32[B,M]; tiles i32[6,tiles], the rows
of an ``AttentionPlan`` from tile_seq to tile_splits; tasks i32[3,N], those from task_tile to order; counts i32[2], how
many of the tasks and of the tiles are real; sink f32[kv_heads,group] or none; window and queries as ``plan_attention``
has them; scores: a ``Dtype``; cores: matrix cores -> [T,heads,v_dim], undefined for queries in no tile."""


@functools.cache
def register() -> Any:
    """Define the operation, once in a process, with its kernel for NPUs; the library that holds it."""
    import torch  # noqa: PLC0415

    library = torch.library.Library("upwell", "FRAGMENT")
    library.define(SCHEMA)
    library.impl("paged_attention", _on_npu, "PrivateUse1")
    return library


def _on_npu(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    tiles: Tensor,
    tasks: Tensor,
    counts: Tensor,
    sink: Tensor,
    scale: float,
    window: int,
    queries: int,
    scores: Dtype,
    cores: int,
) -> Tensor:
    from kernels.ascend.paged_decode import OPTIONS, paged_attention_combine, paged_attention_split  # noqa: PLC0415

    call = Call(q, k_cache, v_cache, tasks.shape[1], queries, scores, cores)
    split = call.split_arguments(block_table, tiles, tasks, counts, scale, window)
    combine = call.combine_arguments(tiles, counts, sink)
    variant = call.variant
    paged_attention_split[(cores,)](*split, **variant.split_constants(cores), **OPTIONS)
    constants = variant.combine_constants(2 * cores, has_sink=sink is not None)
    paged_attention_combine[(2 * cores,)](*combine, **constants)
    return call.result


class Call:
    """One call's specialisation, scratch memory and arguments, in the kernels' order.

    Attributes:
        variant: the specialisation.
        result: [T,heads,v_dim], written by the second pass.
    """

    def __init__(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, num_tasks: int, queries: int, scores: Dtype, cores: int
    ) -> None:
        import torch  # noqa: PLC0415

        names: dict[Any, Dtype] = {torch.float16: "fp16", torch.bfloat16: "bf16"}
        kv_heads, k_dim, v_dim = k_cache.shape[2], k_cache.shape[3], v_cache.shape[3]
        group = q.shape[1] // kv_heads
        self.variant = AttentionVariant(kv_heads, group, k_dim, v_dim, names[q.dtype], scores, queries)
        by_query = q.reshape(len(q), kv_heads, group, k_dim)
        # A tile's rows lie one after the other: with several queries a tile, those of one head do.
        self._q = by_query.transpose(0, 1).contiguous() if queries > 1 else by_query.contiguous()
        self._caches = k_cache, v_cache
        shape = (kv_heads, len(q)) if queries > 1 else (len(q), kv_heads)
        self._out = torch.empty(*shape, group, v_dim, dtype=q.dtype, device=q.device)
        tile = (self.variant.tile_elements(cores),)
        self._scores = torch.empty(tile, dtype=torch.float32 if scores == "fp32" else torch.float16, device=q.device)
        self._weights = torch.empty(tile, dtype=q.dtype, device=q.device)
        floats = {"dtype": torch.float32, "device": q.device}
        self._partial = torch.empty(self.variant.partial_elements(num_tasks), **floats)
        self._stats = torch.empty(self.variant.stats_elements(num_tasks), **floats)

    def split_arguments(
        self, block_table: Tensor, tiles: Tensor, tasks: Tensor, counts: Tensor, scale: float, window: int
    ) -> tuple[Any, ...]:
        """Of ``paged_attention_split``."""
        query_stride, head_stride = self._strides(self._q)
        where = (block_table, *tiles[:4], tasks[2], tasks[0], tasks[1], counts[:1])
        scratch = (self._scores, self._weights, self._partial, self._stats)
        return self._q, *self._caches, *where, *scratch, scale, query_stride, head_stride, window, block_table.shape[1]

    def combine_arguments(self, tiles: Tensor, counts: Tensor, sink: Tensor) -> tuple[Any, ...]:
        """Of ``paged_attention_combine``; without a sink, a pointer that is not read."""
        query_stride, head_stride = self._strides(self._out)
        sums = (self._partial, self._stats, self._stats if sink is None else sink)
        where = (tiles[1], tiles[2], tiles[4], tiles[5], counts[1:])
        return *sums, *where, self._out, query_stride, head_stride

    @property
    def result(self) -> Tensor:
        """[T,heads,v_dim]."""
        by_query = self._out.transpose(0, 1) if self.variant.queries > 1 else self._out
        return by_query.reshape(len(by_query), -1, self.variant.v_dim)

    def _strides(self, x: Tensor) -> tuple[int, int]:
        first, second = x.stride(0), x.stride(1)
        return (second, first) if self.variant.queries > 1 else (first, second)
