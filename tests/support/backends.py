"""The backends that work on this machine, each with every KV cache it has: what tests of all backends run over."""

from __future__ import annotations

from kernels.cpu.library import find_library
from kernels.formats import CACHE_DTYPES
from kernels.ops import BackendOptions, BackendUnavailable
from kernels.resolve import BACKENDS


def new_table(name):
    """The table of a backend-cache, with threads of its own.

    Native threads that waited for each other on a busy machine rest, and then one does all the work; the first three
    calls of a new table are by all of them.
    """
    backend, dtype = name.split("-")
    return BACKENDS[backend](BackendOptions(threads=2, kv_cache_dtype=dtype))


def tables():
    """backend-cache -> its table.

    Raises:
        BackendUnavailable: the native library that is there does not work; its tests would be left out as if there were
            none.
    """
    found = {}
    for backend in BACKENDS:
        for dtype in CACHE_DTYPES:
            try:
                found[f"{backend}-{dtype}"] = new_table(f"{backend}-{dtype}")
            except BackendUnavailable:
                if backend == "cpu" and find_library():
                    raise
    return found


TABLES = tables()
DEVICES = sorted({ops.info.name for ops in TABLES.values()}, key=list(BACKENDS).index)
"""Those of BACKENDS that work here."""


def can_run(ops, inputs):
    """Whether the backend has blocks of the size that a case asks for, if it does."""
    return inputs.get("block_size", 0) % ops.memory.block_multiple == 0


def block_sizes(ops):
    return [size for size in (4, 16, 32, 128) if size % ops.memory.block_multiple == 0]


def multiple_of(device):
    """What the block sizes of a backend are multiples of."""
    return next(ops for ops in TABLES.values() if ops.info.name == device).memory.block_multiple
