"""What operations are given: activations, weights, caches, batches; and the calls made of them.

A native structure holds addresses alone, so ``Operands`` keeps everything that it has made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cpu.abi import BLOCK_BYTES, TOKEN_HEADER_BYTES, Batch, Library, Matrix, Op, Rows
from kernels.cpu.lowering import one_call
from kernels.cpu.memory import HugePages, address, aligned, alloc_cache
from kernels.cpu.recorded import Runner
from kernels.cpu.weights import Form, PackedMatrix, pack_matrix, struct_address
from kernels.formats import CacheDtype, RawTensor, WeightFormat
from kernels.ops import LayerCache
from kernels.spec import random_tensor
from tools.bench_kernels.work import Work, blocks_of

F32 = npt.NDArray[np.float32]
Argument = int | float | ctypes.Structure | npt.NDArray[Any] | None
REPEATED_ROWS = 64
"""Of a random weight; the rest of it is these rows again."""


@dataclass(frozen=True)
class Label:
    """What a line of the table is about.

    Attributes:
        cold: whether its weights come from memory, since no cache holds all that the chain reads.
    """

    op: str
    variant: str
    shape: str
    rows: int
    cold: bool = False


@dataclass(frozen=True)
class Call:
    """One native call; without a label it only makes what a later one reads."""

    instruction: npt.NDArray[Any]
    label: Label | None = None
    work: Work | None = None


@dataclass
class Chain:
    """Calls that run one after the other, again and again.

    Attributes:
        kept: what the addresses in the calls and the batch lead to.
        restore: puts back what a run overwrites; a chain that has one runs once at a time.
    """

    calls: Sequence[Call]
    batch: Batch
    kept: Any
    restore: Callable[[], None] | None = None


class Operands:
    """Makes operands and keeps them."""

    def __init__(self, library: Library, runner: Runner) -> None:
        self.library = library
        self.rng = np.random.default_rng(0)
        self.threads = runner.threads
        self._runner = runner
        self._weights = HugePages()
        self._kept: list[Any] = []

    def keep(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Keep an array, which must be contiguous."""
        self._kept.append(array)
        return array

    def floats(self, rows: int, columns: int) -> F32:
        """Normal numbers f32[rows, columns], aligned."""
        memory = self.keep(aligned(4 * rows * columns)).view(np.float32).reshape(rows, columns)
        memory[:] = self.rng.standard_normal((rows, columns), dtype=np.float32)
        return memory

    def rows(self, count: int, columns: int, *forms: Form) -> Rows:
        """Activations. As int8 they hold what QUANTISE makes of numbers among which some blocks stand out."""
        blocks = blocks_of(columns)
        rows = Rows(x=address(self.activations(count, columns)), ld=columns)
        if Form.BLOCKS in forms:
            rows.q = address(self.keep(aligned(count * blocks * BLOCK_BYTES)))
        if Form.TOKENS in forms:
            rows.tokens = address(self.keep(aligned(count * (TOKEN_HEADER_BYTES + 32 * blocks))))
        self.run(self.call(Op.QUANTISE, rows, columns), Batch(num_tokens=count))
        if Form.FLOATS not in forms:
            rows = Rows(x=0, ld=columns, q=rows.q, tokens=rows.tokens)
        self._kept.append(rows)
        return rows

    def activations(self, count: int, columns: int) -> F32:
        """Numbers of which one block in nine is wide, half of those in every row, as in the default model."""
        x = self.floats(count, columns)
        blocks = blocks_of(columns)
        wide = (self.rng.random((count, blocks)) < 1 / 18) | (self.rng.random(blocks) < 1 / 18)
        x *= np.where(np.repeat(wide, 32, axis=1)[:, :columns], np.float32(4), np.float32(1))
        return x

    def matrix(self, fmt: WeightFormat, n: int, k: int) -> PackedMatrix:
        """A packed weight [n, k]."""
        some = random_tensor(self.rng, (min(n, REPEATED_ROWS), k), fmt)
        data = np.tile(some.data, (-(-n // len(some.data)), 1))[:n]
        matrix = pack_matrix(self.library, self._weights, [RawTensor((n, k), fmt, data)])
        self._kept.append(matrix)
        return matrix

    def copy(self, matrix: PackedMatrix) -> Matrix:
        """The same weight elsewhere in memory."""
        panels = self.keep(self._weights.take(len(matrix.panels)))
        panels[:] = matrix.panels
        struct = Matrix(format=matrix.struct.format, n=matrix.struct.n, k=matrix.struct.k, panels=address(panels))
        self._kept.append(struct)
        return struct

    def cache(self, kind: CacheDtype, tokens: int, block_size: int, kv_heads: int, head_dim: int) -> LayerCache:
        """A cache whose first ``tokens`` slots are filled, some thousand at a time."""
        cache = alloc_cache(self.library, kind, -(-tokens // block_size), block_size, kv_heads, head_dim)
        self._kept.append(cache)
        some = min(tokens, 4096)
        width = kv_heads * head_dim
        k, v = self.floats(some, width), self.floats(some, width)
        call = self.call(Op.WRITE_KV, cache.k.struct, k, width, v, width)
        for first in range(0, tokens, some):
            slots = np.arange(first, min(first + some, tokens), dtype=np.int32)
            self.run(call, Batch(num_tokens=len(slots), slots=address(slots)))
        return cache

    def integers(self, values: npt.ArrayLike) -> int:
        """The address of i32 numbers."""
        return address(self.keep(np.ascontiguousarray(values, dtype=np.int32)))

    def call(self, op: Op, *arguments: Argument, label: Label | None = None, work: Work | None = None) -> Call:
        """A call; structures and arrays are given by address and kept."""
        return Call(one_call(op, 0, *(self._bits(argument) for argument in arguments)), label, work)

    def run(self, call: Call, batch: Batch) -> None:
        """Run a call once."""
        self._runner.call(call.instruction, batch)

    def chain(self, calls: Sequence[Call], batch: Batch, **more: Any) -> Chain:
        """Calls over a batch, with all that is kept so far."""
        return Chain(calls, batch, [*self._kept], **more)

    def over_rows(
        self,
        call: tuple[Op, *tuple[Argument, ...]],
        variant: str,
        shape: str,
        works: Mapping[int, Work],
        batch: Batch | None = None,
        after: Call | None = None,
    ) -> list[Chain]:
        """The same call over each number of rows; ``batch`` has the arrays of all of them."""
        op, *arguments = call
        chains = []
        for rows, work in works.items():
            made = self.call(op, *arguments, label=Label(op.name, variant, shape, rows), work=work)
            of_rows = Batch.from_buffer_copy(batch or Batch())
            of_rows.num_tokens = of_rows.num_rows = rows
            chains.append(self.chain([after, made] if after else [made], of_rows))
        return chains

    def structures(self, array: ctypes.Array[Any]) -> int:
        """The address of structures side by side."""
        self._kept.append(array)
        return struct_address(array)

    def _bits(self, argument: Argument) -> int:
        if isinstance(argument, ctypes.Structure):
            self._kept.append(argument)
            return struct_address(argument)
        if isinstance(argument, np.ndarray):
            return address(self.keep(argument))
        if isinstance(argument, float):
            return int(np.float32(argument).view(np.int32))
        return argument or 0


NewOperands = Callable[[], Operands]
"""Operands of their own for each list of chains: their memory is given back with it."""
