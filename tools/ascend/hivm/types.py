"""Memory types of MLIR, as far as a final HIVM module uses them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

BITS = {"f32": 32, "f16": 16, "bf16": 16, "i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64}
_TYPE = re.compile(
    r"memref<((?:(?:\?|\d+)x)*)(\w+)"
    r"(?:, strided<\[([^\]]*)\](?:, offset: (\?|-?\d+))?>)?(?:, #hivm\.address_space<(\w+)>)?>"
)


class OperandError(ValueError):
    """A type or operand that is not known; the message says which."""


@dataclass(frozen=True)
class MemoryType:
    """A memref; None stands for a size, stride or offset that is not a constant. Strides and offset count elements."""

    text: str
    sizes: tuple[int | None, ...]
    element: str
    strides: tuple[int | None, ...]
    offset: int | None
    space: str

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.sizes)

    @property
    def num_bytes(self) -> int | None:
        """Of a dense buffer of this type; eight i1 to the byte."""
        if None in self.sizes:
            return None
        return -(-math.prod(size or 0 for size in self.sizes) * BITS[self.element] // 8)

    @property
    def aligned(self) -> bool:
        """Whether offset and rows lie on multiples of 32 bytes, as far as the type tells."""
        if self.num_bytes == 0:
            return True
        rows = [s for size, s in zip(self.sizes[:-1], self.strides[:-1], strict=True) if size != 1]
        known = [number for number in (self.offset, *rows) if number is not None]
        return all(number * BITS[self.element] % 256 == 0 for number in known)

    def one_element(self) -> str:
        """The type of a subview of one element, wherever it lies."""
        strides = ", ".join("?" if s is None else str(s) for s in self.strides)
        return f"memref<{'1x' * self.rank}{self.element}, strided<[{strides}], offset: ?>>"

    def dynamic(self) -> str:
        """The type with nothing known but rank and element."""
        strides = ", ".join("?" * self.rank)
        return f"memref<{'?x' * self.rank}{self.element}, strided<[{strides}], offset: ?>>"


def parse_type(text: str) -> MemoryType:
    """Read a memref type.

    Raises:
        OperandError: it is not one, or has a layout or element that is not known.
    """
    match = _TYPE.fullmatch(text.strip())
    if not match or match[2] not in BITS:
        raise OperandError(f"a type that is not known: {text}")
    sizes = tuple(_number(size) for size in match[1].split("x")[:-1])
    strides = tuple(map(_number, match[3].split(", "))) if match[3] else _dense(sizes)
    offset = _number(match[4]) if match[4] else 0
    return MemoryType(match[0], sizes, match[2], strides, offset, match[5] or "")


def split_types(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "<[({") - (letter in ">])}" and text[at - 1 : at + 1] != "->")
        if letter == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [*parts, text[begin:].strip()] if text.strip() else []


def _number(text: str) -> int | None:
    return None if text == "?" else int(text)


def _dense(sizes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    strides: list[int | None] = []
    step: int | None = 1
    for size in reversed(sizes):
        strides.insert(0, step)
        step = None if step is None or size is None else step * size
    return tuple(strides)
