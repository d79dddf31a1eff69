"""What a final HIVM module holds, once it is translated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SPACES = {"ub": ("UB", 192 << 10, 32), "cbuf": ("L1", 512 << 10, 32), "cc": ("L0C", 128 << 10, 64)}
"""Address space -> its name, bytes and alignment on a 910B."""


class UnknownConstruct(Exception):
    """The module has something that the model does not know; the message is the line's number and the line."""


@dataclass(frozen=True)
class PointerCast:
    """A view of on-chip memory; the address is in bytes, None where it is not a constant."""

    line: int
    function: str
    space: str
    address: int | None
    num_bytes: int


@dataclass(frozen=True)
class Argument:
    """A parameter of the kernel.

    Attributes:
        role: ``buffer``, ``scalar``, or what the launch provides: ``ffts``, ``lock``, ``workspace``, ``grid``.
        element: of a buffer, or the type of a scalar, as MLIR spells it.
        kind: of a buffer, 0: read, 1: written, 2: both; None where the module does not say.
    """

    index: int
    role: str
    element: str
    kind: int | None

    @property
    def type(self) -> str:
        """As MLIR spells it."""
        return f"memref<?x{self.element}>" if self.role in {"buffer", "lock", "workspace"} else self.element


@dataclass(frozen=True)
class UnalignedOperand:
    """Of a vector call, one whose type says that its offset or its rows are not on multiples of 32 bytes."""

    line: int
    call: str
    type: str


@dataclass(frozen=True)
class Module:
    """A translated module.

    Attributes:
        text: upstream MLIR with the entries ``hivm_entry_cube`` (if there is a cube core) and ``hivm_entry_vector``.
        calls: library call -> how often it stands in the text.
        signatures: call of the library or of the model -> its types.
        vector_operands: operands of library calls that lie in UB.
        workspace_bytes: of each block.
    """

    text: str
    kernel: str
    has_cube: bool
    arguments: tuple[Argument, ...]
    casts: tuple[PointerCast, ...]
    calls: Mapping[str, int]
    signatures: Mapping[str, str]
    vector_operands: int
    unaligned: tuple[UnalignedOperand, ...]
    workspace_bytes: int


def memory_peaks(module: Module) -> dict[str, int]:
    """Bytes of UB, L1 and L0C up to the end of the highest buffer at a constant address."""
    peaks = {name: 0 for name, _, _ in SPACES.values()}
    for cast in module.casts:
        if cast.address is not None:
            name = SPACES[cast.space][0]
            peaks[name] = max(peaks[name], cast.address + cast.num_bytes)
    return peaks
