"""Norms, rotary embedding, activation: operations that treat each row on its own, in float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.formats import RawTensor
from kernels.reference.dequant import dequantise

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

ROPE_SLAB = 4096
"""Positions whose angles are computed at once, so that a long context costs little transient memory."""


def prepare_vector(raw: RawTensor) -> F32:
    """A one-dimensional weight [H] of any format, unpacked: f32[H].

    Raises:
        ValueError: the data are not those of the shape.
    """
    return dequantise(raw)


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """X / sqrt(mean(x^2) + eps) * weight over the last axis.

    Shapes: x f32[...,H], weight f32[H] -> f32[...,H]. Batch-invariant: rows do not meet.
    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4.
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight, dtype=np.float32)


def add_rms_norm(x: F32, residual: F32, weight: F32, eps: float) -> tuple[F32, F32]:
    """rms_norm(x + residual) and x + residual, each f32[T,H] like x and residual; weight f32[H].

    Batch-invariant: rows do not meet.
    """
    total = x + residual
    return rms_norm(total, weight, eps), total


def prepare_rope(inv_freq: F64, scale: float, num_positions: int) -> F32:
    """Cosines and sines of position * inv_freq (radians), times scale: f64[d/2] -> f32[2, num_positions, d/2].

    The angle is computed in float64, so that a late position is as exact as an early one.
    """
    table = np.empty((2, num_positions, len(inv_freq)), dtype=np.float32)
    for start in range(0, num_positions, ROPE_SLAB):
        positions = np.arange(start, min(start + ROPE_SLAB, num_positions), dtype=np.float64)
        angles = positions[:, None] * inv_freq
        table[0, start : start + ROPE_SLAB] = np.cos(angles) * scale
        table[1, start : start + ROPE_SLAB] = np.sin(angles) * scale
    return table


def rope(x: F32, positions: I32, table: F32) -> F32:
    """Rotate each pair (x[i], x[i + d/2]) by the angle of its position.

    Shapes: x f32[T,heads,d], positions i32[T], table as ``prepare_rope`` gives it -> f32[T,heads,d].
    Batch-invariant: rows do not meet.
    Source: Su et al., "RoFormer" (2021), section 3.2.2, with halves instead of neighbours.

    Raises:
        IndexError: a position lies beyond the table.
    """
    cos, sin = table[0, positions][:, None, :], table[1, positions][:, None, :]
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def silu_mul(gate_up: F32) -> F32:
    """silu(gate) * up, the two halves of a row: f32[T,2F] -> f32[T,F]. Batch-invariant: rows do not meet.

    Source: Shazeer, "GLU Variants Improve Transformer" (2020), SwiGLU.
    """
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half], gate_up[..., half:]
    with np.errstate(over="ignore"):  # exp(-gate) overflows to infinity where the result is 0, as it should be
        return (gate / (np.float32(1) + np.exp(-gate)) * up).astype(np.float32, copy=False)
