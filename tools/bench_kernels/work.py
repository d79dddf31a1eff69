"""How much an operation does: bytes that it must move, and operations that it must compute.

Bytes are those that lie in memory, each once: weights, activations in and out, keys and values. Operations are those of
the definition: a product of an n by k weight takes 2 n k a row, however the kernel goes about it. The second plane of
codes that a wide block of activations has counts for neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kernels.cpu.abi import BLOCK_BYTES, TOKEN_HEADER_BYTES, Op
from kernels.cpu.weights import Form

Unit = Literal["int8", "i16", "f32"]

EXP = 15
"""Of an exponential (csrc/math.hpp): a bound, rounding and what it leaves, five multiply-adds, the exponent."""
SILU_MUL = EXP + 4
QUANTISE = 8
"""A number: magnitude, maximum, sum, scaling, rounding, and what rounding left."""
NORM = 4
"""A number: a multiply-add, two products."""
ROPE = 3
CACHE_ROUNDING = 3
"""A number: magnitude, maximum, scaling."""
ARGMAX = 3
DRAW = EXP + 4
"""A logit: maximum, difference, scaling, sum, and the exponential."""
DRAW_TOP_K = 2
"""A logit where few are left: maximum, comparison."""


@dataclass(frozen=True)
class Work:
    """What one call moves and computes; ``unit`` says in which arithmetic."""

    num_bytes: int
    num_ops: int
    unit: Unit = "f32"


def blocks_of(columns: int) -> int:
    """Blocks of 32 columns."""
    return -(-columns // 32)


def row_bytes(columns: int, form: Form) -> int:
    """Of a row of activations; of those in blocks, the first plane."""
    if form is Form.FLOATS:
        return 4 * columns
    return (
        blocks_of(columns) * BLOCK_BYTES // 2 if form is Form.BLOCKS else TOKEN_HEADER_BYTES + 32 * blocks_of(columns)
    )


def unit_of(form: Form) -> Unit:
    """The arithmetic of a product with activations in that form."""
    return "f32" if form is Form.FLOATS else "int8"


def made_by_silu(form: Form) -> Form:
    """What SILU_LINEAR leaves: one scale a token needs the whole row, so that is made of floats by another call."""
    return Form.BLOCKS if form is Form.BLOCKS else Form.FLOATS


def product(weight_bytes: int, n: int, k: int, rows: int, form: Form) -> Work:
    """LINEAR: f32[rows, n] from a weight [n, k]."""
    return Work(weight_bytes + rows * (row_bytes(k, form) + 4 * n), 2 * n * k * rows, unit_of(form))


def silu_product(weight_bytes: int, n: int, k: int, rows: int, form: Form) -> Work:
    """SILU_LINEAR: the same, of which n / 2 columns are left."""
    moved = weight_bytes + rows * (row_bytes(k, form) + row_bytes(n // 2, made_by_silu(form)))
    return Work(moved, 2 * n * k * rows, unit_of(form))


def each(counts: Iterable[int], columns: int, ops: int, moved: int) -> dict[int, Work]:
    """By number of rows: ``ops`` on each number of a row, and ``moved`` bytes a row."""
    return {rows: Work(rows * moved, rows * columns * ops) for rows in counts}


def attention(
    sequences: Iterable[tuple[int, int]], heads: int, head_dim: int, token_bytes: int, *, integers: bool
) -> Work:
    """ATTENTION of sequences as (tokens in the cache, of which are queries).

    Each key and value is read once a sequence; a query takes 4 d for each token it sees and each head.
    """
    moved = seen = 0
    for total, new in sequences:
        moved += total * token_bytes + new * (4 * heads * head_dim + row_bytes(heads * head_dim, Form.BLOCKS))
        seen += new * (total - new) + new * (new + 1) // 2
    return Work(moved, 4 * heads * head_dim * seen, "i16" if integers else "f32")


def write_kv(rows: int, kv_heads: int, head_dim: int, token_bytes: int, *, integers: bool) -> Work:
    """WRITE_KV: f32 keys, rotated on their way, and values into the cache."""
    numbers = rows * kv_heads * head_dim
    rounding = 2 * CACHE_ROUNDING if integers else 0
    return Work(8 * numbers + rows * token_bytes, numbers * (ROPE + rounding))


def mark(rows: int, columns: int) -> Work:
    """MARK: two products, a sum and a comparison for each block of each row."""
    return Work(rows * row_bytes(columns, Form.BLOCKS), 4 * rows * blocks_of(columns))


def expert_work(
    rows: int,
    hidden: int,
    inner: int,
    num_experts: int,
    top_k: int,
    form: Form,
    *,
    touched_up: int,
    touched_down: int,
) -> dict[Op, Work]:
    """The operations of routed experts, in order; ``touched`` are the bytes of the weights that some token goes to."""
    pairs = rows * top_k
    unit, in_bytes, between = unit_of(form), row_bytes(hidden, form), row_bytes(inner, form)
    return {
        Op.ROUTE: Work(4 * rows * num_experts + 8 * pairs, rows * num_experts * (EXP + 2 + top_k)),
        Op.EXPERT_ORDER: Work(16 * pairs, 2 * pairs),
        Op.EXPERT_GATHER: Work((rows + pairs) * in_bytes, 0),
        Op.EXPERT_UP: Work(touched_up + pairs * (in_bytes + between), 4 * pairs * hidden * inner, unit),
        Op.EXPERT_MARK: mark(pairs, inner),
        Op.EXPERT_DOWN: Work(touched_down + pairs * (between + 4 * hidden), 2 * pairs * hidden * inner, unit),
        Op.EXPERT_SUM: Work(4 * hidden * (pairs + rows), 2 * pairs * hidden),
    }
