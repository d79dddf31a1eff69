"""Products with a weight matrix: float ones in tiles of rows, W8A8 ones as the device quantises.

A matrix multiplication may be cut up in another way when it has another number of rows, and then add in another
order. So float rows go through in tiles of a fixed size, the last one padded. Sums of int8 products are exact in any.

Where processes share a layer's inputs, each rounds its own part of a token to int8 by the scale of all of it, and sums
of whole numbers are added up: codes and sums are those that one process has.

The device multiplies int8 by at most 65,535 inputs and outputs at a time, says npu_quant_matmul's page
(``_op_plugin_docs`` of torch-npu 2.13.0; vllm-ascend #9848 met it): weights of more outputs become several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from kernels.ascend.parallel import Ranks
from kernels.ascend.platform import Platform
from kernels.formats import RawTensor, WeightFormat
from kernels.ops import NoKernel, Split
from kernels.reference.dequant import codes_and_scales, dequantise

Tensor = Any
FRACTAL_NZ = 29
"""The storage format that matrix cores read without reordering."""
ALIGNED = 32
"""Columns that a row of int8 is made longer by, so that rows stay on multiples of 32 bytes."""
MAX_INPUTS = 65535
"""Of a product of int8."""
MAX_OUTPUTS = 65408
"""Of one, a multiple of 128, so that the parts of larger weights begin where tiles do."""


@dataclass(frozen=True)
class FloatWeight:
    """Weight [N,K] in the backend's dtype."""

    weight: Tensor

    @property
    def outputs(self) -> int:
        """N."""
        return len(self.weight)


@dataclass(frozen=True)
class Int8Weight:
    """Codes i8[K,N] in FRACTAL_NZ and a scale f32[N] each output."""

    codes: Tensor
    scales: Tensor

    @property
    def outputs(self) -> int:
        """N."""
        return len(self.scales)


@dataclass(frozen=True)
class AscendLinear:
    """Weights whose outputs stand side by side, and their bias [N] in the backend's dtype, or None.

    Those of int8 have up to ``MAX_OUTPUTS`` each.

    Attributes:
        split: what part of the layer this process has.
        vocabulary: of a vocabulary's part, how many rows each rank has, in the order of the ranks.
    """

    parts: tuple[FloatWeight | Int8Weight, ...]
    bias: Tensor
    split: Split = "none"
    vocabulary: tuple[int, ...] = ()


