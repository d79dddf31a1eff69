"""Every native operation with typical shapes, as chains of calls.

A group yields lists of chains, which are measured in turn; a list's memory is given back before the next one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kernels.cpu.abi import CACHE_KINDS, Batch, Op
from kernels.cpu.memory import aligned
from kernels.cpu.weights import Form
from kernels.formats import CacheDtype, WeightFormat
from tools.bench_kernels import work as w
from tools.bench_kernels.operands import Chain, Label, NewOperands, Operands
from tools.bench_kernels.product_chains import experts, linear, silu_linear
from tools.bench_kernels.sampling_chains import sampling
from tools.bench_kernels.shapes import ModelShape, Sizes

ROPE_POSITIONS = 8192


def attention(new: NewOperands, sizes: Sizes, _cold_bytes: int) -> Iterator[list[Chain]]:
    """ATTENTION: sequences that decode, and a chunk of a prompt at its start and further on."""
    for model, most in zip((sizes.small, sizes.large), sizes.sequences, strict=True):
        for kind in CACHE_KINDS:
            decoding = [[(sizes.context, 1)] * rows for rows in sizes.rows if rows <= most]
            chunks = [[(sizes.chunk, sizes.chunk)], [(sizes.context + sizes.chunk, sizes.chunk)]]
            yield _attention(new(), model, kind, sizes.block_size, decoding + chunks)


def _attention(
    operands: Operands, model: ModelShape, kind: CacheDtype, block_size: int, steps: list[list[tuple[int, int]]]
) -> list[Chain]:
    heads, dim = model.heads, model.head_dim
    tokens = max(sum(-(-total // block_size) * block_size for total, _ in step) for step in steps)
    cache = operands.cache(kind, tokens, block_size, model.kv_heads, dim)
    queries = max(sum(new for _, new in step) for step in steps)
    q, out = operands.floats(queries, heads * dim), operands.rows(queries, heads * dim, Form.BLOCKS)
    longest, most = max(total for step in steps for total, _ in step), max(map(len, steps))
    partial_bytes = operands.library.partial_bytes(operands.threads, most, longest, 0, model.kv_heads, heads, dim)
    partial = aligned(partial_bytes)
    table = operands.floats(ROPE_POSITIONS, dim)  # as cosines and sines: [2, positions, d / 2]
    chains = []
    for step in steps:
        (total, new), rows = step[0], sum(new for _, new in step)
        blocks = -(-total // block_size)
        batch = Batch(
            num_tokens=rows, num_seqs=len(step), max_blocks=blocks,
            q_starts=operands.integers(np.arange(len(step) + 1) * new),
            kv_lens=operands.integers([total] * len(step)),
            positions=operands.integers(np.tile(np.arange(total - new, total), len(step))),
            block_table=operands.integers(np.arange(len(step) * blocks)),
        )  # fmt: skip
        token_bytes = cache_token_bytes(operands, kind, block_size, model)
        label = Label("ATTENTION", kind, f"{model.head_shape}, {new} of {total}", rows)
        done = w.attention(step, heads, dim, token_bytes, integers=kind in {"i16", "i8"})
        paths = (table, ROPE_POSITIONS, None, 0.0, partial, partial_bytes)
        arguments = (cache.k.struct, q, heads * dim, out, heads, float(dim**-0.5), 0, *paths)
        chains.append(operands.chain([operands.call(Op.ATTENTION, *arguments, label=label, work=done)], batch))
    return chains


def cache_token_bytes(operands: Operands, kind: CacheDtype, block_size: int, model: ModelShape) -> int:
    """Bytes of one token's keys and values."""
    head = operands.library.cache_head_bytes(CACHE_KINDS[kind], block_size, model.head_dim)
    return 2 * head * model.kv_heads // block_size


