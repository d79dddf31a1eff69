"""What a forward pass consists of, as data: values, and the nodes that make them, in order.

The operations of the CPU backend do not compute; they append a node. ``lowering.py`` turns nodes into native calls: one
at a time when an operation is called on arrays, all of a step's at once when a forward pass is recorded.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cpu.abi import PANEL_ROWS, Cache
from kernels.cpu.weights import PackedExperts, PackedLinear

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


class Axis(enum.Enum):
    """What the rows of a value are."""

    TOKENS = enum.auto()
    SAMPLED = enum.auto()


class StepArray(enum.Enum):
    """An integer input of a recorded step: it differs from step to step."""

    TOKEN_IDS = enum.auto()
    POSITIONS = enum.auto()
    SLOTS = enum.auto()
    Q_STARTS = enum.auto()
    KV_LENS = enum.auto()
    BLOCK_TABLE = enum.auto()
    LOGIT_ROWS = enum.auto()


Integers = I32 | StepArray


@dataclass(eq=False)
class Value:
    """f32[rows, columns]; ``data`` is there unless the value belongs to a recording."""

    columns: int
    axis: Axis = Axis.TOKENS
    data: F32 | None = None


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a value's columns from ``first`` on, seen as [rows, *shape]."""

    value: Value
    first: int
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Numbers a row of the view."""
        return int(np.prod(self.shape))

    def reshape(self, rows: int, *shape: int) -> Tensor:
        """The same numbers a row as another shape; ``rows`` must be -1.

        Raises:
            ValueError: it would move numbers from row to row.
        """
        if rows != -1 or int(np.prod(shape)) != self.columns:
            raise ValueError(f"rows of {self.shape} cannot become {(rows, *shape)}")
        return Tensor(self.value, self.first, shape)

    def __getitem__(self, key: tuple[slice, slice]) -> Tensor:
        """A range of the first axis of each row: ``x[:, a:b]``.

        Raises:
            ValueError: anything else is asked for.
        """
        rows, inner = key
        if rows != slice(None) or inner.step is not None:
            raise ValueError("a tensor is sliced as x[:, a:b]")
        start, stop, _ = inner.indices(self.shape[0])
        step = self.columns // self.shape[0]
        return Tensor(self.value, self.first + start * step, (stop - start, *self.shape[1:]))

    @property
    def is_whole(self) -> bool:
        """Whether the view is the value itself."""
        return self.first == 0 and self.columns == self.value.columns


@dataclass(eq=False)
class Node:
    """One operation."""

    def reads(self) -> list[Value]:
        """The values it reads."""
        return [tensor.value for tensor in self.__dict__.values() if isinstance(tensor, Tensor)]

    def writes(self) -> list[Value]:
        """The values it makes."""
        return [value for value in self.__dict__.values() if isinstance(value, Value)]


@dataclass(eq=False)
class Embed(Node):
    """Rows of the embedding [V,H]: ids i32[T] -> [T,H]."""

    ids: Integers
    weight: PackedLinear
    out: Value


@dataclass(eq=False)
class Norm(Node):
    """rms_norm of each head of ``x``, or of ``x`` + ``residual``, whose sum is kept; weight f32[columns of a head]."""

    x: Tensor
    residual: Tensor | None
    weight: F32
    eps: float
    out: Value
    total: Value | None

    @property
    def heads(self) -> int:
        """Rows of the weight's length in each row of ``x``."""
        return self.x.columns // len(self.weight)


@dataclass(eq=False)
class Product(Node):
    """``x`` [rows,K] times a weight [N,K], plus its bias."""

    x: Tensor
    weight: PackedLinear
    out: Value


@dataclass(eq=False)
class SiluProduct(Node):
    """silu(gate) * up of ``x`` times a weight [2F, K]; made from a ``Product`` and a ``SiluMul``."""

    x: Tensor
    weight: PackedLinear
    out: Value


@dataclass(eq=False)
class Rope(Node):
    """Rotary embedding of ``x`` [T,heads,d]; positions i32[T], table f32[2,P,d/2]."""

    x: Tensor
    positions: Integers
    table: F32
    out: Value


@dataclass(eq=False)
class HeadPath:
    """What happens to a head on its way to the cache or to attention: a norm f32[d], then a rotation, or neither."""

    norm: F32 | None = None
    eps: float = 0.0
    positions: Integers | None = None
    table: F32 | None = None


@dataclass(eq=False)
class WriteKv(Node):
    """Keys and values [T,kv_heads,d] into the cache, at slots i32[T]."""

    cache: Cache
    k: Tensor
    v: Tensor
    slots: Integers
    path: HeadPath


@dataclass(eq=False)
class Attention(Node):
    """Paged attention of ``q`` [T,heads,d]; the integers as in ``kernels.ops.AttentionBatch``."""

    cache: Cache
    q: Tensor
    q_starts: Integers
    kv_lens: Integers
    block_table: Integers
    scale: float
    window: int | None
    path: HeadPath
    out: Value


@dataclass(eq=False)
class SiluMul(Node):
    """silu(gate) * up: [T,2F] -> [T,F]."""

    x: Tensor
    out: Value


@dataclass(eq=False)
class Moe(Node):
    """Routed experts: ``x`` [T,H], router [E,H] -> [T,H]."""

    x: Tensor
    router: PackedLinear
    experts: PackedExperts
    top_k: int
    normalise: bool
    out: Value


@dataclass(eq=False)
class Logits(Node):
    """Scores of the sampled rows i32[R] of ``x`` [T,H]: [R,V]."""

    x: Tensor
    rows: Integers
    weight: PackedLinear
    out: Value


def fuse(nodes: list[Node]) -> list[Node]:
    """Nodes that do the same with fewer passes over memory; the results are equal to the last bit.

    A product whose only reader is silu_mul becomes one with it; head norms and rotations that only attention or cache
    read are done by those, whose nodes are changed in place.
    """
    readers: dict[Value, list[Node]] = {}
    for node in nodes:
        for value in node.reads():
            readers.setdefault(value, []).append(node)
    makers = {value: node for node in nodes for value in node.writes()}
    gone: set[Node] = set()
    out: list[Node] = []

    def only_maker(tensor: Tensor, kind: type[Any]) -> Any:
        maker = makers.get(tensor.value)
        alone = tensor.is_whole and len(readers[tensor.value]) == 1 and isinstance(maker, kind)
        return maker if alone else None

    def absorb(tensor: Tensor, path: HeadPath) -> Tensor:
        rope = only_maker(tensor, Rope)
        if rope is None:
            return tensor
        path.positions, path.table, tensor = rope.positions, rope.table, rope.x
        gone.add(rope)
        norm = only_maker(tensor, Norm)
        if norm is not None and norm.residual is None and norm.heads == tensor.shape[0]:
            path.norm, path.eps, tensor = norm.weight, norm.eps, norm.x
            gone.add(norm)
        return tensor

    for node in nodes:
        if isinstance(node, SiluMul):
            product = only_maker(node.x, Product)
            if product is not None and len(product.weight.parts) == 1 and node.out.columns % PANEL_ROWS == 0:
                gone.add(product)
                out.append(SiluProduct(product.x, product.weight, node.out))
                continue
        if isinstance(node, WriteKv):
            node.k = absorb(node.k, node.path)
        if isinstance(node, Attention):
            node.q = absorb(node.q, node.path)
        out.append(node)
    return [node for node in out if node not in gone]
