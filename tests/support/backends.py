"""The backends that work on this machine, each with every KV cache it has: what tests of all backends run over.

The native library computes by the best instruction set of the machine, and has others for lesser ones. Tests of what an
operation gives run over all of them: ``with_isas`` names them, ``new_table`` and ``use_isa_of`` take them up, and
``use_best_isa`` ends it, since the choice is the whole process'.
"""

from __future__ import annotations

from kernels.cpu.library import find_library, load_library
from kernels.formats import CACHE_DTYPES
from kernels.ops import BackendOptions, BackendUnavailable
from kernels.resolve import BACKENDS


def use_isa_of(name):
    """Compute by the instruction set that a name of ``with_isas`` ends in, if any."""
    isa = name.split("-")[-1]
    if "-" in name and isa not in CACHE_DTYPES:
        assert load_library().use(isa.encode()), name


def new_table(name):
    """The table of a backend-cache or backend-cache-isa, with threads of its own.

    Native threads that waited for each other on a busy machine rest, and then one does all the work; the first three
    calls of a new table are by all of them.
    """
    backend, dtype, *_ = name.split("-")
    ops = BACKENDS[backend](BackendOptions(threads=2, kv_cache_dtype=dtype))
    use_isa_of(name)
    return ops


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
ISAS = load_library().isas().decode().split() if "cpu" in DEVICES else []
"""Instruction sets that the native library has on this machine, best first."""


def with_isas(name):
    """A device or a backend-cache under each instruction set it has: the name with theirs behind it."""
    return [f"{name}-{isa}" for isa in ISAS] if name.split("-")[0] == "cpu" else [name]


def use_best_isa():
    if ISAS:
        load_library().use(ISAS[0].encode())


def can_run(ops, inputs):
    """Whether the backend has blocks of the size that a case asks for, if it does."""
    return inputs.get("block_size", 0) % ops.memory.block_multiple == 0


def block_sizes(ops):
    return [size for size in (4, 16, 32, 128) if size % ops.memory.block_multiple == 0]


def multiple_of(device):
    """What the block sizes of a backend are multiples of."""
    return next(ops for ops in TABLES.values() if ops.info.name == device).memory.block_multiple
