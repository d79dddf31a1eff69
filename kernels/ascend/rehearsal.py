"""The largest steps, run once before there is a KV cache: that they run, and what they take of the device's memory.

A step takes the more the more tokens and rows of logits it has. Attention takes scratch memory by the size of its plan
and computes by what the plan counts: so plans are as large as the longest contexts want, and contexts are short. What a
first step leaves on the device for good, as communication between ranks does, is there before the cache is sized; and
kernels are compiled by then, so that who asks for the first answer does not wait for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from kernels.ascend.attention import DevicePlan, PlannedBatch
from kernels.ascend.parallel import Ranks
from kernels.ascend.plan import BLOCK_SIZE, SPLIT
from kernels.ascend.platform import Platform
from kernels.ascend.recorded import most_captured, uploaded
from kernels.ascend.sampling import best_tokens
from kernels.ops import I32, AttentionBatch, StepInputs, StepLimits

Tensor = Any


class RehearsedBatch(PlannedBatch):
    """The attention of a step whose launches take what those of any step with as many tiles take at most."""

    max_model_len = 1

    def plans(self, queries: int, window: int, most_tasks: int) -> list[DevicePlan]:
        """The step's own plans, each with room for as many tasks as a launch may have.

        Where one has more than that in a long context, it is two launches here: the results of one are put into those
        of another.
        """
        splits = -(-min(self.max_model_len, window + SPLIT) // SPLIT)  # a window may begin within a split
        most = max(most_tasks, splits)  # a tile is not cut up
        plans = [
            replace(plan, tasks=_widened(plan.tasks, min(plan.tiles.shape[1] * splits, most)))
            for plan in super().plans(queries, window, most_tasks)
        ]
        return plans * 2 if len(plans) == 1 and plans[0].tiles.shape[1] * splits > most_tasks else plans


def _widened(tasks: Tensor, width: int) -> Tensor:
    import torch  # noqa: PLC0415

    return torch.nn.functional.pad(tasks, (0, max(0, width - tasks.shape[1])))


def rehearsed_bytes(
    platform: Platform, forward: Callable[[StepInputs], Tensor], limits: StepLimits, *, eager: bool
) -> int:
    """Bytes of the device that the largest steps take, by running them.

    A step that is captured keeps what it takes, beside any that runs eagerly then.

    Args:
        platform: of the backend.
        forward: the forward pass, over caches with as many tokens as the largest step has.
        limits: of the steps that there will be.
        eager: whether nothing will be captured.
    """
    import torch  # noqa: PLC0415

    def run(lens: I32, kept: list[Tensor]) -> None:
        logits = forward(_on_device(platform, _step(lens, limits), limits))
        kept += [logits, best_tokens(torch, logits)]

    peaks = []
    with torch.inference_mode():
        for lens in (most_tokens(limits), np.ones(most_captured(limits), dtype=np.int32)):
            kept: list[Tensor] = []
            peaks.append(platform.peak_bytes(partial(run, lens, kept)))
    return max(peaks) if eager else sum(peaks) + kept[0].nbytes  # these are the logits of all graphs


def most_tokens(limits: StepLimits) -> I32:
    """Tokens of each sequence, i32[B], in the step that takes most: as many sequences as may be, most of them short.

    Each sequence has a last tile of queries, which takes as much whether it is full or not.
    """
    lens = np.ones(min(limits.max_rows, limits.max_tokens), dtype=np.int32)
    left = limits.max_tokens - len(lens)
    for i in range(len(lens)):
        lens[i] += min(left, limits.max_model_len - 1)
        left -= lens[i] - 1
    return lens


def _step(lens: I32, limits: StepLimits) -> StepInputs:
    """Sequences of so many tokens, none of which was there before, on the first slots of the cache.

    What lies there is asked for by nobody, so they may share blocks.
    """
    starts = np.cumsum([0, *lens], dtype=np.int32)
    num_tokens = starts[-1]
    blocks = starts[:-1, None] // BLOCK_SIZE + np.arange(-(-limits.max_model_len // BLOCK_SIZE), dtype=np.int32)
    attention = AttentionBatch(starts, lens, np.minimum(blocks, (num_tokens - 1) // BLOCK_SIZE))
    slots = np.arange(num_tokens, dtype=np.int32)
    positions = slots - np.repeat(starts[:-1], lens)
    return StepInputs(np.zeros_like(slots), positions, slots, attention, starts[1:] - 1)


def _on_device(platform: Platform, inputs: StepInputs, limits: StepLimits) -> StepInputs:
    step = uploaded(platform.device, inputs)
    attention = RehearsedBatch(*step.attention)
    attention.max_model_len = limits.max_model_len
    return step._replace(attention=attention)


def spare_bytes(
    platform: Platform, ranks: Ranks, forward: Callable[[StepInputs], Tensor], limits: StepLimits, *, eager: bool
) -> int:
    """What the weights and the largest steps leave free, on the rank's device where that is least, in whole MiB."""
    taken = rehearsed_bytes(platform, forward, limits, eager=eager)
    platform.synchronize()
    return min(ranks.each(max(0, platform.free_bytes() - taken) >> 20)) << 20
