"""From nodes to a program of native calls, and the memory it works in.

A value gets memory from where it is made to where it is last read, so that all layers share a few buffers. A value that
a product reads as int8 is quantised by whoever makes it, where that operation can; else by a call of its own. One
scale a token needs the whole row, so operations that make a row in pieces leave it to such a call.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cpu import graph as g
from kernels.cpu.abi import (
    BLOCK_BYTES,
    INSTRUCTION,
    MAX_GROUP,
    MAX_PROGRAM,
    NO_BARRIER,
    ROWS_SAMPLED,
    TOKEN_HEADER_BYTES,
    Experts,
    Library,
    Op,
    Rows,
)
from kernels.cpu.arena import Arena
from kernels.cpu.memory import address, aligned
from kernels.cpu.weights import Form, PackedLinear, struct_address
from kernels.ops import NoKernel, StepLimits

FLOATS, BLOCKS, TOKENS = (frozenset({form}) for form in (Form.FLOATS, Form.BLOCKS, Form.TOKENS))
NOTHING: frozenset[Form] = frozenset()
ROWS_FIELD = {Form.FLOATS: "x", Form.BLOCKS: "q", Form.TOKENS: "tokens"}


class Storage:
    """Where a value lies: as f32, as int8 in blocks, as int8 with one scale a token, or more of them."""

    def __init__(self, value: g.Value, max_rows: int, arena: Arena, forms: Set[Form]) -> None:
        self.columns = value.columns
        self.forms = forms
        blocks = -(-value.columns // 32)
        self._memory: list[npt.NDArray[np.uint8]] = []
        self.x = self._array(value, max_rows, arena) if Form.FLOATS in forms else None
        self.q = self._take(arena, max_rows * blocks * BLOCK_BYTES) if Form.BLOCKS in forms else 0
        token_bytes = TOKEN_HEADER_BYTES + 32 * blocks
        self.tokens = self._take(arena, max_rows * token_bytes) if Form.TOKENS in forms else 0

    def _array(self, value: g.Value, max_rows: int, arena: Arena) -> npt.NDArray[np.float32]:
        if value.data is not None:
            return value.data
        self._take(arena, 4 * max_rows * value.columns)
        return self._memory[-1].view(np.float32).reshape(max_rows, value.columns)

    def _take(self, arena: Arena, num_bytes: int) -> int:
        self._memory.append(arena.take(num_bytes))
        return address(self._memory[-1])

    def release(self, arena: Arena) -> None:
        """Give the memory back."""
        for memory in self._memory:
            arena.give(memory)

    def rows(self, first: int = 0) -> Rows:
        """The struct of it, with f32 columns from ``first`` on."""
        x = 0 if self.x is None else address(self.x) + 4 * first
        return Rows(x=x, ld=self.columns, q=self.q, tokens=self.tokens)


class Program:
    """Nodes, lowered.

    Attributes:
        instructions: ``INSTRUCTION[num_calls]``, one at least; address: where they lie.
        num_calls: how many of them there are.
        best: i32[max_rows], the greatest logit of each sampled row, once it has run.
        logits: f32[max_rows, V], likewise; None without a ``Logits`` node.
        partial: u8, where threads leave segments of a sequence's attention for each other.
    """

    def __init__(
        self, nodes: Sequence[g.Node], library: Library, threads: int, limits: StepLimits, arena_bytes: int = 0
    ) -> None:
        """Lower nodes for so many threads; ``arena_bytes`` as the same program told before, or 0 for memory in pieces.

        Raises:
            NoKernel: there are too many, or one has a shape that the kernels do not have.
            ValueError: a residual is not of whole rows.
        """
        self._max = {g.Axis.TOKENS: limits.max_tokens, g.Axis.SAMPLED: limits.max_rows}
        self._arena = Arena(arena_bytes)
        self.partial = aligned(max((_partial_bytes(node, library, threads, limits) for node in nodes), default=0))
        self._kept: list[Any] = [nodes]  # with them the weights and caches they name
        self._storage: dict[g.Value, Storage] = {}
        self._scratch: list[Storage] = []
        self._calls: list[tuple[int, int, list[int]]] = []
        self._wants = _wants(nodes)
        self.best = np.zeros(limits.max_rows, dtype=np.int32)
        self.logits: npt.NDArray[np.float32] | None = None
        last_reader = {value: node for node in nodes for value in [*node.writes(), *node.reads()]}
        for node in nodes:
            self._lower(node)
            self._kept.append(self._scratch)
            for storage in self._scratch:
                storage.release(self._arena)
            self._scratch = []
            for value in {*node.reads(), *node.writes()}:
                if last_reader[value] is node and value.data is None and not isinstance(node, g.Logits):
                    storage = self._storage.pop(value)
                    self._kept.append(storage)
                    storage.release(self._arena)
        if len(self._calls) > MAX_PROGRAM:
            raise NoKernel(f"a step of {len(self._calls)} native calls is longer than {MAX_PROGRAM}")
        self.instructions = np.zeros(max(len(self._calls), 1), dtype=INSTRUCTION)
        for row, (op, flags, arguments) in zip(self.instructions, self._calls, strict=False):
            row["op"], row["flags"] = op, flags
            row["a"][: len(arguments)] = arguments
        self.address = address(self.instructions)
        self.num_calls = len(self._calls)

    @property
    def arena_bytes(self) -> int:
        """Bytes that its values take up together."""
        return self._arena.num_bytes

    @property
    def ops(self) -> list[Op]:
        """What the calls are, in order."""
        return [Op(op) for op, _, _ in self._calls]

    def _call(self, op: Op, *arguments: int | ctypes.Structure | None, flags: int = 0) -> None:
        """Append a call; structures are kept and given by address."""
        self._calls.append((int(op), flags, [self._argument(argument) for argument in arguments]))

    def _argument(self, value: int | ctypes.Structure | None) -> int:
        if not isinstance(value, ctypes.Structure):
            return value or 0
        self._kept.append(value)
        return struct_address(value)

    def _keep(self, array: npt.NDArray[Any]) -> int:
        self._kept.append(array)
        return address(array)

    def _store(self, value: g.Value, can_make: Set[Form] = NOTHING) -> Storage:
        """Memory for a value that is about to be made, by an operation that can quantise it as said, or not at all."""
        wanted = self._wants.get(value, FLOATS)
        made = wanted & can_make
        floats = NOTHING if wanted == made and value.data is None else FLOATS
        storage = Storage(value, self._max[value.axis], self._arena, made | floats)
        self._storage[value] = storage
        return storage

    def _source(self, tensor: g.Tensor) -> tuple[int, int]:
        """(address of the f32 view, floats from row to row)."""
        storage = self._of(tensor.value)
        if storage.x is None:
            raise ValueError("a value is read as f32 that was kept as int8 only")
        return address(storage.x) + 4 * tensor.first, storage.columns

    def _of(self, value: g.Value) -> Storage:
        if value not in self._storage:  # an input, given as an array
            self._storage[value] = Storage(value, self._max[value.axis], self._arena, FLOATS)
        return self._storage[value]

    def _inputs(self, tensor: g.Tensor, forms: Set[Form]) -> dict[Form, Rows]:
        """A product's input in each form: as it is, or quantised here if it was not where it was made."""
        return {form: self._input(tensor, form) for form in sorted(forms, key=lambda form: form.value)}

    def _input(self, tensor: g.Tensor, form: Form) -> Rows:
        storage = self._of(tensor.value)
        if form is Form.FLOATS or (form in storage.forms and tensor.is_whole):
            return storage.rows(tensor.first)
        x, ld = self._source(tensor)
        rows = self._scratch_rows(tensor.columns, tensor.value.axis, {form})
        rows = Rows(x=x, ld=ld, q=rows.q, tokens=rows.tokens)
        self._call(Op.QUANTISE, rows, tensor.columns)
        return rows

    def _scratch_rows(self, columns: int, axis: g.Axis, forms: Set[Form], factor: int = 1) -> Rows:
        """Rows that nobody reads after this node."""
        storage = Storage(g.Value(columns, axis), self._max[axis] * factor, self._arena, forms)
        self._scratch.append(storage)
        return storage.rows()

    def _products(self, inputs: Mapping[Form, Rows], weight: PackedLinear, out: int, ld: int, flags: int = 0) -> None:
        """One call a part; they write different columns, so only the last waits."""
        column = 0
        for index, part in enumerate(weight.parts):
            is_last = index + 1 == len(weight.parts)
            more = 0 if is_last else NO_BARRIER
            self._call(Op.LINEAR, inputs[part.form], part.struct, out + 4 * column, ld, flags=flags | more)
            column += part.struct.n

    def _lower(self, node: g.Node) -> None:
        match node:
            case g.Embed():
                self._embed(node)
            case g.Norm():
                self._norm(node)
            case g.Product():
                inputs, out = self._inputs(node.x, node.weight.forms), self._store(node.out)
                self._products(inputs, node.weight, out.rows().x, out.columns)
            case g.SiluProduct():
                (part,) = node.weight.parts
                rows, out = self._input(node.x, part.form), self._store(node.out, BLOCKS)
                self._call(Op.SILU_LINEAR, rows, part.struct, out.rows())
                self._mark(out)
            case g.Rope():
                x, ld = self._source(node.x)
                out, (heads, dim) = self._store(node.out), node.x.shape
                table, positions = self._keep(node.table), node.table.shape[1]
                self._call(Op.ROPE, x, ld, out.rows().x, out.columns, heads, dim, table, positions)
            case g.WriteKv():
                (k, k_ld), (v, v_ld) = self._source(node.k), self._source(node.v)
                table, positions, norm, eps = self._path(node.path)
                self._call(Op.WRITE_KV, node.cache, k, k_ld, v, v_ld, table, positions, norm, eps)
            case g.Attention():
                self._attention(node)
            case g.SiluMul():
                x, ld = self._source(node.x)
                out = self._store(node.out, BLOCKS | TOKENS)
                self._call(Op.SILU_MUL, x, ld, out.rows(), node.out.columns)
            case g.Moe():
                self._moe(node)
            case g.Logits():
                self._logits(node)
            case _:
                raise TypeError(f"no native call for {type(node).__name__}")

    def _embed(self, node: g.Embed) -> None:
        if len(node.weight.parts) != 1:
            raise NoKernel("the embedding is of several formats")
        out = self._store(node.out)
        self._call(Op.EMBED, node.weight.parts[0].struct, out.rows().x, out.columns)

    def _norm(self, node: g.Norm) -> None:
        x = self._of(node.x.value).rows(node.x.first)
        columns = len(node.weight)
        residual = 0
        if node.residual is not None:
            residual, ld = self._source(node.residual)
            if node.heads != 1 or ld != columns:
                raise ValueError("a residual has the rows of the sum, whole")
        out = self._store(node.out, BLOCKS | TOKENS if node.heads == 1 else NOTHING)
        total = 0 if node.total is None else self._store(node.total).rows().x
        weight = self._keep(node.weight)
        self._call(Op.NORM, x, residual, weight, total, out.rows(), columns, node.heads, _bits(node.eps))

    def _path(self, path: g.HeadPath) -> tuple[int, int, int, int]:
        table = 0 if path.table is None else self._keep(path.table)
        norm = 0 if path.norm is None else self._keep(path.norm)
        return table, 0 if path.table is None else path.table.shape[1], norm, _bits(path.eps)

    def _attention(self, node: g.Attention) -> None:
        heads, dim = node.q.shape
        if heads % node.cache.kv_heads or heads // node.cache.kv_heads > MAX_GROUP:
            raise NoKernel(f"{heads} query heads cannot share {node.cache.kv_heads} key heads (at most {MAX_GROUP})")
        q, ld = self._source(node.q)
        out = self._store(node.out, BLOCKS if dim % 32 == 0 else NOTHING)
        table, positions, norm, eps = self._path(node.path)
        self._call(
            Op.ATTENTION, node.cache, q, ld, out.rows(), heads, _bits(node.scale), node.window or 0,
            table, positions, norm, eps, address(self.partial), len(self.partial),
        )  # fmt: skip
        self._mark(out)

    def _mark(self, made: Storage) -> None:
        """Which blocks are wide depends on the whole row, which this operation made in pieces."""
        if made.q:
            self._call(Op.MARK, made.rows(), made.columns)

    def _moe(self, node: g.Moe) -> None:
        experts, top_k = node.experts, node.top_k
        num_experts, max_tokens = len(experts.up), self._max[g.Axis.TOKENS]
        pairs = max_tokens * top_k
        router = self._inputs(node.x, node.router.forms)
        scores = self._scratch_rows(num_experts, g.Axis.TOKENS, FLOATS)
        self._products(router, node.router, scores.x, num_experts)
        up, down = experts.up[0].form, experts.down[0].form
        rows = self._input(node.x, up)
        gathered = self._scratch_rows(experts.hidden, g.Axis.TOKENS, {up}, factor=top_k)
        pieces = FLOATS if down is Form.TOKENS else NOTHING
        between = self._scratch_rows(experts.inner, g.Axis.TOKENS, {down} | pieces, factor=top_k)
        result = self._scratch_rows(experts.hidden, g.Axis.TOKENS, FLOATS, factor=top_k)
        sizes = {"expert_of": pairs, "row_of": pairs, "gate_of": pairs, "token_of": pairs, "first_row": num_experts + 1}
        table = Experts(
            num_experts=num_experts, top_k=top_k, normalise=node.normalise, hidden=experts.hidden, inner=experts.inner,
            up=struct_address(experts.structs[0]), down=struct_address(experts.structs[1]),
            gathered=gathered, between=between, result=result.x,
            **{name: self._keep(np.zeros(size, dtype=np.int32)) for name, size in sizes.items()},
        )  # fmt: skip
        self._kept.append(experts)
        out = self._store(node.out)
        wanted = Rows(ld=rows.ld)
        setattr(wanted, ROWS_FIELD[up], getattr(rows, ROWS_FIELD[up]))
        self._call(Op.ROUTE, table, scores.x, num_experts)
        self._call(Op.EXPERT_ORDER, table)
        self._call(Op.EXPERT_GATHER, table, wanted)
        self._call(Op.EXPERT_UP, table)
        self._call(Op.EXPERT_MARK, table)
        self._call(Op.EXPERT_DOWN, table)
        self._call(Op.EXPERT_SUM, table, out.rows().x, out.columns)

    def _logits(self, node: g.Logits) -> None:
        x, ld = self._source(node.x)
        forms = node.weight.forms
        rows = self._scratch_rows(node.x.columns, g.Axis.SAMPLED, forms)
        self._call(Op.GATHER, x, ld, rows, node.x.columns, flags=ROWS_SAMPLED)
        out = self._store(node.out)
        self._products(dict.fromkeys(forms, rows), node.weight, out.rows().x, out.columns, ROWS_SAMPLED)
        self._call(Op.ARGMAX, out.rows().x, out.columns, out.columns, self._keep(self.best), flags=ROWS_SAMPLED)
        self.logits = out.x


