"""Our kernels as operations of torch, ``torch.ops.upwell``, on NPUs by Triton-Ascend.

Registered with torch's dispatcher, so that a graph captures it as any other, and that other devices can have kernels
under the same schema.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from kernels.ascend.crashes import crashes_survived
from kernels.ascend.variant import ADDENDS, AttentionVariant, Dtype

Tensor = Any
ATTENTION = (
    "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? k_scale, Tensor? v_scale, Tensor block_table, "
    "Tensor tiles, Tensor tasks, Tensor counts, Tensor? sink, float scale, int window, int queries, str scores, "
    "int cores) -> Tensor"
)
"""q [T,heads,k_dim]; caches [blocks,128,kv_heads,k_dim or v_dim], of q's dtype, or i8 with scales
f32[blocks,kv_heads,128]; block_table i32[B,M]; tiles i32[6,tiles], the rows of an ``AttentionPlan`` from tile_seq to
tile_splits; tasks i32[3,N], those from task_tile to order; counts i32[2], how many of the tasks and of the tiles are
real; sink f32[kv_heads,group] or none; window and queries as ``plan_attention`` has them; scores: a ``Dtype``; cores:
matrix cores -> [T,heads,v_dim], undefined for queries in no tile."""
STORE = (
    "store_int8(Tensor k, Tensor v, Tensor slots, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) k_scale, "
    "Tensor(d!) v_scale, int cores) -> ()"
)
"""k and v [T,kv_heads,k_dim or v_dim], contiguous, to slots i32[T] of such caches of i8; cores: vector cores."""


@functools.cache
def register() -> Any:
    """Define the operations, once in a process, with their kernels for NPUs; the library that holds them."""
    import torch  # noqa: PLC0415

    library = torch.library.Library("upwell", "FRAGMENT")
    for schema, on_npu in ((ATTENTION, _attention_on_npu), (STORE, _store_on_npu)):
        library.define(schema)
        library.impl(schema.partition("(")[0], on_npu, "PrivateUse1")
    return library


def _attention_on_npu(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
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
    from kernels.ascend.int8_cache import split_queries  # noqa: PLC0415
    from kernels.ascend.paged_decode import OPTIONS, paged_attention_combine, paged_attention_split  # noqa: PLC0415

    caches = Caches(k_cache, v_cache, k_scale, v_scale)
    call = Call(q, caches, tasks.shape[1], queries, scores, cores)
    split = call.split_arguments(block_table, tiles, tasks, counts, scale, window)
    combine = call.combine_arguments(tiles, counts, sink)
    variant = call.variant
    if caches.are_int8:
        _launch(split_queries, 2 * cores, call.query_arguments(), variant.query_constants(2 * cores))
    _launch(paged_attention_split, cores, split, {**variant.split_constants(cores), **OPTIONS})
    constants = variant.combine_constants(2 * cores, has_sink=sink is not None)
    _launch(paged_attention_combine, 2 * cores, combine, constants)
    return call.result


def _store_on_npu(
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    cores: int,
) -> None:
    from kernels.ascend.int8_cache import store_keys_values  # noqa: PLC0415

    arguments = (k, v, slots, k_cache, v_cache, k_scale, v_scale, len(slots))
    _launch(store_keys_values, cores, arguments, store_variant(k, v).store_constants(cores))


def _launch(kernel: Any, grid: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Launch a kernel on so many cores, compiled before if this is its first time."""
    crashes_survived(lambda: kernel[(grid,)](*arguments, **constants))


def call_variant(
    dtype: Any, k_cache: Tensor, v_cache: Tensor, group: int, scores: Dtype, queries: int
) -> AttentionVariant:
    """The specialisation for queries of a dtype of torch, ``group`` heads for each one of the caches."""
    import torch  # noqa: PLC0415

    name: Dtype = "fp16" if dtype == torch.float16 else "bf16"
    return AttentionVariant(k_cache.shape[2], group, k_cache.shape[3], v_cache.shape[3], name, scores, queries)


def store_variant(k: Tensor, v: Tensor) -> AttentionVariant:
    """A specialisation for k and v [T,kv_heads,d], whose queries do not matter."""
    return call_variant(k.dtype, k[None], v[None], 1, "i32", 1)


