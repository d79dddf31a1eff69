"""Products with a weight matrix, in float32, batch-invariant on any BLAS.

A BLAS may sum in another order when it is given another number of rows. So it never is: rows go through in tiles of
``ROW_TILE``, the last one padded with zeros. That a row's result does not depend on its place in the tile either is
not promised by any BLAS; it holds for those we know, and is checked for each weight when it is prepared. Where it
fails, that weight is used one row at a time, which is slower and cannot fail. W8A8 weights need none of it
(``w8a8.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from kernels.formats import RawTensor, WeightFormat
from kernels.ops import NoKernel, Split
from kernels.reference.dequant import codes_and_scales, dequantise
from kernels.reference.w8a8 import Int8Weight

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

ROW_TILE = 16
"""Measured with OpenBLAS 0.3.31 on the default model, one thread: a step takes 93, 96 and 120 ms with tiles of 8, 16
and 32 rows, which is 23, 45 and 72 GFLOP/s. See docs/decisions/0003-row-tiles.md."""


@dataclass(frozen=True)
class FloatWeight:
    """Weight f32[N,K], and how many rows of activations go through at once."""

    weight: F32
    row_tile: int

    def product(self, x: F32) -> F32:
        """X @ weight.T: f32[T,K] -> f32[T,N]. Batch-invariant: see the module."""
        return tiled_matmul(x, self.weight, self.row_tile)

    def rows(self, ids: I32) -> F32:
        """Some of the weight's rows: ids i32[n] -> f32[n,K]."""
        return self.weight[ids]


@dataclass(frozen=True)
class ReferenceLinear:
    """Weights [N_i,K] whose outputs stand side by side, and their bias f32[N] or None."""

    parts: tuple[FloatWeight | Int8Weight, ...]
    bias: F32 | None


def prepare_linear(
    weights: Sequence[RawTensor], biases: Sequence[RawTensor] | None, *, split: Split = "none"
) -> ReferenceLinear:
    """Unpack weights that share their input and stack their rows; what is W8A8 stays integers.

    ``split`` is for backends of several processes.

    Shapes: weights [N_i,K], biases [N_i] -> [N,K], in the order given.

    Raises:
        ValueError: data are not those of their shape.
    """
    del split
    runs = groupby(weights, key=lambda raw: raw.format is WeightFormat.W8A8)
    parts = tuple(_int8_weight(list(run)) if is_int8 else _float_weight(list(run)) for is_int8, run in runs)
    return ReferenceLinear(parts, np.concatenate([dequantise(part) for part in biases]) if biases else None)


def _float_weight(weights: Sequence[RawTensor]) -> FloatWeight:
    weight = np.empty((sum(part.shape[0] for part in weights), weights[0].shape[1]), dtype=np.float32)
    row = 0
    for part in weights:
        dequantise(part, weight[row : row + part.shape[0]])
        row += part.shape[0]
    return FloatWeight(weight, row_tile_for(weight))


def _int8_weight(weights: Sequence[RawTensor]) -> Int8Weight:
    codes, scales = zip(*(codes_and_scales(part) for part in weights), strict=True)
    return Int8Weight(np.concatenate(codes, dtype=np.float32), np.concatenate(scales))


def linear(x: F32, w: ReferenceLinear) -> F32:
    """X @ weight.T + bias.

    Shapes: x f32[T,K] -> f32[T,N]. Before a W8A8 part, x is rounded to int8 with one scale a token.
    Batch-invariant: see the module.
    """
    products = [part.product(x) for part in w.parts]
    out = products[0] if len(products) == 1 else np.concatenate(products, axis=1)
    if w.bias is not None:
        out += w.bias
    return out


def embed(ids: I32, w: ReferenceLinear) -> F32:
    """Rows of the embedding: ids i32[T] -> f32[T,H].

    Raises:
        NoKernel: it is W8A8 in part only.
    """
    if len(w.parts) != 1:
        raise NoKernel("the embedding is of several formats")
    return w.parts[0].rows(ids)


def logits(x: F32, rows: I32, w: ReferenceLinear) -> F32:
    """Scores over the vocabulary for some rows: x f32[T,H], rows i32[R] -> f32[R,V]. Batch-invariant as ``linear``."""
    return linear(x[rows], w)


def tiled_matmul(x: F32, weight: F32, row_tile: int) -> F32:
    """X @ weight.T, ``row_tile`` rows at a time: f32[T,K], f32[N,K] -> f32[T,N].

    Batch-invariant with the ``row_tile`` that ``row_tile_for`` gives for the weight.
    """
    num_rows, inner = x.shape
    num_tiles = -(-num_rows // row_tile)
    padded = np.zeros((num_tiles * row_tile, inner), dtype=np.float32)
    padded[:num_rows] = x
    columns = padded.reshape(num_tiles, row_tile, inner).transpose(0, 2, 1)
    product = np.matmul(weight, columns)  # [tiles, N, row_tile]: one BLAS call of a fixed shape a tile
    return np.ascontiguousarray(product.transpose(0, 2, 1)).reshape(-1, len(weight))[:num_rows]


def row_tile_for(weight: F32) -> int:
    """ROW_TILE if this BLAS gives a row the same result wherever it stands in a tile, for weight f32[N,K]; else 1."""
    row: F32 = np.random.default_rng(0).standard_normal((1, weight.shape[1]), dtype=np.float32)
    alone = np.zeros((ROW_TILE, weight.shape[1]), dtype=np.float32)
    alone[:1] = row
    expected = tiled_matmul(alone, weight, ROW_TILE)[0]
    everywhere = tiled_matmul(np.tile(row, (ROW_TILE, 1)), weight, ROW_TILE)
    return ROW_TILE if np.array_equal(everywhere, np.tile(expected, (ROW_TILE, 1))) else 1
