"""Which queries see which splits of their context: the lists that ``paged_decode`` goes by, made in NumPy each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]

BLOCK_SIZE = 128
"""Tokens of a block of the cache."""
SPLIT = 1024
"""Tokens of a split of the context; splits begin at its multiples, whatever else is in the batch."""
NO_WINDOW = 2**30
"""More than any context has."""


@dataclass(frozen=True)
class AttentionPlan:
    """Tiles of adjacent queries, and the N pairs of a tile and a split that it sees.

    Attributes:
        tile_seq: i32[tiles], each tile's row of the block table.
        tile_query: i32[tiles], its first query among all of the step; tile_queries: i32[tiles], how many it has.
        tile_len: i32[tiles], how many tokens the first one sees if no window ends that: its position + 1.
        tile_task: i32[tiles], its first task; tile_splits: i32[tiles], how many it has, side by side in order.
        task_tile: i32[N]; task_split: i32[N], which split of the context.
        order: i32[N], in which the tasks are done: those with most tokens first, so that cores end together.
    """

    tile_seq: I32
    tile_query: I32
    tile_queries: I32
    tile_len: I32
    tile_task: I32
    tile_splits: I32
    task_tile: I32
    task_split: I32
    order: I32


def plan_attention(q_starts: I32, kv_lens: I32, *, queries: int = 1, window: int = NO_WINDOW) -> AttentionPlan:
    """The plan of a step: q_starts i32[B+1], kv_lens i32[B], as ``kernels.ops.AttentionBatch`` has them.

    A tile has up to ``queries`` queries, all of one sequence. A sequence's part of the plan does not depend on the
    others but for the numbers of its tiles and tasks.
    """
    counts = np.diff(q_starts)
    tiles_of = -(-counts // queries)
    tile_seq = np.repeat(np.arange(len(kv_lens)), tiles_of)
    within = (np.arange(len(tile_seq)) - (np.cumsum(tiles_of) - tiles_of)[tile_seq]) * queries
    tile_queries = np.minimum(counts[tile_seq] - within, queries)
    tile_len = kv_lens[tile_seq] - counts[tile_seq] + within + 1
    first = np.maximum(tile_len - window, 0) // SPLIT
    tile_splits = -(-(tile_len + tile_queries - 1) // SPLIT) - first
    tile_task = np.cumsum(tile_splits) - tile_splits
    task_tile = np.repeat(np.arange(len(tile_len)), tile_splits)
    task_split = np.arange(len(task_tile)) - tile_task[task_tile] + first[task_tile]
    begin = np.maximum(tile_len[task_tile] - window, task_split * SPLIT)
    end = np.minimum((tile_len + tile_queries - 1)[task_tile], (task_split + 1) * SPLIT)
    order = np.argsort(begin - end, kind="stable")
    arrays = (
        tile_seq, q_starts[tile_seq] + within, tile_queries, tile_len, tile_task, tile_splits,
        task_tile, task_split, order,
    )  # fmt: skip
    return AttentionPlan(*(array.astype(np.int32) for array in arrays))
