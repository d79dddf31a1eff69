"""Routed experts in float32: softmax over all experts, the top k of them, a weighted sum of their MLPs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.formats import RawTensor
from kernels.reference.elementwise import silu_mul
from kernels.reference.linear import ReferenceLinear, linear, prepare_linear

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceExperts:
    """One Linear [2F,H] (gate over up) and one [H,F] (down) an expert."""

    gate_up: tuple[ReferenceLinear, ...]
    down: tuple[ReferenceLinear, ...]


def prepare_experts(gate: RawTensor, up: RawTensor, down: RawTensor) -> ReferenceExperts:
    """Unpack stacked experts: gate and up [E,F,H], down [E,H,F].

    Raises:
        ValueError: data are not those of their shape.
    """
    experts = range(gate.shape[0])
    return ReferenceExperts(
        gate_up=tuple(prepare_linear([gate.at(e), up.at(e)], None) for e in experts),
        down=tuple(prepare_linear([down.at(e)], None) for e in experts),
    )


def moe(x: F32, router: ReferenceLinear, experts: ReferenceExperts, top_k: int, normalise: bool) -> F32:
    """Sum over a token's top_k experts of weight * down(silu(gate x) * up x).

    Experts are ranked by router probability, the lower index first on a tie, and added up by rising index, so that the
    order of the sum does not depend on other tokens.

    Shapes: x f32[T,H], router [E,H] -> f32[T,H]. Batch-invariant, as ``linear``.
    Source: Qwen3 Technical Report (2025), section 2.
    """
    scores = linear(x, router)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    chosen = np.argsort(-weights, axis=-1, kind="stable")[:, :top_k]
    gates = np.zeros_like(weights)
    np.put_along_axis(gates, chosen, np.take_along_axis(weights, chosen, axis=-1), axis=-1)
    if normalise:
        gates /= gates.sum(axis=-1, keepdims=True)
    routed = np.zeros(weights.shape, dtype=bool)
    np.put_along_axis(routed, chosen, values=True, axis=-1)
    out = np.zeros_like(x)
    for expert in np.flatnonzero(routed.any(axis=0)):
        rows = np.flatnonzero(routed[:, expert])
        hidden = silu_mul(linear(x[rows], experts.gate_up[expert]))
        out[rows] += gates[rows, expert, None] * linear(hidden, experts.down[expert])
    return out
