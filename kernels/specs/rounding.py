"""What backends round on purpose, as their oracles do it: activations before integer products, and what a cache keeps.

Everything is rounded in float32, so a backend that follows these lines rounds to the very same numbers.
"""

from __future__ import annotations

import numpy as np

from kernels.formats import CacheDtype, RawTensor, WeightFormat
from kernels.ops import Arithmetic
from kernels.reference.dequant import codes_and_scales, dequantise
from kernels.spec import Array

BLOCK = 32
WIDE = 2.0
"""A block is wide if its max|x| squared is more than this many times the mean over its row's blocks."""
TINY = 1e-36
"""A token whose max|x| is not above this counts as zeros before a W8A8 weight: 127 / max|x| might be infinite."""
TINY_HEAD = 1e-25
"""A head's keys or values whose max|x| is not above this count as zeros in a cache of integers, for the same reason."""
_FIRST_QUANT_BYTE = {WeightFormat.Q4_1: 4, WeightFormat.Q4_K: 16}
"""Where the codes begin in a block of the formats with an offset: w = d * (code - 8) + offset."""
_WITHOUT_OFFSET = {WeightFormat.Q4_0, WeightFormat.Q8_0, WeightFormat.Q6_K}
_F16_MAX = float(np.finfo(np.float16).max)
_LEVELS: dict[CacheDtype, tuple[int, int]] = {"i16": (8191, 2047), "i8": (127, 127)}
"""The largest integer of a key and of a value."""


def rounded_rows(x: Array, levels: int) -> Array:
    """Each row as integers up to ``levels`` times one scale: f32[...,n] -> f64[...,n].

    The scale is max|x| / levels, the integers are rint(x * (levels / max|x|)); a row of zeros stays zero.
    """
    x = x.astype(np.float32)
    most = np.abs(x).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(levels), most, out=np.zeros_like(most), where=most > 0)
    return np.asarray(np.rint(x * inverse).astype(np.float64) * (most / np.float32(levels)))


def rounded_tokens(x: Array) -> Array:
    """Each token as int8 with one scale, as a W8A8 weight meets it: f32[T,K] -> f64[T,K].

    A token with a NaN or an infinity is all NaN.
    """
    most = np.abs(x).max(axis=-1, keepdims=True, initial=0)
    sound = np.isfinite(most)
    return np.where(sound, rounded_rows(np.where(sound & (most > TINY), x, 0), 127), np.nan)


def rounded_activations(x: Array) -> Array:
    """Each block of 32 columns as int8 with a scale of its own: f32[T,K] -> f64[T,K].

    Wide blocks keep 7 bits more: what the rounding left over, in integers of 1/128 of the scale.
    """
    num_blocks = -(-x.shape[-1] // BLOCK)
    padded = np.zeros((len(x), num_blocks * BLOCK), dtype=np.float32)
    padded[:, : x.shape[-1]] = x
    blocks = padded.reshape(len(x), num_blocks, BLOCK)
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    in_steps = (blocks * inverse).astype(np.float64)
    left_over = np.rint(128 * (in_steps - np.rint(in_steps))) / 128
    squares = np.square(most, dtype=np.float64)
    wide = squares * num_blocks > WIDE * squares.sum(axis=1, keepdims=True)
    rounded = (np.rint(in_steps) + np.where(wide, left_over, 0)) * (most * np.float32(1 / 127))
    return np.asarray(rounded.reshape(padded.shape)[:, : x.shape[-1]])


def product(x: Array, weight: RawTensor, arithmetic: Arithmetic) -> Array:
    """X @ weight.T as the arithmetic has it: f32[T,K], [N,K] -> f64[T,N].

    A W8A8 weight meets tokens as int8 whatever the arithmetic: that is what the format says.

    With int8 activations, a weight of integers meets the rounded x; the offset of a format that has one (the value of
    its code 8, which the other codes are counted from) meets x itself. Float weights always do.
    """
    if weight.format is WeightFormat.W8A8:
        codes, scales = codes_and_scales(weight)
        return np.asarray(rounded_tokens(x) @ codes.astype(np.float64).T * scales)
    exact, full = x.astype(np.float64), dequantise(weight).astype(np.float64)
    if arithmetic.activations == "f32" or weight.format not in {*_FIRST_QUANT_BYTE, *_WITHOUT_OFFSET}:
        return np.asarray(exact @ full.T)
    offset = _offset(weight)
    return np.asarray(rounded_activations(x) @ (full - offset).T + exact @ offset.T)


def _offset(weight: RawTensor) -> Array:
    """What each weight would be with the code 8 (0 without an offset): f64 of the weight's shape."""
    if weight.format in _WITHOUT_OFFSET:
        return np.zeros(weight.shape)
    blocks = weight.data.reshape(*weight.shape[:-1], -1, weight.format.block_bytes).copy()
    blocks[..., _FIRST_QUANT_BYTE[weight.format] :] = 0x88
    return dequantise(RawTensor(weight.shape, weight.format, blocks.reshape(weight.data.shape))).astype(np.float64)


def kept(k: Array, v: Array, cache: CacheDtype) -> tuple[Array, Array]:
    """Finite keys and values f32[T,kv_heads,d] as a cache of that dtype gives them back, in f64: finite too.

    What is beyond float16 becomes its largest number.
    """
    if cache in _LEVELS:
        of_keys, of_values = _LEVELS[cache]
        return rounded_rows(_not_tiny(k), of_keys), rounded_rows(_not_tiny(v), of_values)
    if cache == "f16":
        k, v = (np.clip(x, -_F16_MAX, _F16_MAX).astype(np.float16) for x in (k, v))
    return k.astype(np.float64), v.astype(np.float64)


def _not_tiny(x: Array) -> Array:
    return np.where(np.abs(x).max(axis=-1, keepdims=True) > TINY_HEAD, x, np.float32(0))
