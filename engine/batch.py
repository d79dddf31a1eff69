"""One step's input, laid out for the operations: the only place that knows slot arithmetic."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate

import numpy as np

from engine.scheduler import ScheduledSeq
from kernels.ops import I32, AttentionBatch, StepInputs


def build_batch(plan: Seq[ScheduledSeq], block_size: int) -> StepInputs:
    """Lay out a non-empty plan, as NumPy arrays, all i32 and of the shapes that ``StepInputs`` says.

    The rows of ``logit_rows`` are the ``num_rows`` that each of the plan's sequences takes, in the plan's order.

    Plain integers until the end, since most steps have one token of each sequence: that costs less than a dozen calls
    of NumPy, and a step of a prompt's thousand tokens takes a thousand times as long as this.
    """
    spans = [(each.seq, each.start, each.start + each.count + len(each.drafts)) for each in plan]
    token_ids = [token_id for seq, start, end in spans for token_id in seq.token_ids[start:end]]
    positions = [at for _, start, end in spans for at in range(start, end)]
    slots = [
        seq.block_ids[at // block_size] * block_size + at % block_size
        for seq, start, end in spans
        for at in range(start, end)
    ]
    q_starts = list(accumulate([end - start for _, start, end in spans], initial=0))
    kv_lens = [end for _, _, end in spans]
    logit_rows = [end - 1 for end, each in zip(q_starts[1:], plan, strict=True) if each.completes]
    if len(token_ids) < q_starts[-1] or any(each.num_scored for each in plan):  # the tokens that are missing are drafts
        token_ids, logit_rows = _with_more_rows(plan)
    where = AttentionBatch(_i32(q_starts), _i32(kv_lens), _block_table(plan))
    return StepInputs(_i32(token_ids), _i32(positions), _i32(slots), where, _i32(logit_rows))


def sampled_rows(plan: Seq[ScheduledSeq]) -> list[tuple[int, ScheduledSeq]]:
    """The row of the logits behind the last token of each sequence that has none left to compute."""
    starts = accumulate((each.num_rows for each in plan), initial=0)
    return [(start + each.num_scored, each) for start, each in zip(starts, plan, strict=False) if each.completes]


def _with_more_rows(plan: Seq[ScheduledSeq]) -> tuple[list[int], list[int]]:
    """The tokens of a step, each sequence's drafts behind its own, and the rows whose logits are wanted."""
    token_ids: list[int] = []
    logit_rows: list[int] = []
    for each in plan:
        token_ids += each.seq.token_ids[each.start : each.start + each.count]
        token_ids += each.drafts
        logit_rows += range(len(token_ids) - each.num_rows, len(token_ids))
    return token_ids, logit_rows


def _i32(numbers: list[int]) -> I32:
    return np.array(numbers, dtype=np.int32)


def _block_table(plan: Seq[ScheduledSeq]) -> I32:
    """Each sequence's blocks, padded with -1: i32[B,M]. A byte of 0xff is a quarter of a -1."""
    held = [scheduled.seq.block_ids for scheduled in plan]
    row_bytes = 4 * max(map(len, held))
    rows = b"".join([blocks.tobytes().ljust(row_bytes, b"\xff") for blocks in held])
    return np.frombuffer(rows, dtype=np.int32).reshape(len(plan), -1)
