"""A model's linear layers and embedding in another format, made in memory: what tools.accuracy compares formats by.

The quantisers are the plain ones, to nearest (source: the ggml specification: Q8_0 has one scale of max|x| / 127 for
each 32, Q4_0 one that puts the number of largest magnitude at code 0). No scales are searched for, as those who make
model files do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.config import ModelConfig
from engine.token_table import TokenTable
from engine.weights.checkpoint import Checkpoint
from kernels.formats import RawTensor, WeightFormat
from kernels.reference.dequant import dequantise

BLOCK = 32
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def to_q8_0(x: F32) -> U8:
    """Blocks of a float16 scale and 32 int8: f32[n,K] -> u8[n,bytes]."""
    blocks = x.reshape(len(x), -1, BLOCK)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    codes = np.rint(blocks * _inverse(scale)).astype(np.int8)
    return _rows(scale, codes.view(np.uint8))


def to_q4_0(x: F32) -> U8:
    """Blocks of a float16 scale and 32 codes of 4 bits, counted from 8; a byte has those of i and i + 16."""
    blocks = x.reshape(len(x), -1, BLOCK)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scale = peak / np.float32(-8)
    codes = np.clip(np.rint(blocks * _inverse(scale)) + 8, 0, 15).astype(np.uint8)
    return _rows(scale, codes[..., :16] | codes[..., 16:] << 4)


def to_bf16(x: F32) -> U8:
    """The upper halves of the bits, to nearest, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").view(np.uint8)


def to_f16(x: F32) -> U8:
    """Halves, to nearest, ties to even."""
    return x.astype("<f2").view(np.uint8)


def to_f32(x: F32) -> U8:
    """As they are."""
    return x.astype("<f4").view(np.uint8)


QUANTISERS: dict[WeightFormat, Callable[[F32], U8]] = {
    WeightFormat.Q8_0: to_q8_0,
    WeightFormat.Q4_0: to_q4_0,
    WeightFormat.BF16: to_bf16,
    WeightFormat.F16: to_f16,
    WeightFormat.F32: to_f32,
}


class Requantised:
    """A checkpoint whose matrices are handed out in one format; vectors stay as stored."""

    def __init__(self, stored: Checkpoint, fmt: WeightFormat) -> None:
        self._stored = stored
        self._format = fmt
        self.config: ModelConfig = stored.config
        self.total_bytes = 0  # nobody follows the loading

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name."""
        raw = self._stored.tensor(name)
        if len(raw.shape) != 2:
            return raw
        return RawTensor(raw.shape, self._format, QUANTISERS[self._format](dequantise(raw)))

    def format(self, name: str) -> WeightFormat:
        """The format of the tensor of that name."""
        return self.tensor(name).format

    def vocabulary(self) -> TokenTable:
        """What each token id stands for."""
        return self._stored.vocabulary()


def _inverse(scale: F32) -> F32:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _rows(scale: F32, codes: U8) -> U8:
    """Each block's scale before its codes, block after block."""
    blocks = np.concatenate([scale.astype("<f2").view(np.uint8), codes], axis=2)
    return blocks.reshape(len(blocks), -1)
