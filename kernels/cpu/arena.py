"""The memory that the values of a program share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.cpu.memory import ALIGNMENT, address, aligned


class Arena:
    """Memory that is given back is given out again: the lowest place where a piece fits.

    How much is needed is known once everything has been taken and given back: a first arena, without memory, measures,
    and a second one is made of that size and used in the same order. What a step touches is then as little as can be,
    and the logits lie where the layers worked.

    Attributes:
        num_bytes: of all that was in use at once, with the gaps between.
    """

    def __init__(self, num_bytes: int = 0) -> None:
        self.num_bytes = 0
        self._memory = aligned(num_bytes) if num_bytes else None
        self._gaps = [(0, 1 << 62)]
        self._places: dict[int, int] = {}

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Aligned memory u8[num_bytes], with anything in it."""
        size = _padded(num_bytes)
        index, (start, end) = next((i, gap) for i, gap in enumerate(self._gaps) if gap[1] - gap[0] >= size)
        self._gaps[index] = (start + size, end)
        self.num_bytes = max(self.num_bytes, start + size)
        memory = aligned(num_bytes) if self._memory is None else self._memory[start : start + num_bytes]
        self._places[address(memory)] = start
        return memory

    def give(self, memory: npt.NDArray[np.uint8]) -> None:
        """Take back memory that ``take`` gave.

        Raises:
            KeyError: it is none of that, or was given back.
        """
        start = self._places.pop(address(memory))
        gaps: list[tuple[int, int]] = []
        for first, last in sorted([*self._gaps, (start, start + _padded(len(memory)))]):
            if gaps and gaps[-1][1] == first:
                gaps[-1] = (gaps[-1][0], last)
            else:
                gaps.append((first, last))
        self._gaps = gaps


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
