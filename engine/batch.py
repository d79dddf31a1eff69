"""One step's input, laid out for the operations: the only place that knows slot arithmetic."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from engine.scheduler import ScheduledSeq
from kernels.ops import AttentionBatch, StepInputs


def build_batch(plan: Seq[ScheduledSeq], block_size: int) -> StepInputs:
    """Lay out a non-empty plan, as NumPy arrays.

    The rows of ``logit_rows`` belong to the plan's sequences that ``completes``, in the plan's order.
    """
    counts = np.array([scheduled.count for scheduled in plan], dtype=np.int32)
    starts = np.array([scheduled.start for scheduled in plan], dtype=np.int32)
    q_starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    token_ids = np.concatenate([s.seq.token_ids[s.start : s.start + s.count] for s in plan]).astype(np.int32)
    owners = np.repeat(np.arange(len(plan), dtype=np.int32), counts)
    positions = np.arange(len(token_ids), dtype=np.int32) - q_starts[owners] + starts[owners]
    block_table = np.full((len(plan), max(len(s.seq.block_ids) for s in plan)), -1, dtype=np.int32)
    for row, scheduled in zip(block_table, plan, strict=True):
        row[: len(scheduled.seq.block_ids)] = scheduled.seq.block_ids
    slots = block_table[owners, positions // block_size] * block_size + positions % block_size
    completes = np.array([scheduled.completes for scheduled in plan])
    return StepInputs(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        attention=AttentionBatch(q_starts, starts + counts, block_table),
        logit_rows=(q_starts[1:] - 1)[completes],
    )
