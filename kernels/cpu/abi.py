"""The C ABI of ``csrc/upwell.h``, for ctypes: structures, operation numbers, and the library with typed functions.

Every pointer is given as an address; whoever builds a structure keeps the memory behind it alive.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kernels.cpu.threads import MAX_THREADS
from kernels.formats import CacheDtype, WeightFormat

ABI_VERSION = 8
BLOCK_BYTES = 128
"""Of a block of 32 quantised activations."""
PANEL_ROWS = 32
"""Of weights, which lie in panels of so many."""
TOKEN_HEADER_BYTES = 32
"""Of a token that is quantised with one scale, before its codes."""
MAX_HEAD_DIM = 256
MAX_GROUP = 48
"""Query heads that share a key head, at most."""
MAX_EXPERTS = 1024
MAX_COLUMNS = 98_304
"""Of a weight: a thread has room for the wide blocks of so many (``kMaxParts`` of ``layout.hpp``), and what W8A8 sums,
127 * 128 times as many, fits 32 bits."""
MAX_PROGRAM = 1 << 14
"""Instructions of a program, at most."""

FORMATS = {
    WeightFormat.F32: 0,
    WeightFormat.F16: 1,
    WeightFormat.BF16: 2,
    WeightFormat.Q8_0: 3,
    WeightFormat.Q4_0: 4,
    WeightFormat.Q4_1: 5,
    WeightFormat.Q4_K: 6,
    WeightFormat.Q6_K: 7,
    WeightFormat.W8A8: 8,
}
CACHE_KINDS: dict[CacheDtype, int] = {"f32": 0, "f16": 1, "i16": 2, "i8": 3}
ROWS_SAMPLED, NO_BARRIER = 1, 2
REFUSALS = (
    "",
    "no instruction set was chosen",
    "program: null, too long, or an instruction that is none or lacks an address",
    "batch: null",
    "counts of tokens, sequences, blocks, rows and columns must not be negative, nor more than there are",
    "token_ids must be rows of the embedding",
    "positions must lie in the table of rotations, and be those of each sequence's last tokens in kv_lens",
    "slots must lie in the cache",
    "q_starts must rise from 0 to the number of tokens",
    "kv_lens must hold each sequence's queries, and fit its block_table and the table of rotations",
    "block_table must name blocks of the cache, for every token of a sequence",
    "logit_rows must be rows of this step",
    "temperature must be above 0",
    "top_k must not be negative",
    "top_p must be above 0",
    "min_p must lie between 0 and 1",
    "uniform must lie in [0, 1)",
    "pool: null",
    "format: there is none of that number",
    "address: null",
    "row_bytes must be those of a whole number of the format's blocks",
    "pool: in use by another call",
    "pool: made by another process; this one must make its own",
)
"""``upwell_status``, in words."""

_ELF_HEADER = struct.Struct("<40xQ10xHH2x")
"""Of 64 bits and little-endian: where its table of sections begins, the bytes of an entry, and their number."""


class Op(enum.IntEnum):
    """``upwell_op``."""

    EMBED = 0
    NORM = 1
    QUANTISE = 2
    LINEAR = 3
    SILU_LINEAR = 4
    ROPE = 5
    WRITE_KV = 6
    ATTENTION = 7
    SILU_MUL = 8
    GATHER = 9
    ARGMAX = 10
    ROUTE = 11
    EXPERT_ORDER = 12
    EXPERT_GATHER = 13
    EXPERT_UP = 14
    EXPERT_DOWN = 15
    EXPERT_SUM = 16
    MARK = 17
    EXPERT_MARK = 18
    DRAW = 19


class Matrix(ctypes.Structure):
    """``upwell_matrix``."""

    _fields_ = (
        ("format", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Rows(ctypes.Structure):
    """``upwell_rows``."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("ld", ctypes.c_int64),
        ("q", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
    )


class Cache(ctypes.Structure):
    """``upwell_cache``."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("head_bytes", ctypes.c_int64),
        ("num_blocks", ctypes.c_int64),
    )


class Experts(ctypes.Structure):
    """``upwell_experts``."""

    _fields_ = (
        ("num_experts", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("normalise", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("up", ctypes.c_void_p),
        ("down", ctypes.c_void_p),
        ("expert_of", ctypes.c_void_p),
        ("row_of", ctypes.c_void_p),
        ("gate_of", ctypes.c_void_p),
        ("token_of", ctypes.c_void_p),
        ("first_row", ctypes.c_void_p),
        ("gathered", Rows),
        ("between", Rows),
        ("result", ctypes.c_void_p),
    )


class Batch(ctypes.Structure):
    """``upwell_batch``."""

    _fields_ = (
        ("num_tokens", ctypes.c_int64),
        ("num_seqs", ctypes.c_int64),
        ("max_blocks", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("token_ids", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("q_starts", ctypes.c_void_p),
        ("kv_lens", ctypes.c_void_p),
        ("block_table", ctypes.c_void_p),
        ("logit_rows", ctypes.c_void_p),
    )


INSTRUCTION = np.dtype([("op", np.int32), ("flags", np.int32), ("a", np.int64, 15)])
"""``upwell_instr``."""


class Constant(ctypes.Structure):
    """``upwell_constant``."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_int64))


