"""Formats: how a weight's elements lie in memory, the weight as a file holds it, and what a KV cache keeps of a number.

Block formats are those of GGUF (source: the ggml specification, ``ggml-common.h`` block layouts): a row is a whole
number of blocks, and a tensor is a whole number of rows, so rows can be picked and reordered without unpacking them.
W8A8 has one scale a row, which lies before the row's int8 codes: f32, then i8[columns].
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # the API process reads formats and vocabularies, and does without NumPy's megabytes
    import numpy as np
    import numpy.typing as npt

CacheDtype = Literal["f32", "f16", "i16", "i8"]
"""What a KV cache keeps of a number."""
CACHE_DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)
DTYPES = ("auto", "bfloat16", "float16")
"""What may be asked for as the type of activations, and of weights that are not quantised."""
ATTENTION_SCORES = ("float32", "float16")
"""As what scores of attention may travel between a device's cores."""
PROMPT_ATTENTIONS = ("own", "fused")
"""By which kernel a device attends where prompts are read: Upwell's, or the one of the device's library."""


class WeightFormat(enum.Enum):
    """A storage format: name, elements a block, bytes a block, bytes of a row before its first block.

    A weight in ``W8A8`` is also multiplied in its own way: with activations as int8, one scale a token, the product of
    the integers exact (``kernels/specs/rounding.py``).
    """

    F32 = ("f32", 1, 4)
    F16 = ("f16", 1, 2)
    BF16 = ("bf16", 1, 2)
    Q8_0 = ("q8_0", 32, 34)
    Q4_0 = ("q4_0", 32, 18)
    Q4_1 = ("q4_1", 32, 20)
    Q4_K = ("q4_k", 256, 144)
    Q6_K = ("q6_k", 256, 210)
    W8A8 = ("w8a8", 1, 1, 4)

    def __init__(self, label: str, block_elements: int, block_bytes: int, head_bytes: int = 0) -> None:
        self.label = label
        self.block_elements = block_elements
        self.block_bytes = block_bytes
        self.head_bytes = head_bytes

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of ``columns`` elements.

        Raises:
            ValueError: the row is not a whole number of blocks.
        """
        if columns % self.block_elements:
            raise ValueError(f"a row of {columns} elements is not a whole number of {self.label} blocks")
        return self.head_bytes + columns // self.block_elements * self.block_bytes


@dataclass(frozen=True)
class RawTensor:
    """A weight as its file holds it, usually a view of mapped memory.

    Attributes:
        shape: logical shape, outermost dimension first; the last one runs along a row.
        data: u8[*shape[:-1], row_bytes], so that indexing leading dimensions picks whole rows.
    """

    shape: tuple[int, ...]
    format: WeightFormat
    data: npt.NDArray[np.uint8]

    def rows(self, index: npt.NDArray[np.intp]) -> RawTensor:
        """The tensor with its outermost dimension reordered or picked by ``index`` intp[n], still packed; a copy.

        Raises:
            IndexError: there is no such row.
        """
        return RawTensor((len(index), *self.shape[1:]), self.format, self.data[index])

    def at(self, index: int) -> RawTensor:
        """One entry of the outermost dimension, still packed; a view.

        Raises:
            IndexError: there is no such entry.
        """
        return RawTensor(self.shape[1:], self.format, self.data[index])

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return int(self.data.nbytes)


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a shape is the wanted one, of any size where that says None."""
    return len(shape) == len(wanted) and all(want in {None, got} for want, got in zip(wanted, shape, strict=True))
