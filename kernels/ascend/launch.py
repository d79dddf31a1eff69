"""The attention kernel compiled as a launch on this host would compile it, but not launched.

``upwell doctor`` asks for it in a process of its own: a compiler may fail, hang, or take the process with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from kernels.ascend.attention import PROMPT_ROWS
from kernels.ascend.crashes import crashes_survived
from kernels.ascend.platform import npu_platform
from kernels.ascend.variant import AttentionVariant, Dtype

KV_HEADS, GROUP, HEAD_DIM = 8, 4, 128
"""The heads that are compiled for: 32 of queries, 8 of keys."""
_SCALARS = {"fp32": 0.5, "i32": 2}
"""Plain arguments of no special value."""


def compile_check(dtype: Dtype = "bf16", scores: Dtype = "fp32") -> str:
    """Compile both passes, for decoding and for prompts; one line with the seconds of each.

    Triton takes what it has compiled before from its cache unless TRITON_ALWAYS_COMPILE is 1.

    Args:
        dtype: of queries, keys and values.
        scores: as what these travel; the backend's own choice, unless told otherwise, is float32.

    Raises:
        BackendUnavailable: there is no NPU, or what drives it is missing.
        triton's own errors: it does not compile.
    """
    platform = npu_platform()
    took = []
    for name, queries in (("decoding", 1), ("prompts", PROMPT_ROWS // GROUP)):
        began_s = time.perf_counter()
        compile_variant(
            AttentionVariant(KV_HEADS, GROUP, HEAD_DIM, HEAD_DIM, dtype, scores, queries), platform.cube_cores
        )
        took.append(f"{name} in {time.perf_counter() - began_s:.1f} s")
    return f"{dtype}, {GROUP * KV_HEADS} heads on {KV_HEADS} of {HEAD_DIM}: {', '.join(took)}"


def compile_variant(variant: AttentionVariant, cores: int) -> None:
    """Compile one specialisation, on so many matrix cores and twice as many vector cores.

    Raises:
        triton's own errors: it does not compile.
    """
    from kernels.ascend.paged_decode import OPTIONS, paged_attention_combine, paged_attention_split  # noqa: PLC0415

    split = {**variant.split_constants(cores), **OPTIONS}
    _compile(paged_attention_split, variant.split_pointers(), variant.split_scalars(), split, cores)
    combine = variant.combine_constants(2 * cores, has_sink=False)
    _compile(paged_attention_combine, variant.combine_pointers(), variant.combine_scalars(), combine, 2 * cores)


def _compile(
    kernel: Any, pointers: Mapping[str, str], scalars: Mapping[str, str], constants: Mapping[str, Any], grid: int
) -> None:
    """Bind, lower and compile; tensors are given by their dtype alone."""
    import torch  # noqa: PLC0415

    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i32": torch.int32}
    arguments = (*(dtypes[name] for name in pointers.values()), *(_SCALARS[name] for name in scalars.values()))
    crashes_survived(lambda: kernel.warmup(*arguments, grid=(grid,), **constants))
