"""Memory of the CPU backend on systems that are not like this one."""

from __future__ import annotations

import mmap

import pytest

from kernels.cpu.memory import HugePages, small_pages


@pytest.mark.parametrize("take", [small_pages, HugePages().take])
def test_a_kernel_without_huge_pages_gives_memory_all_the_same(monkeypatch, take):
    class WithoutHugePages(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", WithoutHugePages)
    assert not take(1000).any()


@pytest.mark.parametrize("take", [small_pages, HugePages().take])
def test_more_memory_than_there_is_is_said_as_such(take):
    with pytest.raises(MemoryError, match="bytes cannot be had"):
        take(1 << 60)
