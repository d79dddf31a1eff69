"""The scores of a step on the device, of which as little comes down as a step's tokens need.

Made by a recorded step, asked by the engine's sampler. The best token of each row comes with every step. A row that is
drawn with top_k is reduced to its highest logits there, since to select is exact on float32 and so depends on nothing
else in the batch; a sum over a row would not be, so rows that need one come down whole, and the host draws.

npu_top_k_top_p is not used: it keeps all that tie with the k-th and sums probabilities in its own order and precision.
Source: aclnnTopk in CANN's reference: float32, any k up to the row's length, sorted, for the 910B. Not verified, since
it takes a device: that it selects by all bits of a float32, as the reference says nothing of a narrower type (on the
first 910, which is not served on, it goes through float16 where it runs on the matrix cores), and how long it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.ops import F32, I32, Candidates

Tensor = Any


class DeviceScores:
    """``kernels.ops.Scores`` of a step: logits f32[...,V] on the device, which hold until the next step.

    Attributes:
        best: i32[R].
    """

    def __init__(self, logits: Tensor, best: I32, places: I32 | None = None) -> None:
        """``places`` i32[R] says which rows of the logits are asked for by 0 to R - 1; without it, the first R."""
        self.best = best
        self._logits, self._places = logits, places

    def rows(self, indices: Sequence[int]) -> F32:
        """Whole rows, f32[n,V], and no others, brought down anew each time."""
        return fetched(self._picked(indices))

    def highest(self, indices: Sequence[int], count: int) -> Candidates:
        """The ``count`` highest of some rows, or all if there are fewer; alone these come down."""
        import torch  # noqa: PLC0415

        picked = self._picked(indices)
        logits, ids = picked.topk(min(count, picked.shape[1]), dim=-1)
        return Candidates(fetched(logits), fetched(ids.to(torch.int32)))

    def _picked(self, indices: Sequence[int]) -> Tensor:
        """Some rows, on the device; not copied where they lie next to each other."""
        import torch  # noqa: PLC0415

        rows = np.array(indices, dtype=np.int32)
        if self._places is not None:
            rows = self._places[rows]
        if not len(rows) or (np.diff(rows) == 1).all():
            start = int(rows[0]) if len(rows) else 0
            return self._logits[start : start + len(rows)]
        return self._logits.index_select(0, torch.from_numpy(rows).to(self._logits.device))


def fetched(tensor: Tensor) -> npt.NDArray[Any]:
    """A device's tensor as an array of this process's, which is the caller's own."""
    return np.asarray(tensor.to("cpu", copy=True).numpy())


def best_tokens(torch: Any, logits: Tensor) -> Tensor:
    """Each row's highest logit, the lowest id on a tie, -1 where one is not finite: f32[R,V] -> i32[R]."""
    highest = logits.amax(-1, keepdim=True)
    ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    best = torch.where(logits == highest, ids, logits.shape[1]).amin(-1)
    return torch.where(torch.isfinite(logits).all(-1), best, -1).to(torch.int32)
