"""Specifications of the paged cache's operations: write_kv and paged_attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kernels.ops import Arithmetic, AttentionBatch, LayerCache, Ops
from kernels.spec import Array, Case, Inputs, OpSpec, Tolerance
from kernels.specs.rounding import kept


def _empty_cache(ops: Ops, i: Inputs) -> LayerCache:
    _, kv_heads, head_dim = i["k"].shape
    return ops.memory.alloc_cache(i["num_blocks"], i["block_size"], kv_heads, head_dim)


def _write(ops: Ops, i: Inputs) -> LayerCache:
    cache = _empty_cache(ops, i)
    upload = ops.memory.upload
    ops.write_kv(cache, upload(i["k"]), upload(i["v"]), upload(i["slots"]))
    return cache


def _write_run(ops: Ops, i: Inputs) -> Array:
    return np.stack(ops.memory.read_cache(_write(ops, i)))


def _write_oracle(i: Inputs, arithmetic: Arithmetic) -> Array:
    k, v = kept(i["k"], i["v"], arithmetic.cache)
    shape = (2, i["num_blocks"] * i["block_size"], *i["k"].shape[1:])
    out = np.zeros(shape)
    for token, slot in enumerate(i["slots"]):
        out[0, slot], out[1, slot] = k[token], v[token]
    return out.reshape(2, i["num_blocks"], i["block_size"], *i["k"].shape[1:])


def _write_cases(rng: np.random.Generator) -> Iterator[Case]:
    for tokens, block_size in [(1, 16), (13, 4), (25, 32), (30, 128)]:
        slots = rng.permutation(3 * max(block_size, 16))[:tokens].astype(np.int32)
        k, v = (rng.standard_normal((tokens, 2, 16)).astype(np.float32) for _ in range(2))
        num_blocks = -(-3 * 16 // block_size) + 3
        yield Case(f"{tokens} tokens, blocks of {block_size}", {
            "k": k, "v": v, "slots": slots, "num_blocks": num_blocks, "block_size": block_size,
        })  # fmt: skip
    # The first that float16 would round to infinity is 65520.
    k = np.array([65504, 65519, 65520, 65536, -65520, 1e5, -1e6, 70000] * 4, dtype=np.float32).reshape(2, 1, 16)
    yield Case("beyond float16", {
        "k": k, "v": -2 * k, "slots": np.arange(2, dtype=np.int32), "num_blocks": 1, "block_size": 16,
    })  # fmt: skip
    k = np.linspace(1e38, 3e38, 32, dtype=np.float32).reshape(2, 1, 16)
    yield Case("finite, and not so their sum", {
        "k": k, "v": -k, "slots": np.arange(2, dtype=np.int32), "num_blocks": 1, "block_size": 16,
    })  # fmt: skip
    # The second would do for integers, if not in attention; the last is not a normal number.
    most = np.array([2e-25, 0.9e-25, 1e-36, 1e-41])
    k = (most[:, None, None] * np.linspace(-0.5, 1, 16)).astype(np.float32)
    yield Case("too small for integers", {
        "k": k, "v": -k, "slots": np.arange(4, dtype=np.int32), "num_blocks": 1, "block_size": 16,
    })  # fmt: skip


WRITE_KV = OpSpec(
    name="write_kv",
    axes="cache [blocks,block_size,kv_heads,d], k and v f32[T,kv_heads,d], slots i32[T] -> cache",
    oracle=_write_oracle,
    run=_write_run,
    cases=_write_cases,
    tolerance=Tolerance(1.0, lambda _: 1, "one rounding to the cache's dtype"),
    token_inputs=(),
    source="slot = block * block_size + offset",
)


def make_attention_case(
    rng: np.random.Generator,
    lengths: Sequence[tuple[int, int]],
    *,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 16,
    block_size: int = 16,
    window: int | None = None,
) -> dict[str, Any]:
    """Inputs for sequences given as (tokens in the cache, of which queries), with blocks in random order.

    Slots that belong to no token hold NaN: nothing that was never written may be read.
    """
    blocks_of = [-(-total // block_size) for total, _ in lengths]
    order = iter(rng.permutation(sum(blocks_of) + 2).astype(np.int32))
    table = np.full((len(lengths), max(blocks_of)), -1, dtype=np.int32)
    for row, count in zip(table, blocks_of, strict=True):
        row[:count] = [next(order) for _ in range(count)]
    slots = np.concatenate([
        table[b, np.arange(total) // block_size] * block_size + np.arange(total) % block_size
        for b, (total, _) in enumerate(lengths)
    ]).astype(np.int32)  # fmt: skip
    k, v = (rng.standard_normal((len(slots), kv_heads, head_dim)).astype(np.float32) for _ in range(2))
    q = rng.standard_normal((sum(new for _, new in lengths), heads, head_dim)).astype(np.float32)
    return {
        "q": q, "k": k, "v": v, "slots": slots, "num_blocks": sum(blocks_of) + 2, "block_size": block_size,
        "q_starts": np.concatenate([[0], np.cumsum([new for _, new in lengths])]).astype(np.int32),
        "kv_lens": np.array([total for total, _ in lengths], dtype=np.int32),
        "block_table": table, "scale": head_dim**-0.5, "window": window,
    }  # fmt: skip


def attention_run(ops: Ops, i: Inputs) -> Array:
    """Write the keys and values into a cache poisoned with NaN, then attend."""
    cache = _empty_cache(ops, i)
    upload = ops.memory.upload
    everywhere = np.arange(i["num_blocks"] * i["block_size"], dtype=np.int32)
    poison = upload(np.full((len(everywhere), *i["k"].shape[1:]), np.nan, dtype=np.float32))
    ops.write_kv(cache, poison, poison, upload(everywhere))
    ops.write_kv(cache, upload(i["k"]), upload(i["v"]), upload(i["slots"]))
    batch = AttentionBatch(upload(i["q_starts"]), upload(i["kv_lens"]), upload(i["block_table"]))
    return ops.memory.download(ops.paged_attention(upload(i["q"]), cache, batch, i["scale"], i["window"]))


def _attention_oracle(i: Inputs, arithmetic: Arithmetic) -> Array:
    """Every query on its own, over its whole context at once."""
    group = i["q"].shape[1] // i["k"].shape[1]
    k, v = (np.repeat(rows, group, axis=1) for rows in kept(i["k"], i["v"], arithmetic.cache))
    out = np.empty(i["q"].shape)
    ends = np.cumsum(i["kv_lens"])
    for b, (end, total) in enumerate(zip(ends, i["kv_lens"], strict=True)):
        queries = range(i["q_starts"][b], i["q_starts"][b + 1])
        for row, query in enumerate(queries):
            position = total - len(queries) + row
            first = 0 if i["window"] is None else max(0, position - i["window"] + 1)
            seen = slice(end - total + first, end - total + position + 1)
            scores = np.einsum("hd,khd->hk", i["q"][query].astype(np.float64), k[seen]) * i["scale"]
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[query] = np.einsum("hk,khd->hd", weights / weights.sum(axis=1, keepdims=True), v[seen])
    return out


def _attention_cases(rng: np.random.Generator) -> Iterator[Case]:
    borders = [(1, 1), (3, 3), (4, 1), (5, 2), (127, 1), (128, 1), (129, 1), (257, 5)]
    yield Case("decodes and chunks at every border", make_attention_case(rng, borders))
    yield Case("one long chunk", make_attention_case(rng, [(300, 300)]))
    for block_size in (4, 32, 128):
        inputs = make_attention_case(rng, [(300, 171), (20, 20)], block_size=block_size)
        yield Case(f"second chunk, blocks of {block_size}", inputs)
    for heads, kv_heads, head_dim in [(1, 1, 8), (5, 1, 64), (8, 8, 16), (10, 2, 128)]:
        inputs = make_attention_case(rng, [(140, 9), (33, 1)], heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        yield Case(f"{heads}/{kv_heads} heads of {head_dim}", inputs)
    for window in (1, 7, 128, 200):
        inputs = make_attention_case(rng, [(300, 150), (290, 1), (5, 5)], window=window, block_size=128)
        yield Case(f"window {window}", inputs)
    inputs = make_attention_case(rng, [(300, 150), (5, 5)])
    yield Case("values beyond float16", {**inputs, "v": np.float32(1e5) * inputs["v"]})
    yield Case("values of which some are too small for integers", {**inputs, "v": np.float32(5e-26) * inputs["v"]})


_INTEGERS = (
    2.0**-11,
    "weights of 14 bits meet the cache's integers, queries of 14 (i8) or 13, 12, 11 (i16, heads up to 64, 128, 256), "
    "signs included: half a step of the coarsest",
)

PAGED_ATTENTION = OpSpec(
    name="paged_attention",
    axes="q f32[T,heads,d], cache, q_starts i32[B+1], kv_lens i32[B], block_table i32[B,M] -> f32[T,heads,d]",
    oracle=_attention_oracle,
    run=attention_run,
    cases=_attention_cases,
    tolerance=Tolerance(
        8.0,
        lambda i: int(i["q"].shape[-1] + i["kv_lens"].max()),
        "a product over d, exponentials, a sum over the keys",
        {"i16": _INTEGERS, "i8": _INTEGERS},
    ),
    token_inputs=(),
    source="Vaswani et al., Attention Is All You Need (2017), equation 1; causal, grouped heads, optional window",
)
