"""Normalisation, rotation and the gate: one row in, one row out.

Source of the rules: the operations' pages in torch_npu's own documentation (``_op_plugin_docs`` of torch-npu 2.13.0)
and aclnnRmsNorm, aclnnAddRmsNorm, aclnnRotaryPositionEmbedding and aclnnSwiGlu in the CANN documentation (8.0 to 8.5),
for Atlas A2, which is the 910B. Not verified, since it takes a device: where the device rounds in between. Here each
operation computes in float32 and rounds once; AddRmsNorm rounds the sum first, since the sum is a result too.
"""

from __future__ import annotations

import math

import torch

from tools.ascend.emulation.registry import emulates, require
from tools.ascend.emulation.rows import by_row

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 896
MAX_BATCH_OR_HEADS = 1000


@emulates("npu_rms_norm")
def rms_norm(input: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm: x / sqrt(mean(x^2) + epsilon) * gamma over gamma's dimensions; and 1 / sqrt(...) in float32.

    Shapes: input [..., *gamma.shape], 2 to 8 dimensions; rstd has 1 for each of gamma's dimensions.
    Dtypes: float16, bfloat16 or float32, the same for both.
    """
    name = "npu_rms_norm"
    require(2 <= input.dim() <= 8, name, f"input must have 2 to 8 dimensions, but has {input.dim()}")
    _check_norm(name, input, gamma)
    return _normalise(input, gamma, epsilon)


@emulates("npu_add_rms_norm")
def add_rms_norm(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """rms_norm(x1 + x2), its rstd, and the sum, rounded to the dtype before it is normalised.

    Batch-invariant here. vllm-ascend calls an addition and npu_rms_norm instead where it wants batch invariance, and
    says that the device's AddRmsNorm is not.

    Shapes: as ``npu_rms_norm``, with 1 to 8 dimensions; x2 as x1.
    """
    name = "npu_add_rms_norm"
    require(1 <= x1.dim() <= 8, name, f"x1 must have 1 to 8 dimensions, but has {x1.dim()}")
    require(x1.shape == x2.shape and x1.dtype == x2.dtype, name, "x1 and x2 must have one shape and one dtype")
    _check_norm(name, x1, gamma)
    total = (x1.to(torch.float32) + x2.to(torch.float32)).to(x1.dtype)
    return (*_normalise(total, gamma, epsilon), total)


@emulates("npu_rotary_mul")
def rotary_mul(input: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, rotary_mode: str) -> torch.Tensor:
    """r1 * x + r2 * concatenate(-second half of x, first half of x).

    Shapes: input is BNSD, BSND or SBND; r1 and r2 are the same with 1 for N, and for B if they like, or in full. Which
    one is meant follows from r1. D is even and below 896, B and N are below 1000.
    Dtypes: float16, bfloat16 or float32, one for all; r1 and r2 from -1 to 1.
    """
    name = "npu_rotary_mul"
    require(rotary_mode == "half", name, f'rotary_mode "{rotary_mode}" is not emulated')
    require(input.dim() == r1.dim() == r2.dim() == 4, name, "input, r1 and r2 must have 4 dimensions")
    require(r1.shape == r2.shape, name, "r1 and r2 must have one shape")
    require(input.dtype in FLOATS, name, f"{input.dtype} is not supported")
    require(input.dtype == r1.dtype == r2.dtype, name, "input, r1 and r2 must have one dtype")
    head_dim = input.shape[-1]
    require(head_dim % 2 == 0 and head_dim < MAX_HEAD_DIM, name, f"D must be even and below 896, but is {head_dim}")
    require(input.numel() > 0, name, "empty tensors are not supported")
    within = bool((r1.abs() <= 1).all() and (r2.abs() <= 1).all())
    require(within, name, "r1 and r2 must be within 1")
    shapes = _rotation_shapes(*input.shape)
    layouts = [limited for shape, limited in shapes if tuple(r1.shape) == shape]
    require(bool(layouts), name, f"r1 {list(r1.shape)} does not fit input {list(input.shape)} in any layout")
    fits = any(max(limited) < MAX_BATCH_OR_HEADS for limited in layouts)
    require(fits, name, f"B and N must be below 1000, but input is {list(input.shape)}")
    x, cos, sin = input.to(torch.float32), r1.to(torch.float32), r2.to(torch.float32)
    first, second = x.chunk(2, -1)
    return (cos * x + sin * torch.cat((-second, first), -1)).to(input.dtype)


@emulates("npu_swiglu")
def swiglu(input: torch.Tensor, dim: int) -> torch.Tensor:
    """silu(first half) * second half along ``dim``.

    Shapes: 1 to 8 dimensions, even along ``dim``. Dtypes: float16, bfloat16 or float32.
    """
    name = "npu_swiglu"
    require(1 <= input.dim() <= 8, name, f"input must have 1 to 8 dimensions, but has {input.dim()}")
    require(input.dtype in FLOATS, name, f"{input.dtype} is not supported")
    require(-input.dim() <= dim < input.dim(), name, f"input has no dimension {dim}")
    require(input.shape[dim] % 2 == 0, name, f"dimension {dim} must be even, but is {input.shape[dim]}")
    rows = input.movedim(dim, -1)
    width = rows.shape[-1] // 2
    shape = (*rows.shape[:-1], width)
    if not input.numel():
        return input.new_empty(shape).movedim(-1, dim)

    def gate(row: torch.Tensor) -> torch.Tensor:
        first, second = row[:width].clone(), row[width:].clone()
        return first / (1 + torch.exp(-first)) * second

    return by_row(gate, rows.reshape(-1, 2 * width)).to(input.dtype).reshape(shape).movedim(-1, dim).contiguous()


def _check_norm(name: str, x: torch.Tensor, gamma: torch.Tensor) -> None:
    require(x.dtype in FLOATS, name, f"{x.dtype} is not supported")
    require(x.dtype == gamma.dtype, name, f"gamma must be {x.dtype} as the input is, but is {gamma.dtype}")
    require(x.numel() > 0, name, "empty tensors are not supported")
    same = 1 <= gamma.dim() <= x.dim() and x.shape[x.dim() - gamma.dim() :] == gamma.shape
    require(same, name, f"gamma {list(gamma.shape)} must be the last dimensions of the input {list(x.shape)}")


def _normalise(x: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    size = math.prod(gamma.shape)
    rows = x.reshape(-1, size).to(torch.float32)
    rstd = by_row(lambda row: torch.rsqrt(torch.dot(row, row) / size + epsilon), rows)
    y = (rows * rstd[:, None] * gamma.to(torch.float32).reshape(-1)).to(x.dtype).reshape(x.shape)
    return y, rstd.reshape(*x.shape[: x.dim() - gamma.dim()], *(1 for _ in gamma.shape))


def _rotation_shapes(d0: int, d1: int, d2: int, dim: int) -> list[tuple[tuple[int, ...], tuple[int, int]]]:
    """Shapes that r1 may have for an input [d0, d1, d2, D], each with the B and N that it implies."""
    full = (d0, d1, d2, dim)
    return [
        *((shape, (d0, d1)) for shape in ((1, 1, d2, dim), (d0, 1, d2, dim), full)),  # BNSD
        *((shape, (d0, d2)) for shape in ((1, d1, 1, dim), (d0, d1, 1, dim), full)),  # BSND
        *((shape, (d1, d2)) for shape in ((d0, 1, 1, dim), (d0, d1, 1, dim), full)),  # SBND
    ]
