"""Paged attention in float32, batch-invariant by construction.

Keys are visited in tiles of ``KEY_TILE`` positions and queries in tiles of ``QUERY_TILE``, both aligned to absolute
positions, with an online softmax from tile to tile. So the products that make one query's result have the same shapes
and the same order however the prompt was chunked and whoever else is in the batch: a tile that a query does not see
changes nothing, exactly (its weights are 0, its correction 1). A key or value that is not finite shows in results of
queries that see it, and in no other.

Source of the online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.ops import AttentionBatch, LayerCache

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

KEY_TILE = 128
QUERY_TILE = 4


def alloc_cache(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> LayerCache:
    """A cache of zeros: two f32[num_blocks, block_size, kv_heads, head_dim].

    Raises:
        ValueError: ``block_size`` does not divide the key tile.
    """
    if KEY_TILE % block_size:
        raise ValueError(f"the block size must divide {KEY_TILE}, but is {block_size}")
    shape = (num_blocks, block_size, kv_heads, head_dim)
    return LayerCache(np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))


def read_cache(cache: LayerCache) -> tuple[F32, F32]:
    """Keys and values, each f32[num_blocks, block_size, kv_heads, head_dim]; the cache's own, not copies."""
    return cache.k, cache.v


def copy_block(cache: LayerCache, source: int, target: int) -> None:
    """One block's keys and values also in another."""
    cache.k[target], cache.v[target] = cache.k[source], cache.v[source]


def cache_token_bytes(kv_heads: int, head_dim: int) -> int:
    """Bytes of one token's keys and values in one layer, as f32."""
    return 2 * 4 * kv_heads * head_dim


