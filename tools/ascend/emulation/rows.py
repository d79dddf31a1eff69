"""Arithmetic that a row's neighbours cannot change: each row alone, in a buffer of its own.

torch on the CPU is not batch-invariant: a product with more rows takes another kernel, and vectorised exponentials end
in a scalar tail that depends on how many elements travel. So functions and products here see one row at a time, copied
to the start of an aligned buffer; the number of rows does not reach them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

F32 = torch.float32


def by_row(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """``function`` of each row of the tensors, stacked.

    Args:
        function: of one 1-D float32 tensor for each of ``tensors``, giving one of a fixed shape.
        tensors: [T, ...], of any dtype, T > 0.
    """
    return torch.stack([function(*(row.to(F32, copy=True) for row in rows)) for rows in zip(*tensors, strict=True)])


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product of x [T, K] and weight [K, N] of any float dtype: float32 [T, N], a row at a time."""
    wide = weight.to(F32).contiguous()
    result = torch.empty(len(x), wide.shape[1], dtype=F32)
    row = torch.empty(1, wide.shape[0], dtype=F32)
    for index in range(len(x)):
        row.copy_(x[index : index + 1])
        result[index] = torch.mm(row, wide)[0]
    return result


def integer_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The exact product of x int8 [T, K] and weight int8 [K, N]: int64 [T, N].

    A sum of K products of int8 stays below 2^53 for any K that fits in memory, so float64 holds it without rounding in
    whatever order it is summed.
    """
    return torch.mm(x.to(torch.float64), weight.to(torch.float64)).to(torch.int64)
