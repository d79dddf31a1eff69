"""Weights as the native kernels want them: packed into panels of 32 rows, once, at load."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cpu.abi import FORMATS, MAX_COLUMNS, MAX_EXPERTS, PANEL_ROWS, Library, Matrix
from kernels.cpu.memory import HugePages, address
from kernels.formats import RawTensor, WeightFormat, fits
from kernels.ops import NoKernel
from kernels.reference.dequant import dequantise

F32 = npt.NDArray[np.float32]
FLOAT_FORMATS = frozenset({WeightFormat.F32, WeightFormat.F16, WeightFormat.BF16})


class Form(enum.Enum):
    """What activations are when they meet a weight."""

    FLOATS = enum.auto()
    BLOCKS = enum.auto()
    """int8, one scale for each 32 columns."""
    TOKENS = enum.auto()
    """int8, one scale a token."""


@dataclass(frozen=True)
class PackedMatrix:
    """One weight [n, k] in one format; ``struct`` points into ``panels`` and ``bias`` f32[n]."""

    struct: Matrix
    format: WeightFormat
    panels: npt.NDArray[np.uint8]
    bias: F32 | None

    @property
    def form(self) -> Form:
        """What it is multiplied with."""
        if self.format in FLOAT_FORMATS:
            return Form.FLOATS
        return Form.TOKENS if self.format is WeightFormat.W8A8 else Form.BLOCKS


@dataclass(frozen=True)
class PackedLinear:
    """Weights [N, K] as one matrix for each run of rows in the same format."""

    parts: tuple[PackedMatrix, ...]
    num_outputs: int
    num_inputs: int

    @property
    def forms(self) -> frozenset[Form]:
        """What its parts are multiplied with."""
        return frozenset(part.form for part in self.parts)


@dataclass(frozen=True)
class PackedExperts:
    """Routed experts: [2F,H] (gate over up) and [H,F] (down) of each, and their structs side by side.

    Attributes:
        inner: F, rounded up to whole panels.
    """

    up: tuple[PackedMatrix, ...]
    down: tuple[PackedMatrix, ...]
    hidden: int
    inner: int
    structs: tuple[Any, Any] = field(repr=False)


def pack_linear(
    library: Library, memory: HugePages, weights: Sequence[RawTensor], biases: Sequence[RawTensor] | None
) -> PackedLinear:
    """Pack weights that share their input, stacked: [N_i, K] and biases [N_i] -> [N, K].

    Raises:
        ValueError: there is none, or one is not of its shape.
        NoKernel: they have too many columns.
    """
    if not weights:
        raise ValueError("weights must be one at least")
    for raw in weights:
        _check("weights", raw, None, weights[0].shape[-1])
    if biases is not None and len(biases) != len(weights):
        raise ValueError(f"biases must be {len(weights)}, one a weight, but are {len(biases)}")
    beside = biases if biases is not None else [None] * len(weights)
    parts = []
    for _, run in groupby(zip(weights, beside, strict=True), key=lambda pair: pair[0].format):
        tensors, vectors = zip(*run, strict=True)
        parts.append(pack_matrix(library, memory, tensors, vectors if biases is not None else None))
    return PackedLinear(tuple(parts), sum(raw.shape[0] for raw in weights), weights[0].shape[1])


def pack_matrix(
    library: Library,
    memory: HugePages,
    weights: Sequence[RawTensor],
    biases: Sequence[RawTensor] | None = None,
    row_multiple: int = 1,
) -> PackedMatrix:
    """Pack weights [N_i,K] of one format, one below the other, each with zero rows up to ``row_multiple``.

    Biases are [N_i] each; nothing is put between them.

    Raises:
        NoKernel: they have too many columns.
        ValueError: one is not of its shape.
    """
    fmt, k = weights[0].format, weights[0].shape[-1]
    for raw in weights:
        _check("weights", raw, None, k)
    for raw, vector in zip(weights, biases or (), strict=bool(biases)):
        _check("biases", vector, raw.shape[0])
    if k > MAX_COLUMNS:
        raise NoKernel(f"the native kernels take weights of {MAX_COLUMNS} columns at most, but there are {k}")
    heights = [-(-raw.shape[0] // row_multiple) * row_multiple for raw in weights]
    panels = memory.take(library.packed_bytes(FORMATS[fmt], sum(heights), k))
    row = 0
    for raw, height in zip(weights, heights, strict=True):
        data = np.ascontiguousarray(raw.data)
        library.pack(FORMATS[fmt], raw.shape[0], k, address(data), data.shape[1], address(panels), row)
        row += height
    bias = np.concatenate([dequantise(raw) for raw in biases]) if biases else None
    struct = Matrix(
        format=FORMATS[fmt], n=row, k=k, panels=address(panels), bias=None if bias is None else address(bias)
    )
    return PackedMatrix(struct, fmt, panels, bias)


def pack_experts(library: Library, memory: HugePages, gate: RawTensor, up: RawTensor, down: RawTensor) -> PackedExperts:
    """Pack stacked experts: gate and up [E,F,H], down [E,H,F].

    Gate and up begin at a panel each, so F is rounded up to whole panels; what is added is zero.

    Raises:
        NoKernel: there are too many experts, or gate and up differ in format.
        ValueError: one is not of its shape.
    """
    _check("gate", gate, None, None, None)
    num_experts, inner, hidden = gate.shape
    _check("up", up, num_experts, inner, hidden)
    _check("down", down, num_experts, hidden, inner)
    if num_experts > MAX_EXPERTS:
        raise NoKernel(f"the native kernels route to {MAX_EXPERTS} experts at most, but there are {num_experts}")
    if gate.format is not up.format:
        raise NoKernel("the gate and up projections of its experts differ in format")
    ups = tuple(
        pack_matrix(library, memory, [gate.at(e), up.at(e)], row_multiple=PANEL_ROWS) for e in range(num_experts)
    )
    downs = tuple(pack_matrix(library, memory, [down.at(e)]) for e in range(num_experts))
    structs = tuple((Matrix * num_experts)(*(m.struct for m in side)) for side in (ups, downs))
    return PackedExperts(ups, downs, hidden, -(-inner // PANEL_ROWS) * PANEL_ROWS, (structs[0], structs[1]))


def _check(name: str, raw: RawTensor, *shape: int | None) -> None:
    """Native code trusts a weight's shape (None: any size) and that its data are those of the shape."""
    if not fits(raw.shape, shape):
        wanted = ["any" if size is None else size for size in shape]
        raise ValueError(f"{name} must have the shape {wanted}, but has {list(raw.shape)}")
    stored = (*raw.shape[:-1], raw.format.row_bytes(raw.shape[-1]))
    if raw.data.dtype != np.uint8 or raw.data.shape != stored:
        raise ValueError(
            f"{name} {list(raw.shape)} of {raw.format.label} must have data uint8{list(stored)}, "
            f"but has {raw.data.dtype}{list(raw.data.shape)}"
        )


def struct_address(struct: ctypes.Structure | ctypes.Array[Any]) -> int:
    """The address of a ctypes object; its owner keeps it alive."""
    return ctypes.addressof(struct)
