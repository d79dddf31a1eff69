"""The reference backend: the operation table filled with NumPy, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.ops import BackendInfo, BackendOptions, BackendUnavailable, Memory, Ops, refuse_parallel
from kernels.reference import attention, elementwise, linear, moe, sampling


def reference_ops(options: BackendOptions) -> Ops:
    """The table. Weights are unpacked to float32 at load, so a model takes 4 bytes a parameter.

    ``options.threads`` means nothing here: NumPy's BLAS has its own, set by the environment.

    Raises:
        BackendUnavailable: another KV cache than f32, or several processes.
    """
    refuse_parallel(options)
    if options.kv_cache_dtype not in {"auto", "f32"}:
        raise BackendUnavailable(
            f"--kv-cache-dtype {options.kv_cache_dtype} is not for this backend, whose KV cache is f32."
        )
    return Ops(
        info=BackendInfo("reference", f"NumPy {np.__version__}, float32"),
        memory=Memory(
            alloc_cache=attention.alloc_cache,
            read_cache=attention.read_cache,
            copy_block=attention.copy_block,
            cache_token_bytes=attention.cache_token_bytes,
            block_multiple=1,
            upload=_same,
            download=_same,
            sync=_nothing,
        ),
        prepare_linear=linear.prepare_linear,
        prepare_vector=elementwise.prepare_vector,
        prepare_rope=elementwise.prepare_rope,
        prepare_experts=moe.prepare_experts,
        embed=linear.embed,
        rms_norm=elementwise.rms_norm,
        add_rms_norm=elementwise.add_rms_norm,
        linear=linear.linear,
        rope=elementwise.rope,
        write_kv=attention.write_kv,
        paged_attention=attention.paged_attention,
        silu_mul=elementwise.silu_mul,
        moe=moe.moe,
        logits=linear.logits,
        record=sampling.record,
        draw=sampling.draw,
    )


def _same(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array


def _nothing() -> None:
    """NumPy has finished when it returns."""