class Caches(NamedTuple):
    """Keys and values, and their scales if they are of int8."""

    k: Tensor
    v: Tensor
    k_scale: Tensor = None
    v_scale: Tensor = None

    @property
    def are_int8(self) -> bool:
        """Whether there are scales."""
        return self.k_scale is not None


class Call:
    """One call's specialisation, scratch memory and arguments, in the kernels' order.

    Attributes:
        variant: the specialisation.
        result: [T,heads,v_dim], written by the second pass.
    """

    def __init__(self, q: Tensor, caches: Caches, num_tasks: int, queries: int, scores: Dtype, cores: int) -> None:
        import torch  # noqa: PLC0415

        dtypes: dict[Dtype, Any] = {
            "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i8": torch.int8, "i32": torch.int32,
        }  # fmt: skip
        group = q.shape[1] // caches.k.shape[2]
        variant = call_variant(q.dtype, caches.k, caches.v, group, scores, queries)
        kv_heads, k_dim, v_dim = variant.kv_heads, variant.k_dim, variant.v_dim

        def scratch(elements: int, of: Dtype) -> Tensor:
            return torch.empty(elements, dtype=dtypes[of], device=q.device)

        self.variant, self._caches = variant, caches
        by_query = q.reshape(len(q), kv_heads, group, k_dim)
        # A tile's rows lie one after the other: with several queries a tile, those of one head do.
        self._by_head = queries > 1
        if caches.are_int8:
            self._given = by_query.contiguous()
            self._q = torch.empty(ADDENDS, kv_heads, len(q), group, k_dim, dtype=torch.int8, device=q.device)
            self._q_scale = scratch(kv_heads * len(q) * group, "fp32")
        else:
            self._q = (by_query.transpose(0, 1) if self._by_head else by_query).contiguous()
        shape = (kv_heads, len(q)) if self._by_head else (len(q), kv_heads)
        self._out = torch.empty(*shape, group, v_dim, dtype=q.dtype, device=q.device)
        self._scores = scratch(variant.score_elements(cores), variant.scores)
        self._weights = scratch(variant.weight_elements(cores), variant.numbers)
        self._partial = scratch(variant.partial_elements(num_tasks), variant.sums)
        self._stats = scratch(variant.stats_elements(num_tasks), "fp32")

    def query_arguments(self) -> tuple[Any, ...]:
        """Of ``split_queries``, which caches of int8 want before the first pass."""
        return self._given, self._q, self._q_scale, len(self._given)

    def split_arguments(
        self, block_table: Tensor, tiles: Tensor, tasks: Tensor, counts: Tensor, scale: float, window: int
    ) -> tuple[Any, ...]:
        """Of ``paged_attention_split``."""
        if self._caches.are_int8:
            q = self._q[0]
            scales = self._q_scale, self._caches.k_scale, self._caches.v_scale
            query_stride, head_stride = q.stride(1), q.stride(0)
        else:
            scales = self._stats, self._stats, self._stats  # pointers that are not read
            query_stride, head_stride = self._strides(self._q)
        where = (block_table, *tiles[:4], tasks[2], tasks[0], tasks[1], counts[:1])
        scratch = (self._scores, self._weights, self._partial, self._stats)
        numbers = (self._q, self._caches.k, self._caches.v, *scales)
        return *numbers, *where, *scratch, scale, query_stride, head_stride, window, block_table.shape[1]

    def combine_arguments(self, tiles: Tensor, counts: Tensor, sink: Tensor) -> tuple[Any, ...]:
        """Of ``paged_attention_combine``; without a sink, a pointer that is not read."""
        query_stride, head_stride = self._strides(self._out)
        sums = (self._partial, self._stats, self._stats if sink is None else sink)
        where = (tiles[1], tiles[2], tiles[4], tiles[5], counts[1:])
        return *sums, *where, self._out, query_stride, head_stride

    @property
    def result(self) -> Tensor:
        """[T,heads,v_dim]."""
        by_query = self._out.transpose(0, 1) if self._by_head else self._out
        return by_query.reshape(len(by_query), -1, self.variant.v_dim)

    def _strides(self, x: Tensor) -> tuple[int, int]:
        first, second = x.stride(0), x.stride(1)
        return (second, first) if self._by_head else (first, second)
