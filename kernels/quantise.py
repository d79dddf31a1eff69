"""Rows as int8 with one scale each, symmetric: weights made W8A8 at load, and tokens before they meet one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.formats import RawTensor, WeightFormat
from kernels.reference.dequant import SLAB_ELEMENTS, dequantise

F32 = npt.NDArray[np.float32]

LEVELS = np.float32(127)
TINY = np.float32(1e-36)
"""A row whose max|x| is not above this counts as zeros: 127 / max|x| might be infinite."""


def quantise_rows(x: F32) -> tuple[F32, F32]:
    """Each row as integers in [-127,127] and one scale: f32[n,K] -> whole numbers f32[n,K], f32[n].

    The scale is max|x| / 127, the integers are rint(x * (127 / max|x|)), ties to even, all in float32. A row with a NaN
    or an infinity gets the scale NaN, so that whatever it enters is NaN too. Batch-invariant: rows do not meet.
    """
    most = np.maximum(x.max(axis=1, initial=0), -x.min(axis=1, initial=0))
    sound = np.isfinite(most)
    inverse = np.divide(LEVELS, most, out=np.zeros_like(most), where=sound & (most > TINY))
    codes = np.where(sound[:, None], x, np.float32(0))
    codes *= inverse[:, None]
    np.rint(codes, out=codes)
    return codes, np.where(sound, most / LEVELS, np.float32(np.nan))


def w8a8_tensor(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> RawTensor:
    """Codes i8[...,K] and a scale f32[...] a row as a W8A8 weight."""
    head = np.ascontiguousarray(scales, dtype="<f4")[..., None].view(np.uint8)
    return RawTensor(codes.shape, WeightFormat.W8A8, np.concatenate([head, codes.view(np.uint8)], axis=-1))


def to_w8a8(raw: RawTensor) -> RawTensor:
    """A weight in any format as W8A8, a scale for each of its rows (output channels); W8A8 is returned as it is.

    Shapes: [...,K] -> the same. Made in slabs of rows, so that the transient memory is small.

    Raises:
        ValueError: the data are not those of the shape.
    """
    if raw.format is WeightFormat.W8A8:
        return raw
    columns, head = raw.shape[-1], WeightFormat.W8A8.head_bytes
    stored = raw.data.reshape(-1, raw.data.shape[-1])
    out = np.empty((len(stored), WeightFormat.W8A8.row_bytes(columns)), dtype=np.uint8)
    step = max(1, SLAB_ELEMENTS // max(columns, 1))
    for start in range(0, len(stored), step):
        slab = stored[start : start + step]
        codes, scales = quantise_rows(dequantise(RawTensor((len(slab), columns), raw.format, slab)))
        out[start : start + step, :head] = scales.astype("<f4")[:, None].view(np.uint8)
        out[start : start + step, head:] = codes.astype(np.int8).view(np.uint8)
    return RawTensor(raw.shape, WeightFormat.W8A8, out.reshape(*raw.shape[:-1], -1))
