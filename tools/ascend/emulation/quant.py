"""Products of int8, their scales, and the weight format of the cube unit.

Source of the rules: npu_dynamic_quant, npu_quant_matmul and npu_format_cast in torch_npu's own documentation
(``_op_plugin_docs`` of torch-npu 2.13.0), table of dtypes for Atlas A2. Not verified, since it takes a device: whether
its quantisation divides by the scale, as the formula says, or multiplies by 127 / max; what it makes of a row of zeros
(here codes and scale are 0); and in which order it applies scales and bias (here channel, token, bias, in float32).
"""

from __future__ import annotations

import warnings

import torch

from tools.ascend.emulation.formats import FRACTAL_NZ, ND, format_of, set_format
from tools.ascend.emulation.registry import emulates, refuse, require
from tools.ascend.emulation.rows import integer_product

INT8_MAX = 127
MAX_INNER = 65535
"""Of the last dimensions of x1 and x2, says the page; a device refuses more by 161002 (vllm-ascend #9848). K and N
here, however x2 lies. CANN of after July 2026 takes more of int8 (cann/ops-nn #6978)."""
SCALAR_TYPES = {1: torch.int8, 3: torch.int32, 5: torch.float16, 6: torch.float32, 15: torch.bfloat16}
"""The numbers by which schemas name dtypes: those of c10::ScalarType."""
NZ_DTYPES = (torch.int8, torch.float16, torch.bfloat16)