def constants() -> dict[str, int]:
    """What the library must have too (``upwell_constants``)."""
    structures = (Matrix, Rows, Cache, Experts, Batch)
    return {
        "BLOCK_BYTES": BLOCK_BYTES,
        "PANEL_ROWS": PANEL_ROWS,
        "TOKEN_HEADER_BYTES": TOKEN_HEADER_BYTES,
        "MAX_HEAD_DIM": MAX_HEAD_DIM,
        "MAX_GROUP": MAX_GROUP,
        "MAX_EXPERTS": MAX_EXPERTS,
        "MAX_COLUMNS": MAX_COLUMNS,
        "MAX_PROGRAM": MAX_PROGRAM,
        "MAX_THREADS": MAX_THREADS,
        **{f"bytes of {each.__name__}": ctypes.sizeof(each) for each in structures},
        "bytes of INSTRUCTION": INSTRUCTION.itemsize,
    }


@cache
def _digest(path: Path, *_state: int) -> str:
    """Of a file in this state: inode, time, size. Tests load it thousands of times; with sanitizers it has 37 MB."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Library:
    """The shared library, its functions typed: ``upwell.h`` says what they take; sizes are bytes.

    They raise a ValueError that names the argument they refuse, but ``use`` gives 0 and ``pool_new`` None instead.

    Attributes:
        digest: of the file.

    Raises:
        OSError: it cannot be loaded, or is not whole, or lacks a function, or is not of this version, or has other
            sizes or limits than this module.
    """

    def __init__(self, path: Path) -> None:
        _check_whole(path)
        stat = path.stat()
        self.digest = _digest(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        self._dll = ctypes.CDLL(str(path))
        i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
        version = self._function("upwell_abi", i32)()
        if version != ABI_VERSION:
            raise OSError(f"{path} is of version {version}, not {ABI_VERSION}")
        self._compare_constants(path)
        self.isas: Callable[[], bytes] = self._function("upwell_isas", ctypes.c_char_p)
        self.use: Callable[[bytes], int] = self._function("upwell_use", i32, ctypes.c_char_p)
        self.pool_new: Callable[[int], int | None] = self._function("upwell_pool_new", pointer, i32)
        self.pool_free: Callable[[int], None] = self._function("upwell_pool_free", None, pointer)
        self.pool_cpu: Callable[[int], int] = self._size("upwell_pool_cpu", pointer)
        self.pool_rested: Callable[[int], int] = self._size("upwell_pool_rested", pointer)
        self.run: Callable[[int, int, int, Any], int] = self._checked(
            "upwell_run", pointer, pointer, i64, ctypes.POINTER(Batch)
        )
        self.profile: Callable[[int, int, int, Any, int], int] = self._checked(
            "upwell_profile", pointer, pointer, i64, ctypes.POINTER(Batch), pointer
        )
        self.packed_bytes: Callable[[int, int, int], int] = self._size("upwell_packed_bytes", i32, i64, i64)
        self.pack: Callable[[int, int, int, int, int, int, int], int] = self._checked(
            "upwell_pack", i32, i64, i64, pointer, i64, pointer, i64
        )
        self.cache_head_bytes: Callable[[int, int, int], int] = self._size("upwell_cache_head_bytes", i32, i64, i64)
        self.partial_bytes: Callable[[int, int, int, int, int, int, int], int] = self._size(
            "upwell_partial_bytes", i32, i64, i64, i64, i64, i64, i64
        )
        self.cache_read: Callable[[Any, int, int, int], int] = self._checked(
            "upwell_cache_read", ctypes.POINTER(Cache), i64, i32, pointer
        )

    def _checked(self, name: str, *arguments: Any) -> Any:
        """A function whose status other than 0 is raised."""
        function = self._function(name, ctypes.c_int32, *arguments)
        function.errcheck = _refuse
        return function

    def _size(self, name: str, *arguments: Any) -> Any:
        """A function that gives a size, or a negative number for arguments that have none."""
        function = self._function(name, ctypes.c_int64, *arguments)
        function.errcheck = _refuse_negative
        return function

    def _compare_constants(self, path: Path) -> None:
        there: dict[str, int] = {}
        for constant in self._function("upwell_constants", ctypes.POINTER(Constant))():
            if constant.name is None:
                break
            there[constant.name.decode()] = constant.value
        here = constants()
        differ = [
            f"{name} is {there.get(name)} in it, {here.get(name)} in Python"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
        if differ:
            raise OSError(f"{path} is of another version: {'; '.join(differ)}")

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        try:
            function = getattr(self._dll, name)
        except AttributeError as error:
            raise OSError(str(error)) from error
        function.restype, function.argtypes = result, arguments
        return function


def _check_whole(path: Path) -> None:
    """The dynamic linker maps a file that was cut short, and the process dies where it touches what is not there.

    The table of sections is the last thing in a library that a linker wrote. What is no such file, the linker tells.
    """
    with path.open("rb") as file:
        header = file.read(_ELF_HEADER.size)
    if len(header) < _ELF_HEADER.size or not header.startswith(b"\x7fELF\x02\x01"):
        return
    offset, entry_bytes, num_entries = _ELF_HEADER.unpack(header)
    whole, there = offset + entry_bytes * num_entries, path.stat().st_size
    if there < whole:
        raise OSError(f"{path} is cut short: it has {there} bytes of {whole}")


def _refuse(status: int, _function: Any, _arguments: Any) -> int:
    if status:
        raise ValueError(REFUSALS[status])
    return status


def _refuse_negative(size: int, function: Any, arguments: tuple[Any, ...]) -> int:
    if size < 0:
        raise ValueError(f"{function.__name__} has no answer for {arguments}")
    return size
