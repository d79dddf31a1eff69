"""Products with a weight matrix, in float32, batch-invariant on any BLAS.

A BLAS may sum in another order when it is given another number of rows. So it never is: rows go through in tiles of
``ROW_TILE``, the last one padded with zeros. That a row's result does not depend on its place in the tile either is
not promised by any BLAS; it holds for those we know, and is checked for each weight when it is prepared. Where it
fails, that weight is used one row at a time, which is slower and cannot fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.formats import RawTensor
from kernels.reference.dequant import dequantise

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

ROW_TILE = 16
"""Measured with OpenBLAS 0.3.31 on the default model, one thread: a step takes 93, 96 and 120 ms with tiles of 8, 16
and 32 rows, which is 23, 45 and 72 GFLOP/s. See docs/decisions/0003-row-tiles.md."""


@dataclass(frozen=True)
class ReferenceLinear:
    """Weight f32[N,K], bias f32[N] or None, and how many rows go through at once."""

    weight: F32
    bias: F32 | None
    row_tile: int


def prepare_linear(weights: Sequence[RawTensor], biases: Sequence[RawTensor] | None) -> ReferenceLinear:
    """Unpack weights that share their input and stack their rows."""
    weight = np.empty((sum(part.shape[0] for part in weights), weights[0].shape[1]), dtype=np.float32)
    row = 0
    for part in weights:
        dequantise(part, weight[row : row + part.shape[0]])
        row += part.shape[0]
    bias = np.concatenate([dequantise(part) for part in biases]) if biases else None
    return ReferenceLinear(weight, bias, row_tile_for(weight))


def linear(x: F32, w: ReferenceLinear) -> F32:
    """X @ weight.T + bias.

    Shapes: x f32[T,K] -> f32[T,N]. Batch-invariant: see the module.
    """
    out = tiled_matmul(x, w.weight, w.row_tile)
    if w.bias is not None:
        out += w.bias
    return out


def embed(ids: I32, w: ReferenceLinear) -> F32:
    """Rows of the embedding: ids i32[T] -> f32[T,H]."""
    return w.weight[ids]


def logits(x: F32, rows: I32, w: ReferenceLinear) -> F32:
    """Scores over the vocabulary for some rows: x f32[T,H], rows i32[B'] -> f32[B',V]."""
    return linear(x[rows], w)


def tiled_matmul(x: F32, weight: F32, row_tile: int) -> F32:
    """X @ weight.T, ``row_tile`` rows at a time: f32[T,K], f32[N,K] -> f32[T,N]."""
    num_rows, inner = x.shape
    num_tiles = -(-num_rows // row_tile)
    padded = np.zeros((num_tiles * row_tile, inner), dtype=np.float32)
    padded[:num_rows] = x
    columns = padded.reshape(num_tiles, row_tile, inner).transpose(0, 2, 1)
    product = np.matmul(weight, columns)  # [tiles, N, row_tile]: one BLAS call of a fixed shape a tile
    return np.ascontiguousarray(product.transpose(0, 2, 1)).reshape(-1, len(weight))[:num_rows]


def row_tile_for(weight: F32) -> int:
    """ROW_TILE if this BLAS gives a row the same result wherever it stands in a tile, for that weight; else 1."""
    row: F32 = np.random.default_rng(0).standard_normal((1, weight.shape[1]), dtype=np.float32)
    alone = np.zeros((ROW_TILE, weight.shape[1]), dtype=np.float32)
    alone[:1] = row
    expected = tiled_matmul(alone, weight, ROW_TILE)[0]
    everywhere = tiled_matmul(np.tile(row, (ROW_TILE, 1)), weight, ROW_TILE)
    return ROW_TILE if np.array_equal(everywhere, np.tile(expected, (ROW_TILE, 1))) else 1
