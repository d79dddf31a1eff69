"""A platform of this machine's processor for the Ascend backend: the emulations, and our kernel as host code."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels.ascend.operators import Caches, Call, register, store_variant
from kernels.ascend.platform import Platform
from kernels.ascend.variant import AttentionVariant, Dtype
from kernels.control_groups import memory_bytes
from tools.ascend.emulation.peak import peak_bytes
from tools.ascend.emulation.registry import install
from tools.ascend.graph import NPUGraph, graph
from tools.ascend.host_code import HostKernel
from tools.ascend.lower import lower_combine, lower_queries, lower_split, lower_store

BUILT = Path(__file__).parents[3] / "build" / "ascend"
"""Where compiled kernels are kept from one run to the next, by what they were made of."""
ROW_TILE = 16
CORES = 4


def emulated_platform() -> Platform:
    """The CPU under torch_npu's schemas; the attention kernel as triton-ascend lowers it, compiled for this machine.

    Raises:
        StubsUnavailable: torch_npu cannot be imported here.
        ToolFailed: LLVM is not installed, at the first attention.
    """
    install()
    _install_attention()
    return Platform(
        device=torch.device("cpu"),
        description=f"emulated on a CPU, torch {torch.__version__}",
        cube_cores=CORES,
        vector_cores=2 * CORES,
        row_tile=ROW_TILE,
        new_graph=NPUGraph,
        capture=graph,
        synchronize=lambda: None,
        free_bytes=memory_bytes,
        peak_bytes=peak_bytes,
        collectives="gloo",
    )


@functools.cache
def _install_attention() -> Any:
    register()
    library = torch.library.Library("upwell", "IMPL")
    library.impl("paged_attention", _paged_attention, "CPU")
    library.impl("store_int8", _store_int8, "CPU")
    return library


@functools.cache
def host_kernels(variant: AttentionVariant, cores: int, has_sink: bool) -> tuple[HostKernel, HostKernel]:
    """Both passes as host code."""
    combine = lower_combine(variant, 2 * cores, has_sink=has_sink)
    return HostKernel(lower_split(variant, cores), BUILT), HostKernel(combine, BUILT)


@functools.cache
def queries_kernel(variant: AttentionVariant, cores: int) -> HostKernel:
    """What makes queries int8, as host code."""
    return HostKernel(lower_queries(variant, cores), BUILT)


@functools.cache
def store_kernel(variant: AttentionVariant, cores: int) -> HostKernel:
    """What writes to a cache of int8, as host code."""
    return HostKernel(lower_store(variant, cores), BUILT)


def _paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    block_table: torch.Tensor,
    tiles: torch.Tensor,
    tasks: torch.Tensor,
    counts: torch.Tensor,
    sink: torch.Tensor | None,
    scale: float,
    window: int,
    queries: int,
    scores: Dtype,
    cores: int,
) -> torch.Tensor:
    call = Call(q, Caches(k_cache, v_cache, k_scale, v_scale), tasks.shape[1], queries, scores, cores)
    split, combine = host_kernels(call.variant, cores, sink is not None)
    if k_scale is not None:
        queries_kernel(call.variant, 2 * cores).run(_arrays(call.query_arguments()), 2 * cores)
    split.run(_arrays(call.split_arguments(block_table, tiles, tasks, counts, scale, window)), cores)
    combine.run(_arrays(call.combine_arguments(tiles, counts, sink)), 2 * cores)
    return call.result


def _store_int8(
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
    cores: int,
) -> None:
    arguments = (k, v, slots, k_cache, v_cache, k_scale, v_scale, len(slots))
    store_kernel(store_variant(k, v), cores).run(_arrays(arguments), cores)


def _arrays(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments with each tensor as an array of its memory, bfloat16 as uint16."""
    return {str(index): _array(value) for index, value in enumerate(arguments)}


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_contiguous():
        raise ValueError(f"a kernel is given memory, not a view of strides {value.stride()}")
    return value.view(torch.int16).numpy().view(np.uint16) if value.dtype == torch.bfloat16 else value.numpy()
