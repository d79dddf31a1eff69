"""Products with W8A8 weights: tokens as int8 with one scale each, and an exact product of integers.

float32 holds every integer up to 2**24. A product over ``EXACT_COLUMNS`` columns stays below that in whatever order a
BLAS adds, so it is exact, and with it a token's result is its own whoever travels with it. What is left is one
rounding of the sum, of its scale and of their product, in this order: float32(sum) * (token's scale * row's scale).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.quantise import quantise_rows

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

EXACT_COLUMNS = 1024
"""At most: 1024 * 127 * 128 < 2**24."""


@dataclass(frozen=True)
class Int8Weight:
    """Codes [N,K], whole numbers as f32 for the BLAS, and a scale f32[N] each row."""

    codes: F32
    scales: F32

    def product(self, x: F32) -> F32:
        """X @ weight.T: f32[T,K] -> f32[T,N]. Batch-invariant: see the module."""
        codes, scales = quantise_rows(x)
        sums = integer_product(codes, self.codes).astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(sums * (scales[:, None] * self.scales))

    def rows(self, ids: I32) -> F32:
        """Some of the weight's rows, unpacked: ids i32[n] -> f32[n,K]."""
        return self.codes[ids] * self.scales[ids, None]


def integer_product(tokens: F32, weight: F32) -> F64:
    """The exact product of whole numbers of 8 bits, so batch-invariant: f32[T,K], f32[N,K] -> f64[T,N]."""
    out = np.zeros((len(tokens), len(weight)))
    for start in range(0, tokens.shape[1], EXACT_COLUMNS):
        part = slice(start, start + EXACT_COLUMNS)
        out += tokens[:, part] @ weight[:, part].T
    return out
