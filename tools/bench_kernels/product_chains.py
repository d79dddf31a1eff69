"""Products with weights, dense and of routed experts, as chains of calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kernels.cpu.abi import MAX_PROGRAM, Batch, Experts, Matrix, Op
from kernels.cpu.memory import address
from kernels.cpu.weights import Form, PackedMatrix
from kernels.formats import WeightFormat
from tools.bench_kernels import work as w
from tools.bench_kernels.operands import Chain, Label, NewOperands, Operands
from tools.bench_kernels.shapes import ExpertShape, Sizes

COLD_ROWS = 16
"""With more rows than that, arithmetic takes longer than reading the weights from anywhere."""


def linear(new: NewOperands, sizes: Sizes, cold_bytes: int) -> Iterator[list[Chain]]:
    """LINEAR: the matrices of both models."""
    for model in (sizes.small, sizes.large):
        for fmt in model.formats:
            shapes = [shape for shape in model.matrices if shape[1] % fmt.block_elements == 0]
            yield [chain for n, k in shapes for chain in _products(new(), Op.LINEAR, fmt, n, k, sizes.rows, cold_bytes)]
        sampled = [rows for rows in sizes.rows if rows <= sizes.sampled]
        for fmt in model.output_formats:
            yield _products(new(), Op.LINEAR, fmt, model.vocab, model.hidden, sampled, cold_bytes)


def silu_linear(new: NewOperands, sizes: Sizes, cold_bytes: int) -> Iterator[list[Chain]]:
    """SILU_LINEAR: gate and up projections of both models."""
    for model in (sizes.small, sizes.large):
        for fmt in model.gate_formats:
            yield _products(new(), Op.SILU_LINEAR, fmt, 2 * model.inner, model.hidden, sizes.rows, cold_bytes)


def _products(
    operands: Operands, op: Op, fmt: WeightFormat, n: int, k: int, all_rows: Sequence[int], cold_bytes: int
) -> list[Chain]:
    """One weight with each number of rows; with few also cold: copies of it, of ``cold_bytes`` together, in turn."""
    most, silu, matrix = max(all_rows), op is Op.SILU_LINEAR, operands.matrix(fmt, n, k)
    copies = min(-(-cold_bytes // matrix.panels.nbytes), MAX_PROGRAM // 4)
    cold = [matrix.struct, *(operands.copy(matrix) for _ in range(copies - 1))]
    x = operands.rows(most, k, matrix.form)
    y = operands.rows(most, n // 2 if silu else n, w.made_by_silu(matrix.form) if silu else Form.FLOATS)
    chains = []
    for rows in all_rows:
        counted = (w.silu_product if silu else w.product)(matrix.panels.nbytes, n, k, rows, matrix.form)
        for structs in (cold[:1], cold) if rows <= COLD_ROWS and len(cold) > 1 else (cold[:1],):
            label = Label(op.name, fmt.label, f"{n} x {k}", rows, cold=len(structs) > 1)
            calls = [
                operands.call(op, x, struct, *((y,) if silu else (y.x, n)), label=label, work=counted)
                for struct in structs
            ]
            chains.append(operands.chain(calls, Batch(num_tokens=rows)))
    return chains


def experts(new: NewOperands, sizes: Sizes, _cold_bytes: int) -> Iterator[list[Chain]]:
    """What a layer of routed experts consists of, all in one chain."""
    shape, operands = sizes.experts, new()
    ups = [operands.matrix(shape.format, 2 * shape.inner, shape.hidden) for _ in range(shape.num_experts)]
    downs = [operands.matrix(shape.format, shape.hidden, shape.inner) for _ in range(shape.num_experts)]
    yield [_expert_chain(operands, shape, ups, downs, rows) for rows in sizes.rows]


def _expert_chain(
    operands: Operands, shape: ExpertShape, ups: Sequence[PackedMatrix], downs: Sequence[PackedMatrix], rows: int
) -> Chain:
    form = ups[0].form
    pairs, hidden, inner = rows * shape.top_k, shape.hidden, shape.inner
    x = operands.rows(rows, hidden, form)
    scores = operands.floats(rows, shape.num_experts)
    structs = [(Matrix * shape.num_experts)(*(m.struct for m in side)) for side in (ups, downs)]
    counts = {
        "expert_of": pairs,
        "row_of": pairs,
        "gate_of": pairs,
        "token_of": pairs,
        "first_row": shape.num_experts + 1,
    }
    table = Experts(
        num_experts=shape.num_experts, top_k=shape.top_k, normalise=1, hidden=hidden, inner=inner,
        up=operands.structures(structs[0]), down=operands.structures(structs[1]),
        gathered=operands.rows(pairs, hidden, form),
        between=operands.rows(pairs, inner, form),
        result=address(operands.floats(pairs, hidden)),
        **{name: operands.integers(np.zeros(count, dtype=np.int32)) for name, count in counts.items()},
    )  # fmt: skip
    chosen = np.argpartition(-scores, shape.top_k - 1, axis=1)[:, : shape.top_k]
    done = w.expert_work(
        rows, hidden, inner, shape.num_experts, shape.top_k, form,
        touched_up=sum(ups[i].panels.nbytes for i in np.unique(chosen)),
        touched_down=sum(downs[i].panels.nbytes for i in np.unique(chosen)),
    )  # fmt: skip
    text = f"{hidden} x {inner}, {shape.top_k} of {shape.num_experts}"
    more = {
        Op.ROUTE: (scores, shape.num_experts),
        Op.EXPERT_GATHER: (x,),
        Op.EXPERT_SUM: (operands.floats(rows, hidden), hidden),
    }
    calls = [
        operands.call(op, table, *more.get(op, ()), label=Label(op.name, shape.format.label, text, rows), work=work)
        for op, work in done.items()
    ]
    return operands.chain(calls, Batch(num_tokens=rows))