def write_kv(cache: LayerCache, k: F32, v: F32, slots: I32) -> None:
    """Store keys and values f32[T,kv_heads,d] at ``slots`` i32[T], counted in tokens from the first block."""
    block_size = cache.k.shape[1]
    cache.k[slots // block_size, slots % block_size] = k
    cache.v[slots // block_size, slots % block_size] = v


def paged_attention(q: F32, cache: LayerCache, batch: AttentionBatch, scale: float, window: int | None) -> F32:
    """softmax(q k^T * scale) v over the keys each query sees.

    A query at position p sees positions max(0, p - window + 1) to p; all up to p without a window. Query head h reads
    key head h // (heads / kv_heads).

    Shapes: q f32[T,heads,d] -> f32[T,heads,d]; ``batch`` as ``AttentionBatch`` says.
    Batch-invariant: see the module.
    Source: Vaswani et al., "Attention Is All You Need" (2017), equation 1; of the online softmax, see the module.
    """
    out = np.empty_like(q)
    kv_lens, starts = np.asarray(batch.kv_lens), np.asarray(batch.q_starts)
    counts = np.diff(starts)
    one_tile = (kv_lens - counts) // QUERY_TILE == (kv_lens - 1) // QUERY_TILE
    asks = counts > 0
    groups = [np.flatnonzero(asks & one_tile), *np.flatnonzero(asks & ~one_tile)[:, None]]
    for members in groups:  # sequences of one query tile go together, longer chunks one by one
        if len(members):
            _attend(q, out, members, cache, batch, scale, window)
    return out


def _attend(
    q: F32, out: F32, members: I32, cache: LayerCache, batch: AttentionBatch, scale: float, window: int | None
) -> None:
    """Attention for sequences with the same number of query tiles; writes their rows of ``out``."""
    kv_heads, head_dim = cache.k.shape[2:]
    group = q.shape[1] // kv_heads
    kv_lens = batch.kv_lens[members]
    counts = batch.q_starts[members + 1] - batch.q_starts[members]
    first_tiles = (kv_lens - counts) // QUERY_TILE
    num_tiles = int((kv_lens[0] - 1) // QUERY_TILE - first_tiles[0] + 1)

    # Rows of q laid into query tiles: [members, tiles * QUERY_TILE] positions, those outside a chunk left at zero.
    owner = np.repeat(np.arange(len(members)), counts)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = batch.q_starts[members][owner] + rank
    places = (kv_lens - counts - first_tiles * QUERY_TILE)[owner] + rank
    laid = np.zeros((len(members), num_tiles * QUERY_TILE, q.shape[1], head_dim), dtype=np.float32)
    laid[owner, places] = q[rows] * np.float32(scale)
    tiles = laid.reshape(len(members), num_tiles, QUERY_TILE, kv_heads, group, head_dim)
    tiles = np.ascontiguousarray(tiles.transpose(0, 1, 3, 4, 2, 5))
    tiles = tiles.reshape(len(members), num_tiles, kv_heads, group * QUERY_TILE, head_dim)
    positions = first_tiles[:, None, None] * QUERY_TILE + np.arange(num_tiles * QUERY_TILE).reshape(num_tiles, -1)

    result = _online_softmax(tiles, positions, kv_lens, batch.block_table[members], cache, window)

    result = result.reshape(len(members), num_tiles, kv_heads, group, QUERY_TILE, head_dim)
    out[rows] = result.transpose(0, 1, 4, 2, 3, 5).reshape(laid.shape)[owner, places]


def _online_softmax(
    tiles: F32, positions: I32, kv_lens: I32, block_table: I32, cache: LayerCache, window: int | None
) -> F32:
    """Fold the key tiles in, in order of position.

    Shapes: tiles f32[A, n, kv_heads, group*QUERY_TILE, d]; positions int[A, n, QUERY_TILE]; result as ``tiles``.
    """
    group = tiles.shape[3] // QUERY_TILE
    peak = np.full(tiles.shape[:4], -np.inf, dtype=np.float32)
    total = np.zeros_like(peak)
    acc = np.zeros_like(tiles)
    row_positions = np.tile(positions, group)[:, :, None, :, None]  # [A, n, 1, group*QUERY_TILE, 1]
    first = 0 if window is None else max(0, int(positions.min()) - window + 1) // KEY_TILE
    for tile in range(first, -(-int(kv_lens.max()) // KEY_TILE)):
        here = np.flatnonzero(kv_lens > tile * KEY_TILE)
        keys, values, exists = _key_tile(cache, block_table[here], kv_lens[here], tile)
        key_positions = tile * KEY_TILE + np.arange(KEY_TILE)
        seen = exists[:, None, None, None, :] & (key_positions <= row_positions[here])
        if window is not None:
            seen &= key_positions > row_positions[here] - window
        with np.errstate(invalid="ignore", over="ignore"):  # of keys and values that are not finite
            scores = np.where(seen, np.matmul(tiles[here], keys), np.float32(-np.inf))
            new_peak = np.maximum(peak[here], scores.max(axis=-1))
            anchor = np.where(np.isneginf(new_peak), np.float32(0), new_peak)
            weights = np.exp(scores - anchor[..., None])
            correction = np.exp(peak[here] - anchor)
            total[here] = total[here] * correction + weights.sum(axis=-1, dtype=np.float32)
            acc[here] = acc[here] * correction[..., None] + _weighted_values(weights, values, seen)
        peak[here] = new_peak
    # Rows that pad a query tile out may have seen nothing; nobody reads them.
    with np.errstate(invalid="ignore"):
        return np.asarray(acc / np.where(total == 0, np.float32(1), total)[..., None], dtype=np.float32)


def _weighted_values(weights: F32, values: F32, seen: npt.NDArray[np.bool_]) -> F32:
    """The product of the two, in which what is not finite counts for those alone that see it: 0 times it is NaN.

    Shapes: weights and seen [A,n,kv_heads or 1,group*QUERY_TILE,KEY_TILE]; values f32[A,1,kv_heads,KEY_TILE,d].
    """
    product: F32 = np.matmul(weights, values)
    if np.isfinite(product).all():
        return product
    finite = np.isfinite(values)
    spoilt = np.matmul(seen.astype(np.float32), (~finite).astype(np.float32)) > 0
    product[~spoilt] = np.matmul(weights, np.where(finite, values, np.float32(0)))[~spoilt]
    return product


def _key_tile(cache: LayerCache, block_table: I32, kv_lens: I32, tile: int) -> tuple[F32, F32, npt.NDArray[np.bool_]]:
    """Keys f32[A,1,kv_heads,d,KEY_TILE], values f32[A,1,kv_heads,KEY_TILE,d], and which of them exist [A,KEY_TILE].

    Slots past a sequence's end may hold anything, NaN included: their scores are masked by the caller, and their
    values, which a weight of 0 would not silence, are set to 0 here.
    """
    block_size, kv_heads, head_dim = cache.k.shape[1:]
    per_tile = KEY_TILE // block_size
    blocks = np.full((len(kv_lens), per_tile), 0, dtype=np.int32)
    found = block_table[:, tile * per_tile : (tile + 1) * per_tile]
    blocks[:, : found.shape[1]] = np.maximum(found, 0)
    exists = tile * KEY_TILE + np.arange(KEY_TILE) < kv_lens[:, None]
    shape = (len(kv_lens), 1, KEY_TILE, kv_heads, head_dim)
    keys = cache.k[blocks].reshape(shape).transpose(0, 1, 3, 4, 2)
    values = cache.v[blocks].reshape(shape)
    values[~exists[:, None, :]] = 0
    return keys, values.transpose(0, 1, 3, 2, 4), exists
