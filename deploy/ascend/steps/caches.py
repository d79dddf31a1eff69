"""What writes keys and values into a cache of the dtype, as subjects of steps 2 and 3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from deploy.ascend.steps.bench import Bench, Tensor
from deploy.ascend.steps.subjects import ROWS, Subject, exactly
from kernels.ascend.attention import is_told_how_caches_lie
from kernels.ascend.plan import BLOCK_SIZE

Store = Callable[[Tensor, Tensor, list[Tensor], Tensor], object]
"""Keys and values, both caches, slots."""


def cache_subjects(bench: Bench) -> list[Callable[[], Subject]]:
    """What builds them: without the operation that is not called because it cannot be told how caches lie."""
    told = is_told_how_caches_lie(bench.torch.ops.npu.npu_scatter_pa_kv_cache.default._schema)
    return [*([partial(scatter, bench)] if told else []), partial(update, bench, serves=not told)]


def scatter(bench: Bench) -> Subject:
    """Both at once."""

    def store(k: Tensor, v: Tensor, caches: list[Tensor], slots: Tensor) -> None:
        bench.npu.npu_scatter_pa_kv_cache(k, v, *caches, slots, cache_mode="Norm")

    return _stored(bench, "npu_scatter_pa_kv_cache", store, serves=True)


def update(bench: Bench, *, serves: bool) -> Subject:
    """One after the other, for which any cache is rows."""

    def store(k: Tensor, v: Tensor, caches: list[Tensor], slots: Tensor) -> None:
        for rows, cache in zip((k, v), caches, strict=True):
            bench.npu.npu_scatter_nd_update_(cache.view(-1, *rows.shape[1:]), slots[:, None], rows)

    return _stored(bench, "npu_scatter_nd_update_" + ("" if serves else " (not called)"), store, serves=serves)


def _stored(bench: Bench, name: str, store: Store, *, serves: bool) -> Subject:
    """Keys and values into caches, and read back from their slots."""
    torch, rng, heads, dim = bench.torch, np.random.default_rng(5), 2, bench.sizes.heads[0][1]
    k, v = (bench.normal(rng, ROWS, heads, dim) for _ in range(2))
    blocks = -(-ROWS // BLOCK_SIZE) + 1
    slots = bench.upload(rng.permutation(blocks * BLOCK_SIZE)[:ROWS].astype(np.int32))

    def run(k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
        shape = (blocks, BLOCK_SIZE, heads, dim)
        caches = [torch.zeros(shape, dtype=k.dtype, device=k.device) for _ in range(2)]
        store(k, v, caches, slots)
        return tuple(cache.reshape(-1, heads, dim).index_select(0, slots) for cache in caches)

    return Subject(name, (k, v, slots), run, lambda k, v, _: [exactly(k), exactly(v)], serves)
