"""One step's input, laid out for the operations: the only place that knows slot arithmetic."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.scheduler import ScheduledSeq

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BatchInput:
    """T tokens of B sequences, each with up to M blocks. Tokens of a sequence are adjacent, in order of position.

    Attributes:
        token_ids: i32[T].
        positions: i32[T], absolute, from 0.
        q_starts: i32[B+1]; tokens of sequence b are q_starts[b] to q_starts[b+1].
        kv_lens: i32[B], tokens in the cache once this step has written its own.
        block_table: i32[B,M], padded with -1.
        slots: i32[T], where each token's keys and values go: block * block_size + offset.
        logit_rows: i32[B'], which tokens' logits are wanted.
    """

    token_ids: I32
    positions: I32
    q_starts: I32
    kv_lens: I32
    block_table: I32
    slots: I32
    logit_rows: I32


def build_batch(plan: Seq[ScheduledSeq], block_size: int) -> BatchInput:
    """Lay out a non-empty plan.

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
    return BatchInput(
        token_ids=token_ids,
        positions=positions,
        q_starts=q_starts,
        kv_lens=starts + counts,
        block_table=block_table,
        slots=slots,
        logit_rows=(q_starts[1:] - 1)[completes],
    )
