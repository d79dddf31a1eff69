"""What sampling leaves of the logits.

Source: npu_top_k_top_p in torch_npu's own documentation (``_op_plugin_docs`` of torch-npu 2.13.0), which gives it step
by step. Not verified, since it takes a device: how the device sums the probabilities, on which the last token that a
threshold keeps can depend.
"""

from __future__ import annotations

import torch

from tools.ascend.emulation.norm import FLOATS
from tools.ascend.emulation.registry import emulates, refuse, require

MAX_TOP_K = 1024


@emulates("npu_top_k_top_p")
def top_k_top_p(logits: torch.Tensor, p: torch.Tensor | None, k: torch.Tensor | None) -> torch.Tensor:
    """The logits, with -infinity where they are below the k-th largest or outside the smallest set of probability p.

    Ties with the k-th largest stay. The most likely token always stays.

    Shapes: logits [B, V], p [B], k [B]. Dtypes: logits float16, bfloat16 or float32; p the same; k int32, from 1 to
    1024 and to V. One of p and k may be None.
    """
    name = "npu_top_k_top_p"
    require(logits.dim() == 2, name, f"logits must have 2 dimensions, but have {logits.dim()}")
    require(logits.dtype in FLOATS, name, f"{logits.dtype} is not supported")
    if p is None and k is None:
        refuse(name, "p and k cannot both be None")
    if p is not None:
        require(p.dtype == logits.dtype, name, f"p must be {logits.dtype} as the logits are, but is {p.dtype}")
        require(tuple(p.shape) == (len(logits),), name, f"p must be [{len(logits)}]")
        require(bool(((p >= 0) & (p <= 1)).all()), name, "p must be from 0 to 1")
    if k is not None:
        require(k.dtype == torch.int32, name, f"k must be int32, but is {k.dtype}")
        require(tuple(k.shape) == (len(logits),), name, f"k must be [{len(logits)}]")
        most = min(MAX_TOP_K, logits.shape[1])
        require(bool(((k >= 1) & (k <= most)).all()), name, f"k must be from 1 to {most}")
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for index, row in enumerate(logits):
        result[index] = _filter(
            row.to(torch.float32, copy=True),
            None if p is None else float(p[index]),
            None if k is None else int(k[index]),
        ).to(logits.dtype)
    return result


def _filter(logits: torch.Tensor, p: float | None, k: int | None) -> torch.Tensor:
    """One row, float32 [V]."""
    values, order = torch.sort(logits, stable=True)
    if k is not None:
        values = torch.where(values < values[-k], -torch.inf, values)
    if p is not None:
        dropped = torch.cumsum(torch.softmax(values, -1), -1) <= 1 - p
        dropped[-1] = False
        values = torch.where(dropped, -torch.inf, values)
    return torch.empty_like(values).scatter_(0, order, values)
