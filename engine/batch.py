"""One step's input, laid out for the operations: the only place that knows slot arithmetic."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import chain

import numpy as np

from engine.scheduler import ScheduledSeq
from kernels.ops import I32, AttentionBatch, StepInputs


def build_batch(plan: Seq[ScheduledSeq], block_size: int) -> StepInputs:
    """Lay out a non-empty plan, as NumPy arrays.

    The rows of ``logit_rows`` belong to the plan's sequences that ``completes``, in the plan's order.
    """
    counts = np.array([scheduled.count for scheduled in plan], dtype=np.int32)
    starts = np.array([scheduled.start for scheduled in plan], dtype=np.int32)
    q_starts = np.zeros(len(plan) + 1, dtype=np.int32)
    np.cumsum(counts, out=q_starts[1:])
    chunks = (s.seq.token_ids[s.start : s.start + s.count] for s in plan)
    token_ids = np.fromiter(chain.from_iterable(chunks), dtype=np.int32, count=q_starts[-1])
    owners = np.repeat(np.arange(len(plan), dtype=np.int32), counts)
    positions = np.arange(len(token_ids), dtype=np.int32) + (starts - q_starts[:-1])[owners]
    block_table = _block_table(plan)
    slots = block_table[owners, positions // block_size] * block_size + positions % block_size
    completes = np.array([scheduled.completes for scheduled in plan])
    return StepInputs(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        attention=AttentionBatch(q_starts, starts + counts, block_table),
        logit_rows=(q_starts[1:] - 1)[completes],
    )


def _block_table(plan: Seq[ScheduledSeq]) -> I32:
    """Each sequence's blocks, padded with -1: i32[B,M]. A byte of 0xff is a quarter of a -1."""
    held = [scheduled.seq.block_ids for scheduled in plan]
    row_bytes = 4 * max(map(len, held))
    rows = b"".join([blocks.tobytes().ljust(row_bytes, b"\xff") for blocks in held])
    return np.frombuffer(rows, dtype=np.int32).reshape(len(plan), -1)