def lower(nodes: Sequence[g.Node], library: Library, threads: int, limits: StepLimits) -> Program:
    """A program that stays: lowered twice, the second time in one piece of memory of the size that the first told.

    Raises:
        NoKernel, ValueError: as ``Program`` does.
    """
    measured = Program(nodes, library, threads, limits)
    return Program(nodes, library, threads, limits, measured.arena_bytes)


def one_call(op: Op, flags: int, *arguments: int) -> npt.NDArray[Any]:
    """A program of one call: ``INSTRUCTION[1]``."""
    instructions = np.zeros(1, dtype=INSTRUCTION)
    instructions["op"], instructions["flags"] = op, flags
    instructions["a"][0, : len(arguments)] = arguments
    return instructions


def _wants(nodes: Sequence[g.Node]) -> dict[g.Value, frozenset[Form]]:
    """For each value that is read: the forms that its readers want it in."""
    wants: dict[g.Value, frozenset[Form]] = {}

    def note(tensor: g.Tensor, forms: frozenset[Form]) -> None:
        wants[tensor.value] = wants.get(tensor.value, NOTHING) | (forms if tensor.is_whole else FLOATS)

    for node in nodes:
        match node:
            case g.Product() | g.SiluProduct():
                note(node.x, node.weight.forms)
            case g.Moe():
                note(node.x, node.router.forms | {node.experts.up[0].form})
            case _:
                for value in node.reads():
                    note(g.Tensor(value, 0, (value.columns,)), FLOATS)
    return wants


def _partial_bytes(node: g.Node, library: Library, threads: int, limits: StepLimits) -> int:
    if not isinstance(node, g.Attention):
        return 0
    (heads, dim), window, kv_heads = node.q.shape, node.window or 0, node.cache.kv_heads
    return library.partial_bytes(threads, limits.max_rows, limits.max_model_len, window, kv_heads, heads, dim)


def _bits(value: float) -> int:
    """A float32 as the integer of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])
