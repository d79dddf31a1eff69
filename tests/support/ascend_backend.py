"""The Ascend backend on emulations, where ``resolve`` finds it: for tests that are in one process with an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.ascend.backend import ops_on
from kernels.resolve import BACKENDS
from tools.ascend.emulation import CallRecord
from tools.ascend.emulation.platform import emulated_platform


@contextmanager
def emulated_ascend() -> Iterator[CallRecord]:
    """While it lasts ``--device ascend`` is the emulation; every call of torch_npu is checked, and recorded."""
    threads, real = torch.get_num_threads(), BACKENDS["ascend"]
    platform = emulated_platform()
    torch.set_num_threads(1)  # the suites run side by side
    BACKENDS["ascend"] = lambda options: ops_on(platform, options)
    try:
        with CallRecord() as record:
            yield record
    finally:
        BACKENDS["ascend"] = real
        torch.set_num_threads(threads)
