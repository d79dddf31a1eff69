"""Gives memory that was freed back to the system; called once in each process, when loading is over.

Loading makes lists of a hundred thousand texts and drops them. glibc keeps such memory for later, which in a process
that only serves from then on does not come.
"""

from __future__ import annotations

import ctypes
import gc


def return_freed_memory() -> None:
    """Collect what is unreachable, and return whole free pages; does only the former where libc is not glibc."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
