"""What the Ascend backend runs on: a device, its cores, and how a step is captured on it.

Everything else of the backend is torch and torch_npu by name, and the same wherever it runs. ``npu_platform`` is a
chip; tests have another, of this machine's processor.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from kernels.ascend.stubs_refused import refuse_stubs
from kernels.ops import BackendUnavailable, Parallel

ROW_TILE = 256
"""Rows of a float product on a chip: always as many, so that how it is computed does not depend on how many are real.

By count of operations a 910B needs about as long to read a weight as to multiply it with so many rows; not measured."""

WAY_OUT = "`upwell doctor` says what is missing."


class Graph(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Run it again on what its inputs hold now."""

    def pool(self) -> Any:
        """Its memory, for other graphs to share: what one leaves there holds until another is replayed."""


@dataclass(frozen=True)
class Platform:
    """A device of torch.

    Attributes:
        device: of all tensors.
        description: one line about the chip.
        cube_cores: matrix cores; vector_cores: vector cores.
        row_tile: rows of a float product.
        new_graph: an empty graph; capture: (graph, pool of another or None) -> a context in which operations go to the
            graph instead of running.
        synchronize: wait for all work.
        free_bytes: device memory that is free, or would be if torch kept none for later.
        peak_bytes: runs something, and gives how much more device memory was taken at most than before.
        collectives: the backend of torch.distributed by which processes on such devices speak.
    """

    device: Any
    description: str
    cube_cores: int
    vector_cores: int
    row_tile: int
    new_graph: Callable[[], Graph]
    capture: Callable[[Any, Any], AbstractContextManager[Any]]
    synchronize: Callable[[], None]
    free_bytes: Callable[[], int]
    peak_bytes: Callable[[Callable[[], None]], int]
    collectives: str = "hccl"


def npu_platform(parallel: Parallel | None = None) -> Platform:
    """The first NPU that this process sees; of several processes, each has the one of its rank's number.

    Raises:
        BackendUnavailable: there is none, or what drives it is not installed or not real; or fewer than processes.
    """
    refuse_stubs()
    try:
        import torch  # noqa: PLC0415  (heavy, and not installed by default)
        import torch_npu  # noqa: PLC0415
    except (ImportError, OSError, RuntimeError) as error:  # torch imports torch_npu itself, and makes it its own error
        reason = str(error.__cause__ or error).rstrip(".")
        raise BackendUnavailable(f"torch_npu cannot be imported: {reason}. {WAY_OUT}") from error
    refuse_stubs()
    if os.environ.get("TRITON_ENABLE_TASKQUEUE", "true").lower() not in {"true", "1"}:
        raise BackendUnavailable(
            "TRITON_ENABLE_TASKQUEUE is off: each launch of a kernel would wait for the device, and no graph can be "
            "captured so; take it out of the environment."
        )
    npu = torch_npu.npu
    if not npu.is_available():
        raise BackendUnavailable(f"torch_npu finds no NPU. {WAY_OUT}")
    if parallel is not None:
        _take(npu, parallel)
    cube, vector = _cores(npu.current_device())
    return Platform(
        device=torch.device("npu", npu.current_device()),
        description=f"{npu.get_device_name()}, {cube} cube and {vector} vector cores, torch {torch.__version__}",
        cube_cores=cube,
        vector_cores=vector,
        row_tile=ROW_TILE,
        new_graph=npu.NPUGraph,
        capture=npu.graph,
        synchronize=npu.synchronize,
        free_bytes=lambda: _free_bytes(npu),
        peak_bytes=lambda run: _peak_bytes(npu, run),
    )


def _free_bytes(npu: Any) -> int:
    npu.empty_cache()  # what loading no longer needs is torch's otherwise, and counts as taken
    return int(npu.mem_get_info()[0])


def _peak_bytes(npu: Any, run: Callable[[], None]) -> int:
    """By what torch takes from the device, which is more than what tensors need."""
    npu.synchronize()
    npu.empty_cache()
    npu.reset_peak_memory_stats()
    before = npu.memory_reserved()
    run()
    npu.synchronize()
    return int(npu.max_memory_reserved() - before)


def _take(npu: Any, parallel: Parallel) -> None:
    """Make the NPU of this rank the one that this process uses.

    Raises:
        BackendUnavailable: there are fewer than ranks.
    """
    if npu.device_count() < parallel.size:
        raise BackendUnavailable(
            f"--tensor-parallel-size {parallel.size} needs as many NPUs, but this process sees {npu.device_count()}; "
            "lower it, or look at ASCEND_RT_VISIBLE_DEVICES."
        )
    npu.set_device(parallel.rank)


def _cores(device: int) -> tuple[int, int]:
    """Matrix and vector cores, as triton-ascend asks the driver for them.

    Raises:
        BackendUnavailable: triton-ascend is not installed, or cannot ask.
    """
    try:
        from triton.runtime import driver  # noqa: PLC0415

        properties = driver.active.utils.get_device_properties(device)
    except Exception as error:  # whatever goes wrong in there, the way out is the same
        raise BackendUnavailable(f"triton-ascend cannot ask for the chip's cores: {error}. {WAY_OUT}") from error
    return int(properties["num_aicore"]), int(properties["num_vectorcore"])