def write_kv(new: NewOperands, sizes: Sizes, _cold_bytes: int) -> Iterator[list[Chain]]:
    """WRITE_KV: keys rotated on their way."""
    operands, model, most = new(), sizes.small, max(sizes.rows)
    heads, dim = model.kv_heads, model.head_dim
    k, v, table = (
        operands.floats(*shape) for shape in ((most, heads * dim), (most, heads * dim), (ROPE_POSITIONS, dim))
    )
    places = operands.integers(np.arange(most))
    chains = []
    for kind in CACHE_KINDS:
        cache = operands.cache(kind, most, sizes.block_size, heads, dim)
        token_bytes = cache_token_bytes(operands, kind, sizes.block_size, model)
        call = (Op.WRITE_KV, cache.k.struct, k, heads * dim, v, heads * dim, table, ROPE_POSITIONS, None, 0.0)
        done = {r: w.write_kv(r, heads, dim, token_bytes, integers=kind in {"i16", "i8"}) for r in sizes.rows}
        batch = Batch(slots=places, positions=places)
        chains += operands.over_rows(call, kind, f"{heads} x {dim}", done, batch)
    yield chains


def rows_alone(new: NewOperands, sizes: Sizes, _cold_bytes: int) -> Iterator[list[Chain]]:
    """Operations that treat each row on its own; results are int8 where a model's are."""
    most, counts = max(sizes.rows), sizes.rows
    for model in (sizes.small, sizes.large):
        operands, hidden, inner = new(), model.hidden, model.inner
        x = operands.rows(most, hidden, Form.FLOATS, Form.BLOCKS)
        out = operands.rows(most, hidden, Form.BLOCKS)
        before, total, weight = (operands.floats(rows, hidden) for rows in (most, most, 1))
        q_bytes = w.row_bytes(hidden, Form.BLOCKS)
        norm = (Op.NORM, x, before, weight, total, out, hidden, 1, 1e-5)
        done = w.each(counts, hidden, 1 + w.NORM + w.QUANTISE, 12 * hidden + q_bytes)
        yield operands.over_rows(norm, "add, norm, quantise", str(hidden), done)
        done = w.each(counts, hidden, w.QUANTISE, 4 * hidden + q_bytes)
        yield operands.over_rows((Op.QUANTISE, x, hidden), "", str(hidden), done)

        width = model.heads * model.head_dim
        q, rotated, table = (operands.floats(most, columns) for columns in (width, width, model.head_dim))
        rope = (Op.ROPE, q, width, rotated, width, model.heads, model.head_dim, table, most)
        positions = Batch(positions=operands.integers(np.arange(most)))
        done = w.each(counts, width, w.ROPE, 12 * width)
        yield operands.over_rows(rope, "", model.head_shape, done, positions)

        pairs, made = operands.floats(most, 2 * inner), operands.rows(most, inner, Form.BLOCKS)
        done = w.each(counts, inner, w.SILU_MUL + w.QUANTISE, 8 * inner + w.row_bytes(inner, Form.BLOCKS))
        yield operands.over_rows((Op.SILU_MUL, pairs, 2 * inner, made, inner), "", str(inner), done)

        # What is marked must be fresh: a product that is as small as can be makes it.
        gates = operands.matrix(WeightFormat.Q4_0, 2 * inner, 32).struct
        maker = operands.call(Op.SILU_LINEAR, operands.rows(most, 32, Form.BLOCKS), gates, made)
        done = {rows: w.mark(rows, inner) for rows in counts}
        yield operands.over_rows((Op.MARK, made, inner), "", str(inner), done, after=maker)


GROUPS: dict[str, Callable[[NewOperands, Sizes, int], Iterator[list[Chain]]]] = {
    "LINEAR": linear,
    "SILU_LINEAR": silu_linear,
    "ATTENTION": attention,
    "WRITE_KV": write_kv,
    "rows": rows_alone,
    "sampling": sampling,
    "experts": experts,
}
"""By the name that ``--only`` takes."""
