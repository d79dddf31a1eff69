"""The Ascend backend: the operation table filled with torch_npu and our own attention kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.ascend.attention import Attention
from kernels.ascend.elementwise import Elementwise
from kernels.ascend.linear import Linears
from kernels.ascend.moe import Experts
from kernels.ascend.parallel import Ranks
from kernels.ascend.plan import BLOCK_SIZE
from kernels.ascend.platform import Platform, npu_platform
from kernels.ascend.recorded import RecordedStep
from kernels.ascend.rehearsal import spare_bytes
from kernels.ascend.variant import Dtype
from kernels.cpu.backend import cpu_ops
from kernels.formats import DTYPES, PROMPT_ATTENTIONS
from kernels.ops import (
    F32,
    I32,
    Arithmetic,
    BackendInfo,
    BackendOptions,
    BackendUnavailable,
    DrawParams,
    Memory,
    Ops,
    Scores,
    SpareBytes,
    StepInputs,
    StepLimits,
)
from kernels.reference.sampling import draw

Tensor = Any
SCORES: dict[str, Dtype] = {"float32": "fp32", "float16": "fp16"}


def ascend_ops(options: BackendOptions) -> Ops:
    """The table, on the first NPU that this process sees, or that of its rank.

    Raises:
        BackendUnavailable: there is none, or it cannot do what the options ask; the message names the way out.
    """
    _check(options)
    return ops_on(npu_platform(options.parallel), options)


def ops_on(platform: Platform, options: BackendOptions) -> Ops:
    """The table on a platform.

    ``options.threads`` means nothing here.

    Raises:
        BackendUnavailable: it cannot do what the options ask.
    """
    import torch  # noqa: PLC0415  (not installed by default)
    import torch_npu  # noqa: PLC0415

    torch_npu.npu.config.allow_internal_format = True  # else weights stay out of FRACTAL_NZ, with a warning at most
    _check(options)
    name = "bfloat16" if options.dtype == "auto" else options.dtype
    dtype = getattr(torch, name)
    ranks = Ranks(platform, options.parallel)
    rows, linears = Elementwise(platform, dtype), Linears(platform, dtype, ranks)
    int8_cache = options.kv_cache_dtype == "i8"
    scores: Dtype = "i32" if int8_cache else SCORES[options.attention_scores]
    attention = Attention(platform, dtype, scores=scores, fused_prompts=options.prompt_attention == "fused")
    experts = Experts(platform, dtype, linears, ranks)

    def record(forward: Callable[[StepInputs], Tensor], limits: StepLimits) -> Callable[[StepInputs], Scores]:
        return RecordedStep(platform, forward, limits, attention.padding_block, eager=options.eager)

    def spare(forward: Callable[[StepInputs], Tensor], limits: StepLimits) -> int:
        return spare_bytes(platform, ranks, forward, limits, eager=options.eager)

    return Ops(
        info=_info(platform, name, options),
        memory=_memory(platform, attention, linears, spare),
        prepare_linear=linears.prepare_linear,
        prepare_vector=rows.prepare_vector,
        prepare_rope=rows.prepare_rope,
        prepare_experts=experts.prepare_experts,
        embed=linears.embed,
        rms_norm=rows.rms_norm,
        add_rms_norm=rows.add_rms_norm,
        linear=linears.linear,
        rope=rows.rope,
        write_kv=attention.write_kv,
        paged_attention=attention.paged_attention,
        silu_mul=rows.silu_mul,
        moe=experts.moe,
        logits=linears.logits,
        record=record,
        draw=_draw(),
    )


def _info(platform: Platform, dtype: str, options: BackendOptions) -> BackendInfo:
    said = [platform.description, dtype]
    arithmetic = Arithmetic()
    if options.kv_cache_dtype == "i8":
        said.append("i8 cache")
        arithmetic = Arithmetic(cache="i8")
    if options.parallel is not None:
        said.append(f"tensor parallel over {options.parallel.size}")
    description = ", ".join(said)
    return BackendInfo("ascend", description, arithmetic, build=description)


def _memory(platform: Platform, attention: Attention, linears: Linears, spare: SpareBytes) -> Memory:
    import torch  # noqa: PLC0415

    def upload(array: npt.NDArray[Any]) -> Tensor:
        if array.dtype == np.float32:
            return linears.floats(np.ascontiguousarray(array))
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32)).to(platform.device)

    return Memory(
        alloc_cache=attention.alloc_cache,
        read_cache=attention.read_cache,
        copy_block=attention.copy_block,
        cache_token_bytes=attention.cache_token_bytes,
        block_multiple=BLOCK_SIZE,
        upload=upload,
        download=lambda tensor: np.asarray(tensor.float().cpu().numpy()),
        sync=platform.synchronize,
        capacity_bytes=platform.free_bytes,
        capacity="free memory on the device, which the weights take from too",
        spare_bytes=spare,
    )


def _draw() -> Callable[[F32, DrawParams], I32]:
    """Drawing is the host's, on logits that were fetched: natively, where there is the library for it."""
    try:
        return cpu_ops(BackendOptions()).draw
    except BackendUnavailable:
        return draw


def _check(options: BackendOptions) -> None:
    if options.dtype not in DTYPES:
        raise BackendUnavailable(f"--dtype must be one of {', '.join(DTYPES)}, but is {options.dtype}.")
    if options.attention_scores not in SCORES:
        choices = ", ".join(SCORES)
        raise BackendUnavailable(f"--attention-scores must be one of {choices}, but is {options.attention_scores}.")
    if options.prompt_attention not in PROMPT_ATTENTIONS:
        choices = ", ".join(PROMPT_ATTENTIONS)
        raise BackendUnavailable(f"--prompt-attention must be one of {choices}, but is {options.prompt_attention}.")
    if options.kv_cache_dtype not in {"auto", "i8"}:
        raise BackendUnavailable(
            f"--kv-cache-dtype {options.kv_cache_dtype} is not for this backend, whose KV cache is of --dtype, or i8."
        )
    if options.kv_cache_dtype == "i8" and options.prompt_attention == "fused":
        raise BackendUnavailable("--prompt-attention fused does not read --kv-cache-dtype i8; leave one of them out.")
    if options.kv_cache_dtype == "i8" and options.attention_scores != "float32":
        raise BackendUnavailable(
            "--attention-scores float16 has no meaning with --kv-cache-dtype i8, whose scores are whole numbers; "
            "leave one of them out."
        )
