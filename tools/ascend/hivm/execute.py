"""Run a final HIVM module of a 910B on the host, with every access checked.

What is checked and assumed stands in ``csrc`` where it is done; in short: addresses and alignment, reads of what nobody
has written, flags, cross-core flags, and two accesses of which one writes and that nothing orders (a race), within a
core, between the cores of a group and between groups. Cores run as coroutines of one thread, so that a run is
deterministic; groups run one after another.
"""

from __future__ import annotations

import ctypes
import json
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.ascend.hivm.build import module_library
from tools.ascend.hivm.module import Argument, Module
from tools.ascend.hivm.translate import translate

Value = npt.NDArray[Any] | float | int
_RUNS_ONE_AT_A_TIME = threading.Lock()
_PACKED = {"f32": "<f4", "f16": "<f2", "i1": "<i1", "i8": "<i1", "i16": "<i2", "i32": "<i4", "i64": "<i8"}
_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "i16": 2, "i32": 4, "i64": 8}


@dataclass(frozen=True)
class Traffic:
    """Bytes of global memory."""

    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Vector:
    """Library calls of the vector unit on one element type, and the elements they worked on."""

    operations: int
    elements: int


@dataclass(frozen=True)
class Counters:
    """What a run did.

    Attributes:
        traffic: by place of an argument, as it is given to ``Program.run``; ``workspace`` has its own.
        macs: multiplications that the matrix unit was asked for: m k n of each call.
        vector: by element type, as the library spells it.
        unaligned_operands: of vector calls, executed; the library works on such by its scalar unit.
        saturated: numbers that a conversion cut to the largest value.
    """

    traffic: Mapping[int, Traffic]
    workspace: Traffic
    macs: int
    vector: Mapping[str, Vector]
    unaligned_operands: int
    vector_operands: int
    saturated: int
    instructions: int


@dataclass(frozen=True)
class Report:
    """What a run found: errors with core, line of the module, operation and address; bytes used of UB, L1, L0C."""

    errors: tuple[str, ...]
    counters: Counters
    peaks: Mapping[str, int]


class _NativeArgument(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("bits", ctypes.c_uint64),
        ("read_only", ctypes.c_int32), ("initialised", ctypes.c_int32),
    )  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = (
        ("cube", ctypes.c_void_p), ("vector", ctypes.c_void_p), ("arguments", ctypes.POINTER(_NativeArgument)),
        ("num_arguments", ctypes.c_int64), ("num_blocks", ctypes.c_int64), ("most_calls", ctypes.c_int64),
        ("vectors_first", ctypes.c_int32),
    )  # fmt: skip


