"""The operation table: everything a model asks of a backend.

A model is written once against ``Ops``; a backend is a function that fills one. What each operation computes, to what
tolerance, and where it comes from, stands in ``kernels/specs``; ``kernels/reference`` is the definition in NumPy.

``Tensor`` is a backend's own array. Above the table only slicing and ``reshape`` are done to one, and
``Memory.download`` to read it. All operations are batch-invariant: a token's row of the result depends on that token's
own sequence alone, bit for bit, not on how many rows travel with it, nor in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.formats import RawTensor

Tensor = Any
Linear = Any
"""A prepared weight [N, K] with its optional bias [N]."""
Experts = Any
"""The prepared weights of one layer's routed experts."""


@dataclass(frozen=True)
class LayerCache:
    """One layer's paged keys and values, each [num_blocks, block_size, kv_heads, head_dim]."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class AttentionBatch:
    """Where the queries of a step's B sequences lie, and their keys.

    Attributes:
        q_starts: i32[B+1]; queries of sequence b are rows q_starts[b] to q_starts[b+1], at the last positions of it.
        kv_lens: i32[B], tokens in the cache, those of this step included.
        block_table: i32[B,M], padded with -1.
    """

    q_starts: Tensor
    kv_lens: Tensor
    block_table: Tensor


@dataclass(frozen=True)
class Memory:
    """The device as an allocator.

    Attributes:
        alloc_cache: (num_blocks, block_size, kv_heads, head_dim) -> an empty LayerCache.
        cache_itemsize: bytes of one element of the cache.
        upload: NumPy array -> Tensor; download: the reverse, synchronising; sync: wait for all work.
    """

    alloc_cache: Callable[[int, int, int, int], LayerCache]
    cache_itemsize: int
    upload: Callable[[npt.NDArray[Any]], Tensor]
    download: Callable[[Tensor], npt.NDArray[Any]]
    sync: Callable[[], None]


@dataclass(frozen=True)
class BackendInfo:
    """What a backend is, for people: its name and one line about the hardware or library behind it."""

    name: str
    description: str


@dataclass(frozen=True)
class Ops:
    """The table. T tokens, H hidden size, N outputs, K inputs, d head dimension, V vocabulary.

    Attributes:
        prepare_linear: (weights [N_i, K], biases [N_i] or none) -> Linear of their rows one below the other.
        prepare_vector: a one-dimensional weight -> Tensor f32.
        prepare_rope: (inv_freq f64[d/2], scale, num_positions) -> Tensor of cosines and sines, times scale.
        prepare_experts: (gate [E,F,H], up [E,F,H], down [E,H,F]) -> Experts.
        embed: (ids i32[T], Linear [V,H]) -> [T,H].
        rms_norm: (x [...,H], weight [H], eps) -> [...,H].
        add_rms_norm: (x [T,H], residual [T,H], weight [H], eps) -> (normalised sum, sum).
        linear: (x [T,K], Linear) -> [T,N].
        rope: (x [T,heads,d], positions i32[T], table) -> [T,heads,d].
        write_kv: (cache, k [T,kv_heads,d], v [T,kv_heads,d], slots i32[T]) -> None.
        paged_attention: (q [T,heads,d], cache, batch, scale, window or None) -> [T,heads,d].
        silu_mul: (gate_up [T,2F]) -> [T,F].
        moe: (x [T,H], router Linear [E,H], Experts, top_k, normalise) -> [T,H].
        logits: (x [T,H], rows i32[B'], Linear [V,H]) -> f32[B',V].
    """

    info: BackendInfo
    memory: Memory
    prepare_linear: Callable[[Sequence[RawTensor], Sequence[RawTensor] | None], Linear]
    prepare_vector: Callable[[RawTensor], Tensor]
    prepare_rope: Callable[[npt.NDArray[np.float64], float, int], Tensor]
    prepare_experts: Callable[[RawTensor, RawTensor, RawTensor], Experts]
    embed: Callable[[Tensor, Linear], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    linear: Callable[[Tensor, Linear], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    write_kv: Callable[[LayerCache, Tensor, Tensor, Tensor], None]
    paged_attention: Callable[[Tensor, LayerCache, AttentionBatch, float, int | None], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    moe: Callable[[Tensor, Linear, Experts, int, bool], Tensor]
    logits: Callable[[Tensor, Tensor, Linear], Tensor]


OPERATIONS = (
    "embed",
    "rms_norm",
    "add_rms_norm",
    "linear",
    "rope",
    "write_kv",
    "paged_attention",
    "silu_mul",
    "moe",
    "logits",
)
"""The operations of a step; the ``prepare_*`` ones run once, at load."""
