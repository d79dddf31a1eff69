"""What happens at both ends of a step, rows of the vocabulary, as chains of calls."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from kernels.cpu.abi import Batch, Op
from kernels.cpu.weights import Form
from tools.bench_kernels import work as w
from tools.bench_kernels.operands import F32, Argument, Chain, Label, NewOperands, Operands
from tools.bench_kernels.shapes import Sizes

ZIPF = 1.5
"""Drawn from are rows whose r-th highest logit has a probability in proportion to r ** -1.5."""
DRAWS = {
    "temperature": (0, 1.0, 0.0),
    "top_k 40": (40, 1.0, 0.0),
    "top_p 0.9": (0, 0.9, 0.0),
    "top_k 40, top_p 0.9, min_p 0.05": (40, 0.9, 0.05),
}
"""(top_k, top_p, min_p)."""


def sampling(new: NewOperands, sizes: Sizes, _cold_bytes: int) -> Iterator[list[Chain]]:
    """EMBED, GATHER, ARGMAX and DRAW of the small model."""
    operands, model, most = new(), sizes.small, max(sizes.rows)
    sampled = [rows for rows in sizes.rows if rows <= sizes.sampled]
    for fmt in model.output_formats:
        matrix = operands.matrix(fmt, model.vocab, model.hidden)
        row_bytes = matrix.panels.nbytes // model.vocab + 4 * model.hidden
        ids = Batch(token_ids=operands.integers(operands.rng.integers(0, model.vocab, most)))
        embed = (Op.EMBED, matrix.struct, operands.floats(most, model.hidden), model.hidden)
        done = w.each(sizes.rows, model.hidden, 2, row_bytes)
        yield operands.over_rows(embed, fmt.label, f"{model.vocab} x {model.hidden}", done, ids)

    out = operands.rows(sizes.sampled, model.hidden, Form.BLOCKS)
    last = Batch(logit_rows=operands.integers(np.arange(sizes.sampled)))
    gather = (Op.GATHER, operands.floats(sizes.sampled, model.hidden), model.hidden, out, model.hidden)
    moved = 4 * model.hidden + w.row_bytes(model.hidden, Form.BLOCKS)
    done = w.each(sampled, model.hidden, w.QUANTISE, moved)
    yield operands.over_rows(gather, "quantise", str(model.hidden), done, last)

    logits = zipf(operands, max(sampled), model.vocab)
    argmax = (Op.ARGMAX, logits, model.vocab, model.vocab, np.zeros(max(sampled), dtype=np.int32))
    done = w.each(sampled, model.vocab, w.ARGMAX, 4 * model.vocab)
    yield operands.over_rows(argmax, "", str(model.vocab), done)
    yield [_draw(operands, logits, rows, variant) for variant in DRAWS for rows in sampled]


def zipf(operands: Operands, rows: int, vocab: int) -> F32:
    """Logits f32[rows, vocab] in random order."""
    logits = operands.floats(rows, vocab)
    logits[:] = -ZIPF * np.log(np.arange(1, vocab + 1, dtype=np.float32))
    return np.asarray(operands.rng.permuted(logits, axis=1, out=logits))


def _draw(operands: Operands, original: F32, rows: int, variant: str) -> Chain:
    """Logits are overwritten, so they are put back before each run; the threads wake during an argmax."""
    top_k, top_p, min_p = DRAWS[variant]
    logits = operands.floats(rows, original.shape[1])
    vocab = original.shape[1]
    columns: list[Argument] = [
        np.ones(rows),
        np.full(rows, top_k, dtype=np.int32),
        np.full(rows, top_p),
        np.full(rows, min_p),
        operands.rng.random(rows),
    ]
    out = np.zeros(rows, dtype=np.int32)
    label = Label("DRAW", variant, str(vocab), rows)
    done = w.each([rows], vocab, w.DRAW_TOP_K if top_k else w.DRAW, 4 * vocab)[rows]
    calls = [
        operands.call(Op.ARGMAX, logits, vocab, vocab, out),
        operands.call(Op.DRAW, logits, vocab, vocab, *columns, out, label=label, work=done),
    ]
    return operands.chain(calls, Batch(num_tokens=rows), restore=partial(np.copyto, logits, original[:rows]))
