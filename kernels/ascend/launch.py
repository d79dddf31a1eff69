"""The attention kernel compiled as a launch on this host would compile it, but not launched.

``upwell doctor`` asks for it in a process of its own: a compiler may fail, hang, or take the process with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kernels.ascend.attention import PROMPT_ROWS
from kernels.ascend.crashes import crashes_survived
from kernels.ascend.platform import npu_platform
from kernels.ascend.variant import AttentionVariant, Dtype

KV_HEADS, GROUP, HEAD_DIM = 8, 4, 128
"""The heads that are compiled for: 32 of queries, 8 of keys."""
_SCALARS = {"fp32": 0.5, "i32": 2}
"""Plain arguments of no special value."""


def compile_check(tell: Callable[[str], None], dtype: Dtype = "bf16") -> None:
    """Compile what attention over a cache of ``dtype`` takes, for decoding and for prompts; then over one of int8.

    Triton takes what it has compiled before from its cache unless TRITON_ALWAYS_COMPILE is 1.

    Args:
        tell: is given a line with the seconds of each, once for either cache, as soon as all of that has compiled.
        dtype: of queries, and of keys and values before they become int8.

    Raises:
        BackendUnavailable: there is no NPU, or what drives it is missing.
        triton's own errors: it does not compile.
    """
    platform = npu_platform()

    def attention(scores: Dtype) -> str:
        took = []
        for name, queries in (("decoding", 1), ("prompts", PROMPT_ROWS // GROUP)):
            variant = AttentionVariant(KV_HEADS, GROUP, HEAD_DIM, HEAD_DIM, dtype, scores, queries)
            took.append(_took(name, partial(compile_variant, variant, platform.cube_cores)))
        return ", ".join(took)

    tell(f"{dtype}, {GROUP * KV_HEADS} heads on {KV_HEADS} of {HEAD_DIM}: {attention('fp32')}")
    written = AttentionVariant(KV_HEADS, 1, HEAD_DIM, HEAD_DIM, dtype, "i32")
    writing = _took("writing", partial(compile_store, written, platform.vector_cores))
    tell(f"a cache of int8: {writing}, {attention('i32')}")


def _took(name: str, run: Callable[[], None]) -> str:
    began_s = time.perf_counter()
    run()
    return f"{name} in {time.perf_counter() - began_s:.1f} s"


def compile_variant(variant: AttentionVariant, cores: int) -> None:
    """Compile one specialisation, on so many matrix cores and twice as many vector cores.

    Raises:
        triton's own errors: it does not compile.
    """
    from kernels.ascend.int8_cache import split_queries  # noqa: PLC0415
    from kernels.ascend.paged_decode import OPTIONS, paged_attention_combine, paged_attention_split  # noqa: PLC0415

    if variant.planes == 2:
        constants = variant.query_constants(2 * cores)
        _compile(split_queries, variant.query_pointers(), {"num_queries": "i32"}, constants, 2 * cores)
    split = {**variant.split_constants(cores), **OPTIONS}
    _compile(paged_attention_split, variant.split_pointers(), variant.split_scalars(), split, cores)
    combine = variant.combine_constants(2 * cores, has_sink=False)
    _compile(paged_attention_combine, variant.combine_pointers(), variant.combine_scalars(), combine, 2 * cores)


def compile_store(variant: AttentionVariant, cores: int) -> None:
    """Compile what writes keys and values to a cache of int8, on so many vector cores.

    Raises:
        triton's own errors: it does not compile.
    """
    from kernels.ascend.int8_cache import store_keys_values  # noqa: PLC0415

    constants = variant.store_constants(cores)
    _compile(store_keys_values, variant.store_pointers(), {"num_tokens": "i32"}, constants, cores)


def _compile(
    kernel: Any, pointers: Mapping[str, str], scalars: Mapping[str, str], constants: Mapping[str, Any], grid: int
) -> None:
    """Bind, lower and compile; tensors are given by their dtype alone."""
    import torch  # noqa: PLC0415

    dtypes: dict[str, Any] = {
        "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i8": torch.int8, "i32": torch.int32,
    }  # fmt: skip
    arguments = (*(dtypes[name] for name in pointers.values()), *(_SCALARS[name] for name in scalars.values()))
    crashes_survived(lambda: kernel.warmup(*arguments, grid=(grid,), **constants))