@emulates("npu_dynamic_quant")
def dynamic_quant(
    input: torch.Tensor,
    dst_type: int | None,
    quant_mode: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 codes with one float32 scale a row: scale = max|x| / 127, y = x / scale, rounded half to even.

    Shapes: input [..., K], at least 2 dimensions; scale has input's shape without the last dimension.
    Dtypes: float16 or bfloat16 in, int8 and float32 out.
    """
    name = "npu_dynamic_quant"
    require(input.dtype in {torch.float16, torch.bfloat16}, name, f"{input.dtype} is not supported")
    require(input.dim() > 1, name, f"input must have more than 1 dimension, but has {input.dim()}")
    require(input.numel() > 0, name, "empty tensors are not supported")
    require(quant_mode == "pertoken", name, f'quant_mode "{quant_mode}" is not emulated')
    require(dst_type is None or SCALAR_TYPES.get(dst_type) is torch.int8, name, "only int8 codes are emulated")
    x = input.to(torch.float32)
    scale = x.abs().amax(-1) / INT8_MAX
    codes = torch.where(scale[..., None] > 0, x / scale[..., None], 0.0).round().clamp(-128, INT8_MAX)
    return codes.to(torch.int8), scale


@emulates("npu_quant_matmul")
def quant_matmul(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    pertoken_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    output_dtype: int | None,
) -> torch.Tensor:
    """x1 int8 [M, K] times x2 int8 [K, N], exactly; then scaled by channel and token, biased, and rounded once.

    An int32 bias is added to the product before the scales, a float one after them. x2 may be a transposed view and
    may be in FRACTAL_NZ. Not emulated: more dimensions, int4, int64 scales, an offset, int8 results.

    Shapes: scale [1] or [N], pertoken_scale [M], bias [N], result [M, N].
    Dtypes: see ``_check_scales``.
    """
    name = "npu_quant_matmul"
    require(x1.dtype == x2.dtype == torch.int8, name, f"x1 and x2 must be int8, but are {x1.dtype} and {x2.dtype}")
    require(x1.dim() == x2.dim() == 2, name, "only x1 and x2 of 2 dimensions are emulated")
    require(x1.numel() > 0 and x2.numel() > 0, name, "empty tensors are not supported")
    (rows, depth), (depth2, columns) = x1.shape, x2.shape
    require(depth == depth2, name, f"x1 {list(x1.shape)} and x2 {list(x2.shape)} do not share K")
    require(max(depth, columns) <= MAX_INNER, name, f"K and N must not exceed {MAX_INNER}, but are {depth}, {columns}")
    require(tuple(scale.shape) in {(1,), (columns,)}, name, f"scale must be [1] or [{columns}]")
    if pertoken_scale is not None:
        require(tuple(pertoken_scale.shape) == (rows,), name, f"pertoken_scale must be [{rows}]")
    if bias is not None:
        require(tuple(bias.shape) == (columns,), name, f"only bias [{columns}] is emulated")
    dtype = _check_scales(name, scale, pertoken_scale, bias, output_dtype)
    total = integer_product(x1, x2)
    if bias is not None and bias.dtype == torch.int32:
        total = total + bias
    if dtype is torch.int32:
        return total.to(torch.int32)
    result = scaled(total, scale, pertoken_scale)
    if bias is not None and bias.dtype != torch.int32:
        result = result + bias.to(torch.float32)
    return result.to(dtype)


def scaled(total: torch.Tensor, scale: torch.Tensor, pertoken_scale: torch.Tensor | None) -> torch.Tensor:
    """An integer product [M, N] times scale [1] or [N] and pertoken_scale [M], in float32."""
    result = total.to(torch.float32) * scale.to(torch.float32)
    return result if pertoken_scale is None else result * pertoken_scale[:, None]


@emulates("npu_format_cast")
def format_cast(input: torch.Tensor, acl_format: int) -> torch.Tensor:
    """A copy in another storage format: 2 (ND) or 29 (FRACTAL_NZ). The values stay as they are.

    As on the device, the format stays ND, with a warning, unless torch.npu.config.allow_internal_format is True. That
    it is off by default on the 910B and that float32 has no FRACTAL_NZ is what vllm-ascend relies on; the operation's
    page says neither.

    Shapes: FRACTAL_NZ needs 2 dimensions or more, contiguous. Dtypes: int8, float16 or bfloat16.
    """
    name = "npu_format_cast"
    require(acl_format in {ND, FRACTAL_NZ}, name, f"format {acl_format} is not emulated")
    result = input.clone(memory_format=torch.contiguous_format)
    if acl_format == FRACTAL_NZ:
        require(input.dim() >= 2, name, "FRACTAL_NZ needs at least 2 dimensions")
        require(input.dtype in NZ_DTYPES, name, f"{input.dtype} cannot be in FRACTAL_NZ")
        require(input.is_contiguous(), name, "a tensor must be contiguous to be cast to FRACTAL_NZ")
        if not internal_formats_allowed():
            warnings.warn(
                "npu_format_cast: the tensor stays in ND, as torch.npu.config.allow_internal_format is not True",
                RuntimeWarning,
                stacklevel=2,
            )
            return result
    set_format(result, acl_format)
    return result


@emulates("get_npu_format")
def get_npu_format(input: torch.Tensor) -> int:
    """The storage format of a tensor: 2 (ND) or 29 (FRACTAL_NZ)."""
    return format_of(input)


def internal_formats_allowed() -> bool:
    """Whether torch.npu.config.allow_internal_format has been set to True."""
    from tools.ascend.stubs import import_torch_npu  # noqa: PLC0415  (set at run time, so asked at run time)

    return bool(import_torch_npu()._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"enable")


def _check_scales(
    name: str,
    scale: torch.Tensor,
    pertoken_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    output_dtype: int | None,
) -> torch.dtype:
    """The dtype of the result, if the documentation's table has a row for these dtypes.

    =========  =================  ==============  =========================
    result     scale              pertoken_scale  bias
    =========  =================  ==============  =========================
    bfloat16   float32, bfloat16  float32, none   int32, bfloat16, float32
    float16    float32            float32         int32, float16, float32
    float16    float32            none            int32
    int32      float32, bfloat16  none            int32
    =========  =================  ==============  =========================
    """
    half, brain, single, whole = torch.float16, torch.bfloat16, torch.float32, torch.int32
    dtype = SCALAR_TYPES.get(output_dtype if output_dtype is not None else 1)
    if dtype is brain:
        scales, biases = {single, brain}, {whole, brain, single}
    elif dtype is half:
        scales, biases = {single}, {whole} if pertoken_scale is None else {whole, half, single}
    elif dtype is whole:
        scales, biases = {single, brain}, {whole}
        require(pertoken_scale is None, name, "an int32 result takes no pertoken_scale")
    else:
        refuse(name, f"a result of {dtype} is not emulated")
    require(scale.dtype in scales, name, f"a result of {dtype} does not go with a scale of {scale.dtype}")
    if pertoken_scale is not None:
        require(pertoken_scale.dtype == single, name, f"pertoken_scale must be float32, but is {pertoken_scale.dtype}")
    if bias is not None:
        require(bias.dtype in biases, name, f"a result of {dtype} does not go with a bias of {bias.dtype} here")
    return dtype