class Linears:
    """These operations for one device and dtype, and for the processes that share the weights."""

    def __init__(self, platform: Platform, dtype: Any, ranks: Ranks | None = None) -> None:
        import torch  # noqa: PLC0415
        import torch_npu  # noqa: PLC0415

        self._torch, self._npu = torch, torch_npu
        self._device, self._dtype, self._row_tile = platform.device, dtype, platform.row_tile
        self._ranks = Ranks() if ranks is None else ranks

    def prepare_linear(
        self, weights: Sequence[RawTensor], biases: Sequence[RawTensor] | None, *, split: Split = "none"
    ) -> AscendLinear:
        """Weights [N_i,K] and biases [N_i] stacked; W8A8 stays integers, all else becomes the backend's dtype.

        Raises:
            NoKernel: W8A8 weights have more inputs than the device multiplies.
        """
        parts: list[FloatWeight | Int8Weight] = []
        for is_int8, run in groupby(weights, key=lambda raw: raw.format is WeightFormat.W8A8):
            stacked = list(run)
            parts += self._int8(stacked, split) if is_int8 else [self._float(stacked)]
        bias = self.floats(np.concatenate([dequantise(part) for part in biases])) if biases else None
        rows = sum(raw.shape[0] for raw in weights)
        return AscendLinear(tuple(parts), bias, split, self._ranks.each(rows) if split == "vocabulary" else ())

    def _float(self, weights: Sequence[RawTensor]) -> FloatWeight:
        parts = [self.floats(dequantise(part)) for part in weights]
        return FloatWeight(parts[0] if len(parts) == 1 else self._torch.cat(parts))

    def _int8(self, weights: Sequence[RawTensor], split: Split) -> list[Int8Weight]:
        codes, scales = (
            self._torch.from_numpy(np.concatenate(each))
            for each in zip(*(codes_and_scales(part) for part in weights), strict=True)
        )
        if codes.shape[1] > MAX_INPUTS:
            raise NoKernel(_too_many_inputs(codes.shape[1], split))
        return [
            Int8Weight(
                self._npu.npu_format_cast(some.to(self._device).t().contiguous(), FRACTAL_NZ),
                steps.float().to(self._device),
            )
            for some, steps in zip(codes.split(MAX_OUTPUTS), scales.split(MAX_OUTPUTS), strict=True)
        ]

    def floats(self, array: Any) -> Tensor:
        """A float32 array in the backend's dtype on the device."""
        return self._torch.from_numpy(array).to(self._dtype).to(self._device)

    def embed(self, ids: Tensor, w: AscendLinear) -> Tensor:
        """Rows of the embedding: ids i32[T] -> [T,H].

        Raises:
            NoKernel: it is W8A8.
        """
        if len(w.parts) != 1 or not isinstance(w.parts[0], FloatWeight):
            raise NoKernel("an embedding in W8A8")
        weight = w.parts[0].weight
        if len(w.vocabulary) <= 1:
            return weight.index_select(0, ids)
        own = ids - sum(w.vocabulary[: self._ranks.rank])
        is_here = (own >= 0) & (own < len(weight))
        rows = weight.index_select(0, self._torch.where(is_here, own, 0))
        return self._ranks.sum(self._torch.where(is_here[:, None], rows, 0))

    def linear(self, x: Tensor, w: AscendLinear) -> Tensor:
        """X @ weight.T + bias: [T,K] -> [T,N]. Batch-invariant: see the module and ``parallel``."""
        if not len(x):  # as a step has no logits in the middle of a prompt: the device refuses to quantise nothing
            return x.new_empty(0, sum(part.outputs for part in w.parts))
        shared, products, coded = w.split == "inputs", [], None
        for part in w.parts:
            if isinstance(part, FloatWeight):
                products.append(self._float_product(x, part, shared=shared))
            else:
                coded = self.quantised(x, shared=shared) if coded is None else coded
                products.append(self._int8_product(*coded, part, shared=shared))
        out = products[0] if len(products) == 1 else self._torch.cat(products, dim=1)
        return out if w.bias is None else out + w.bias

    def logits(self, x: Tensor, rows: Tensor, w: AscendLinear) -> Tensor:
        """Scores over the vocabulary for some rows: x [T,H], rows i32[R] -> f32[R,V]. Batch-invariant as ``linear``."""
        out = self.linear(x.index_select(0, rows), w)
        if len(w.vocabulary) > 1:
            out = self._ranks.side_by_side(out, w.vocabulary)
        return out.to(self._torch.float32)

    def _float_product(self, x: Tensor, part: FloatWeight, *, shared: bool) -> Tensor:
        """For all of a token's columns, where each process has some of them."""
        out = self.tiled(x, part.weight)
        return self._ranks.sum(out) if shared else out

    def _int8_product(self, codes: Tensor, tokens: Tensor, part: Int8Weight, *, shared: bool) -> Tensor:
        """Likewise, of what ``quantised`` gives."""
        if not shared or self._ranks.alone:
            return self._npu.npu_quant_matmul(
                codes, part.codes, part.scales, pertoken_scale=tokens, output_dtype=self._dtype
            )
        own = self._npu.npu_quant_matmul(codes, part.codes, part.scales, output_dtype=self._torch.int32)
        return (self._ranks.sum(own).float() * part.scales * tokens[:, None]).to(self._dtype)

    def quantised(self, x: Tensor, *, shared: bool) -> tuple[Tensor, Tensor]:
        """Tokens x [T,K] as i8[T,K] and a scale f32[T] each; ``shared``: that of all columns, of which these are some.

        The device rounds by the largest number of a row, so it is given that of all processes as one number more.
        """
        if not shared or self._ranks.alone or not x.numel():
            codes, scales = self._npu.npu_dynamic_quant(x)
            return codes, scales
        most = self._ranks.largest(x.abs().amax(-1, keepdim=True))
        codes, scales = self._npu.npu_dynamic_quant(self._torch.cat([x, most.expand(-1, ALIGNED)], dim=1))
        return codes[:, : x.shape[1]].contiguous(), scales

    def tiled(self, x: Tensor, weight: Tensor) -> Tensor:
        """X @ weight.T, as many rows at a time as a tile has: always the same operation on the same shapes."""
        torch, tile, num_rows = self._torch, self._row_tile, len(x)
        missing = -num_rows % tile
        padded = torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x
        out = torch.empty(len(padded), len(weight), dtype=x.dtype, device=x.device)
        for start in range(0, len(padded), tile):
            torch.mm(padded[start : start + tile], weight.t(), out=out[start : start + tile])
        return out[:num_rows]


def _too_many_inputs(inputs: int, split: Split) -> str:
    """Why a W8A8 weight is not served, and the way out."""
    share = "raise --tensor-parallel-size, so that processes share them, or " if split == "inputs" else ""
    return (
        f"a layer of {inputs:,} inputs in W8A8, where a product of int8 has {MAX_INPUTS:,} at most; {share}serve its "
        "floats with --quantization none"
    )
