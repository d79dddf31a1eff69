"""Aligned memory and the paged cache of the CPU backend."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cpu.abi import CACHE_KINDS, MAX_HEAD_DIM, Cache, Library
from kernels.formats import CacheDtype
from kernels.ops import LayerCache, NoKernel

ALIGNMENT = 64
BLOCK_MULTIPLE = 16
"""A key vector holds 16 tokens of one block."""


def aligned(num_bytes: int) -> npt.NDArray[np.uint8]:
    """u8[num_bytes] of zeros from a multiple of ``ALIGNMENT`` on; the system gives pages as they are written."""
    raw = np.zeros(num_bytes + ALIGNMENT, dtype=np.uint8)
    start = -address(raw) % ALIGNMENT
    return raw[start : start + num_bytes]


def small_pages(num_bytes: int) -> npt.NDArray[np.uint8]:
    """u8 of zeros, of which only what is written takes up memory, page by page, even where pages may be huge.

    A cache is many arrays, one a layer and half, that fill from their beginnings: huge pages (NumPy asks for them) are
    taken up to 2 MiB beyond each, 120 MiB for 30 layers, and reading keys and values is no faster for them.

    Raises:
        MemoryError: there is not so much.
    """
    return _mapped(num_bytes, "MADV_NOHUGEPAGE")


def _mapped(num_bytes: int, advice: str) -> npt.NDArray[np.uint8]:
    """Zeroed memory of its own, with advice that a system may not know.

    Raises:
        MemoryError: there is not so much.
    """
    try:
        memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{num_bytes} bytes cannot be had: {error}") from error
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # a kernel that was built without huge pages
            memory.madvise(getattr(mmap, advice))
    return np.frombuffer(memory, dtype=np.uint8)


class HugePages:
    """Zeroed memory in huge pages, where the system has them: for what is read from end to end, again and again.

    Weights that lie one after the other in pages of 2 MiB are read 13 to 15 % faster than those with memory of their
    own, whose pages are small: a thread's prefetching ends with a page.
    """

    CHUNK_BYTES = 32 << 20

    def __init__(self) -> None:
        self._chunk = np.zeros(0, dtype=np.uint8)

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """u8[num_bytes] that begins at a multiple of ``ALIGNMENT``; it lives for as long as the array does.

        Raises:
            MemoryError: there is not so much.
        """
        size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        if size > len(self._chunk):
            self._chunk = _mapped(max(size, self.CHUNK_BYTES), "MADV_HUGEPAGE")
        taken, self._chunk = self._chunk[:num_bytes], self._chunk[size:]
        return taken


def address(array: npt.NDArray[Any]) -> int:
    """Where an array's memory begins."""
    return int(array.ctypes.data)


class CacheHalf:
    """The keys or the values of a layer, as the native kernels lay them out (csrc/cache.hpp)."""

    def __init__(self, library: Library, struct: CacheStruct, num_blocks: int, *, is_value: bool) -> None:
        self.struct = struct
        self._library = library
        self._num_blocks = num_blocks
        self._is_value = is_value

    def read(self) -> npt.NDArray[np.float32]:
        """A copy, unpacked: f32[num_blocks, block_size, kv_heads, head_dim]."""
        shape = (self._num_blocks, self.struct.block_size, self.struct.kv_heads, self.struct.head_dim)
        out = np.empty(shape, dtype=np.float32)
        self._library.cache_read(ctypes.byref(self.struct), self._num_blocks, int(self._is_value), address(out))
        return out


class CacheStruct(Cache):
    """A ``Cache`` that keeps its memory alive."""

    memory: npt.NDArray[np.uint8]


def alloc_cache(
    library: Library, kind: CacheDtype, num_blocks: int, block_size: int, kv_heads: int, head_dim: int
) -> LayerCache:
    """An empty cache.

    Raises:
        ValueError: the block size is not a multiple of 16 that divides 128, or a count is below 1.
        NoKernel: the heads are too big, or odd.
        MemoryError: there is not so much memory.
    """
    if min(num_blocks, kv_heads, head_dim) < 1:
        raise ValueError(f"num_blocks {num_blocks}, kv_heads {kv_heads} and head_dim {head_dim} must be at least 1")
    if block_size < 1 or block_size % BLOCK_MULTIPLE or 128 % block_size:
        raise ValueError(f"the block size must be 16, 32, 64 or 128, but is {block_size}")
    if head_dim > MAX_HEAD_DIM or head_dim % 2:
        raise NoKernel(f"the head size must be even and at most {MAX_HEAD_DIM}, but is {head_dim}")
    number = CACHE_KINDS[kind]
    head_bytes = library.cache_head_bytes(number, block_size, head_dim)
    half = num_blocks * kv_heads * head_bytes
    memory = small_pages(2 * half)
    start = address(memory)
    struct = CacheStruct(
        kind=number, block_size=block_size, kv_heads=kv_heads, head_dim=head_dim,
        k=start, v=start + half, head_bytes=head_bytes, num_blocks=num_blocks,
    )  # fmt: skip
    struct.memory = memory
    return LayerCache(
        CacheHalf(library, struct, num_blocks, is_value=False), CacheHalf(library, struct, num_blocks, is_value=True)
    )


def copy_block(cache: LayerCache, source: int, target: int) -> None:
    """One block's keys and values also in another: a block lies in one piece in each half.

    Raises:
        ValueError: the cache has no such block.
    """
    struct: CacheStruct = cache.k.struct
    if not (0 <= source < struct.num_blocks and 0 <= target < struct.num_blocks):
        raise ValueError(f"block {source} cannot be copied to {target} in a cache of {struct.num_blocks} blocks")
    blocks = struct.memory.reshape(2, -1, struct.kv_heads * struct.head_bytes)
    blocks[:, target] = blocks[:, source]
