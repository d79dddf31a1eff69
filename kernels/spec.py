"""What a specification of an operation consists of.

``kernels/specs`` holds one ``OpSpec`` an operation. A parity test runs every spec against every backend, and a backend
with a planted defect must fail it; a batch-invariance test runs the same cases row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.formats import RawTensor, WeightFormat
from kernels.ops import Arithmetic, Ops
from kernels.quantise import w8a8_tensor

Array = npt.NDArray[Any]
Inputs = Mapping[str, Any]
F32_EPS = 2.0**-24


@dataclass(frozen=True)
class Case:
    """One set of inputs: NumPy arrays, ``RawTensor`` weights and plain numbers, by parameter name."""

    name: str
    inputs: Inputs


@dataclass(frozen=True)
class Tolerance:
    """How far a result may lie from the oracle, as a share of the largest magnitude in the oracle's result.

    The share is ``factor * eps * sqrt(reduction)``: rounding errors of a sum of n terms grow like a random walk.

    Attributes:
        reduction: the longest sum behind one output, given the inputs.
        reason: where ``factor`` comes from.
        more: the activations or cache of an ``Arithmetic``, or the label of a weight's format -> a share on top, and
            where it comes from.
    """

    factor: float
    reduction: Callable[[Inputs], int]
    reason: str
    more: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    def limit(self, inputs: Inputs, arithmetic: Arithmetic, eps: float = F32_EPS) -> float:
        """The largest share allowed for inputs computed with unit roundoff ``eps``."""
        share = self.factor * eps * float(np.sqrt(self.reduction(inputs)))
        formats = {value.format.label for value in inputs.values() if isinstance(value, RawTensor)}
        kinds = {arithmetic.activations, arithmetic.cache, *formats}
        return share + sum(self.more[kind][0] for kind in sorted(kinds) if kind in self.more)


@dataclass(frozen=True)
class OpSpec:
    """An operation's contract.

    Attributes:
        name: the field of ``Ops``.
        axes: shapes and dtypes, in words.
        oracle: the result in float64, written for clarity, sharing nothing with any backend but the unpacking of
            weights, which is exact. Where a backend rounds on purpose, it rounds too.
        run: the same through a backend's table.
        cases: the inputs to try, from a seeded generator.
        token_inputs: inputs with one row a token; the result's rows must not depend on which rows travel together.
        source: where the definition comes from.
    """

    name: str
    axes: str
    oracle: Callable[[Inputs, Arithmetic], Array]
    run: Callable[[Ops, Inputs], Array]
    cases: Callable[[np.random.Generator], Iterator[Case]]
    tolerance: Tolerance
    token_inputs: tuple[str, ...]
    source: str


def deviation(got: Array, want: Array) -> float:
    """Largest difference as a share of the largest wanted magnitude; infinite if ``got`` has a NaN or another shape."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - want).max(initial=0.0) / max(float(np.abs(want).max(initial=0.0)), 1e-30))


def f32_tensor(array: Array) -> RawTensor:
    """An array as a float32 weight."""
    data = np.ascontiguousarray(array, dtype=np.float32)
    return RawTensor(data.shape, WeightFormat.F32, data.view(np.uint8).reshape(*data.shape[:-1], -1))


def random_tensor(rng: np.random.Generator, shape: tuple[int, ...], fmt: WeightFormat) -> RawTensor:
    """A random weight of about unit magnitude in any format.

    Block formats get random bytes for their quants and moderate random scales, so every code of the format occurs.
    """
    if fmt is WeightFormat.F32:
        return f32_tensor(rng.standard_normal(shape))
    if fmt in {WeightFormat.F16, WeightFormat.BF16}:
        values = rng.standard_normal(shape).astype(np.float32)
        bits = values.astype(np.float16).view(np.uint16) if fmt is WeightFormat.F16 else values.view(np.uint32) >> 16
        data = bits.astype(np.uint16).view(np.uint8).reshape(*shape[:-1], -1)
        return RawTensor(shape, fmt, data)
    if fmt is WeightFormat.W8A8:
        codes = rng.integers(-127, 128, shape, dtype=np.int8)
        return w8a8_tensor(codes, rng.uniform(0.005, 0.02, shape[:-1]).astype(np.float32))
    row_bytes = fmt.row_bytes(shape[-1])
    blocks = rng.integers(0, 256, (*shape[:-1], row_bytes // fmt.block_bytes, fmt.block_bytes), dtype=np.uint8)
    for offset in _F16_SCALES[fmt]:
        scales = rng.uniform(0.01, 0.1, blocks.shape[:-1]).astype(np.float16)
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return RawTensor(shape, fmt, blocks.reshape(*shape[:-1], row_bytes))


_F16_SCALES = {
    WeightFormat.Q8_0: (0,),
    WeightFormat.Q4_0: (0,),
    WeightFormat.Q4_1: (0, 2),
    WeightFormat.Q4_K: (0, 2),
    WeightFormat.Q6_K: (208,),
}
"""Byte offsets of the float16 scales in a block: random bits there could be infinite or NaN."""
