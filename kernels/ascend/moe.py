"""Routed experts: the device chooses, sorts tokens by expert, multiplies group by group, and adds up.

A token's own rows are computed with its experts' weights whatever other rows there are; whether the device adds in an
order that depends on how many rows a group has is for the first hour on a chip to find out.

A layer with one expert has nothing to choose: it is products of all rows. Sizes of groups must be more than one, says
npu_grouped_matmul's page (``_op_plugin_docs`` of torch-npu 2.13.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.ascend.linear import FRACTAL_NZ, AscendLinear, Linears
from kernels.ascend.parallel import Ranks
from kernels.ascend.platform import Platform
from kernels.formats import RawTensor, WeightFormat
from kernels.reference.dequant import codes_and_scales, dequantise

Tensor = Any


@dataclass(frozen=True)
class Stack:
    """One weight an expert: [E,K,N], in the backend's dtype; or i8 in FRACTAL_NZ with a scale [E,N]."""

    weight: Tensor
    scales: Tensor


@dataclass(frozen=True)
class AscendExperts:
    """gate_up [E,H,2F] and down [E,F,H] of two experts or more."""

    gate_up: Stack
    down: Stack


@dataclass(frozen=True)
class OnlyExpert:
    """gate_up [2F,H] and down [H,F] of a layer that has no other."""

    gate_up: AscendLinear
    down: AscendLinear


class Experts:
    """These operations for one device and dtype, and for the processes that share each expert's inner columns."""

    def __init__(self, platform: Platform, dtype: Any, linears: Linears, ranks: Ranks | None = None) -> None:
        import torch  # noqa: PLC0415
        import torch_npu  # noqa: PLC0415

        self._torch, self._npu = torch, torch_npu
        self._device, self._dtype, self._linears = platform.device, dtype, linears
        self._ranks = Ranks() if ranks is None else ranks

    def prepare_experts(self, gate: RawTensor, up: RawTensor, down: RawTensor) -> AscendExperts | OnlyExpert:
        """Gate and up [E,F,H], down [E,H,F], transposed as grouped products take them; a single expert's are not."""
        if gate.shape[0] == 1:
            prepare = self._linears.prepare_linear
            gate_up = prepare([gate.at(0), up.at(0)], None, split="outputs")
            return OnlyExpert(gate_up, prepare([down.at(0)], None, split="inputs"))
        return AscendExperts(self._stack(gate, up), self._stack(down))

    def _stack(self, *weights: RawTensor) -> Stack:
        torch = self._torch
        if any(raw.format is not WeightFormat.W8A8 for raw in weights):
            parts = [torch.from_numpy(dequantise(raw)).to(self._dtype) for raw in weights]
            return Stack(torch.cat(parts, dim=1).transpose(1, 2).contiguous().to(self._device), None)
        codes, scales = zip(*(codes_and_scales(raw) for raw in weights), strict=True)
        stacked = torch.from_numpy(np.concatenate(codes, axis=1)).transpose(1, 2).contiguous().to(self._device)
        wanted = torch.bfloat16 if self._dtype == torch.bfloat16 else torch.float32
        kept = torch.from_numpy(np.concatenate(scales, axis=1).astype(np.float32)).to(wanted).to(self._device)
        return Stack(self._npu.npu_format_cast(stacked, FRACTAL_NZ), kept)

    def moe(
        self, x: Tensor, router: AscendLinear, experts: AscendExperts | OnlyExpert, top_k: int, normalise: bool
    ) -> Tensor:
        """Sum over a token's top_k experts of weight * down(silu(gate x) * up x): x [T,H] -> [T,H]."""
        if isinstance(experts, OnlyExpert):  # whose weight is 1
            hidden = self._npu.npu_swiglu(self._linears.linear(x, experts.gate_up))
            return self._linears.linear(hidden, experts.down)
        npu, num_experts = self._npu, experts.gate_up.weight.shape[0]
        scores = self._linears.linear(x, router).to(self._torch.float32)
        weights, chosen, _ = npu.npu_moe_gating_top_k_softmax(scores, k=top_k)
        if normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        rows, places, counts, _ = npu.npu_moe_init_routing_v2(
            x,
            chosen,
            active_num=chosen.numel(),
            expert_num=num_experts,
            drop_pad_mode=0,
            expert_tokens_num_type=1,
            expert_tokens_num_flag=True,
            quant_mode=-1,
            active_expert_range=[0, num_experts],
            row_idx_type=0,
        )
        hidden = npu.npu_swiglu(self._grouped(rows, experts.gate_up, counts, shared=False))
        out = self._grouped(hidden, experts.down, counts, shared=True)
        return self._ranks.sum(npu.npu_moe_token_unpermute(out, places, probs=weights.to(out.dtype)))

    def _grouped(self, x: Tensor, stack: Stack, counts: Tensor, *, shared: bool) -> Tensor:
        """Of these columns of rows, of which other processes have the others where they are shared."""
        groups = {"group_list": counts, "split_item": 2, "group_type": 0, "group_list_type": 1}
        if stack.scales is None:
            return self._npu.npu_grouped_matmul([x], [stack.weight], **groups)[0]
        codes, tokens = self._linears.quantised(x, shared=shared)
        return self._npu.npu_grouped_matmul(
            [codes],
            [stack.weight],
            scale=[stack.scales],
            per_token_scale=[tokens],
            output_dtype=self._dtype,
            **groups,
        )[0]
