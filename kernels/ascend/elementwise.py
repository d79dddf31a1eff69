"""Rows by themselves: norms, rotations, gated activations. All batch-invariant: rows do not meet.

Each is one operation of torch_npu; what it computes inside, and to which precision, is the device's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.ascend.platform import Platform
from kernels.formats import RawTensor
from kernels.reference.dequant import dequantise

Tensor = Any


class RopeTable:
    """Cosines and sines [positions, d], and those of a step's positions, looked up once for all layers.

    Attributes:
        scale: what a turned head is multiplied with; apart, since npu_rotary_mul takes numbers within 1 (its page in
            ``_op_plugin_docs`` of torch-npu 2.13.0).
    """

    def __init__(self, cos: Tensor, sin: Tensor, scale: float) -> None:
        self._tables, self.scale = (cos, sin), scale
        self._positions: Tensor = None
        self._rows: tuple[Tensor, Tensor] | None = None

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token: positions i32[T] -> twice [1,T,1,d]."""
        if self._rows is None or self._positions is not positions:
            cos, sin = (table.index_select(0, positions)[None, :, None, :] for table in self._tables)
            self._positions, self._rows = positions, (cos, sin)
        return self._rows


class Elementwise:
    """These operations for one device and dtype."""

    def __init__(self, platform: Platform, dtype: Any) -> None:
        import torch  # noqa: PLC0415
        import torch_npu  # noqa: PLC0415

        self._torch, self._npu = torch, torch_npu
        self._device, self._dtype = platform.device, dtype

    def prepare_vector(self, raw: RawTensor) -> Tensor:
        """A one-dimensional weight in the backend's dtype."""
        return self._torch.from_numpy(dequantise(raw)).to(self._device, self._dtype)

    def prepare_rope(self, inv_freq: npt.NDArray[np.float64], scale: float, num_positions: int) -> RopeTable:
        """Angles in float64, rounded once: inv_freq f64[d/2]; both halves of a head turn by the same angles."""
        angles = np.arange(num_positions)[:, None] * np.concatenate([inv_freq, inv_freq])
        cos, sin = (self._torch.from_numpy(function(angles)) for function in (np.cos, np.sin))
        return RopeTable(cos.to(self._dtype).to(self._device), sin.to(self._dtype).to(self._device), scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """X / sqrt(mean(x^2) + eps) * weight over the last axis."""
        return self._npu.npu_rms_norm(x.contiguous(), weight, eps)[0]

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual.

        Two operations: npu_add_rms_norm, which is both, is not batch-invariant according to vllm-ascend.
        """
        total = x + residual
        return self._npu.npu_rms_norm(total, weight, eps)[0], total

    def rope(self, x: Tensor, positions: Tensor, table: RopeTable) -> Tensor:
        """Each head's halves turned against each other: x [T,heads,d]."""
        cos, sin = table.at(positions)
        turned = self._npu.npu_rotary_mul(x.contiguous()[None], cos, sin)[0]
        return turned if table.scale == 1 else turned * table.scale

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of gate_up [T,2F]."""
        return self._npu.npu_swiglu(gate_up)