class Program:
    """A module that can run here."""

    def __init__(self, module: Module, library: Path) -> None:
        self.module = module
        self.library = library
        self._native = ctypes.CDLL(str(library))
        self._native.hivm_run.restype = ctypes.c_char_p

    def run(
        self,
        args: Sequence[Value],
        num_cores: int,
        *,
        grid: tuple[int, int, int] | None = None,
        vectors_first: bool = False,
        most_instructions: int = 20_000_000,
    ) -> Report:
        """Run the kernel on ``num_cores`` groups of cores, or vector cores if it has no cube core.

        Arrays are buffers, and are written in place: a buffer ends where its array ends. An array that the module
        declares as written only counts as not yet written, and one that it declares as read must not be written.

        Args:
            args: what the kernel is launched with, without workspace and grid.
            num_cores: blocks of the launch.
            grid: the grid that the kernel is told, ``(num_cores, 1, 1)`` if None.
            vectors_first: let the vector cores run before the cube core where both can; a sound kernel does not mind.
            most_instructions: after so many the run is stopped with an error.

        Raises:
            ValueError: the arguments are not those of the kernel.
        """
        wanted = [argument for argument in self.module.arguments if argument.role in {"buffer", "scalar"}]
        if len(wanted) != len(args):
            raise ValueError(f"{self.module.kernel} has {len(wanted)} arguments, but {len(args)} are given")
        provided: dict[str, Value] = {
            "workspace": np.full(max(1, self.module.workspace_bytes * num_cores), 0xFF, dtype=np.uint8),
            "lock": np.zeros(1, dtype=np.uint8),
        }
        given = dict(zip((argument.index for argument in wanted), args, strict=True))
        sizes = iter(grid or (num_cores, 1, 1))
        values: list[Value] = []
        for argument in self.module.arguments:
            launch = next(sizes) if argument.role == "grid" else provided.get(argument.role, 0)
            values.append(given.get(argument.index, launch))
        places = [value.ctypes.data for value in values if isinstance(value, np.ndarray)]
        if len(set(places)) < len(places):
            raise ValueError("two arguments are the same array; give each its own")
        native = (_NativeArgument * len(values))()
        for slot, argument, value in zip(native, self.module.arguments, values, strict=True):
            _fill(slot, argument, value, self.module.workspace_bytes * num_cores)
        cube = self._entry("cube") if self.module.has_cube else None
        launched = _Launch(
            cube, self._entry("vector"), native, len(values), num_cores, most_instructions, vectors_first
        )
        with _RUNS_ONE_AT_A_TIME:
            return _report(json.loads(self._native.hivm_run(ctypes.byref(launched))), self.module, wanted)

    def _entry(self, core: str) -> int | None:
        return ctypes.cast(getattr(self._native, f"hivm_entry_{core}"), ctypes.c_void_p).value


def build(module_text: str, folder: Path) -> Program:
    """Translate and compile a module; what has been compiled in this folder is used again.

    Raises:
        UnknownConstruct: the module has something that the model does not know.
        UnknownCall: it calls a library function that the model does not have.
        ToolFailed: a tool is missing or ends with an error.
    """
    module = translate(module_text)
    return Program(module, module_library(module, folder.resolve()))


def _fill(slot: _NativeArgument, argument: Argument, value: Value, workspace_bytes: int) -> None:
    name = f"argument {argument.index}" if argument.role == "buffer" else argument.role
    if argument.role in {"scalar", "grid", "ffts"}:
        if isinstance(value, np.ndarray) or argument.element not in _PACKED:
            raise ValueError(f"{name} is a scalar {argument.element}")
        packed = np.asarray(value).astype(_PACKED[argument.element]).tobytes()
        slot.bits = struct.unpack("<Q", packed.ljust(8, b"\0"))[0]
        return
    if not isinstance(value, np.ndarray) or not value.flags.c_contiguous:
        raise ValueError(f"{name} is a buffer: a contiguous array is needed")
    if argument.role == "buffer" and value.itemsize != _BYTES[argument.element]:
        raise ValueError(f"{name} has elements of type {argument.element}, but is {value.dtype}")
    slot.name = name.encode()
    slot.data = value.ctypes.data
    slot.bytes = {"workspace": workspace_bytes, "lock": 0}.get(argument.role, value.nbytes)
    slot.read_only = argument.kind == 0
    slot.initialised = argument.role == "buffer" and argument.kind != 1


def _report(found: Mapping[str, Any], module: Module, wanted: Sequence[Argument]) -> Report:
    traffic = {int(index): Traffic(*both) for index, both in found["traffic"].items()}
    workspace = next((argument.index for argument in module.arguments if argument.role == "workspace"), -1)
    counters = Counters(
        traffic={place: traffic[argument.index] for place, argument in enumerate(wanted) if argument.index in traffic},
        workspace=traffic.get(workspace, Traffic(0, 0)),
        macs=found["macs"],
        vector={kind: Vector(*both) for kind, both in found["vector"].items() if both[0]},
        unaligned_operands=found["unaligned_operands"],
        vector_operands=found["vector_operands"],
        saturated=found["saturated"],
        instructions=found["instructions"],
    )
    peaks = {name: found[f"peak_{name.lower()}"] for name in ("UB", "L1", "L0C")}
    return Report(tuple(found["errors"]), counters, peaks)
