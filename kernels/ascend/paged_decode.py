"""Paged grouped-query attention for the Ascend 910B, in Triton: a pass over splits of the context, and one to combine.

A query sees its context in splits of 1,024 tokens that begin at multiples of 1,024, so what is computed for a query
depends on its position and on nothing else: bitwise the same alone or among any others, in any order of tasks. One task
is a tile of queries, a head of keys and a split; tasks go round a fixed number of physical cores. A tile is one query
where sequences decode, and some adjacent ones of a sequence where a prompt is read.

Matrix and vector cores share global memory only. A task crosses it three times: scores Q Kᵀ of the whole split (cube ->
vector), weights exp(s - max) (vector -> cube), and the sum of weighted values (cube -> partial result), which is added
up in L0C over the split's blocks. Where a context ends costs no vector operation: a load that stops there fills the
rest of the tile. kernels/ascend/README.md draws it.

With keys and values as int8, a scale for each token and head, all products are of integers and exact. Queries come as
four addends, of 508 steps in all, and weights leave as two planes, a query's rows of the second below those of its
first.

Only triton-ascend's compiler and the Triton interpreter read this file: it is a list of two kernels, importable where
triton is installed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.ascend.int8_cache import ADDENDS, FINE, STEPS, as_int8, largest, nearest

SCORES_READY = tl.constexpr(0)
WEIGHTS_READY = tl.constexpr(1)
"""Flags between the cores of a group. Two suffice: scores of the next task are stored once this one's weights have been
waited for, and its weights once those scores have been."""
OPTIONS = {"disable_auto_inject_block_sync": True}
"""Of a launch: cores wait for each other where the kernel says so, and nowhere else."""


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        "q_scale_ptr",
        "block_table_ptr",
        "tile_seq_ptr",
        "tile_query_ptr",
        "tile_queries_ptr",
        "tile_len_ptr",
        "order_ptr",
        "task_tile_ptr",
        "task_split_ptr",
        "num_tasks_ptr",
        "q_query_stride",
        "q_head_stride",
        "window",
        "max_blocks",
    ]  # those lie one behind the other in an upload, and whether on multiples of 16 differs from step to step
)
def paged_attention_split(
    q_ptr, k_ptr, v_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr, block_table_ptr, tile_seq_ptr, tile_query_ptr,
    tile_queries_ptr, tile_len_ptr, order_ptr, task_tile_ptr, task_split_ptr, num_tasks_ptr, scores_ptr, weights_ptr,
    partial_ptr, stats_ptr, scale, q_query_stride, q_head_stride, window, max_blocks, KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, PLANES: tl.constexpr, HEAD_ROWS: tl.constexpr, ROWS: tl.constexpr,
    SUM_ROWS: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    CORES: tl.constexpr,
):  # fmt: skip
    """One split of the context for each task: unnormalised sum, maximum and sum of weights.

    Row r of a tile is head r % GROUP of its query r // GROUP.

    Shapes: q [KV_HEADS, queries, GROUP, K_DIM] by its strides; k and v [num_blocks, BLOCK, KV_HEADS, K_DIM or V_DIM],
    all f16 or all bf16. With PLANES of 2 they are i8: q [ADDENDS, KV_HEADS, queries, GROUP, K_DIM], q_scale
    f32[KV_HEADS, queries, GROUP], k_scale and v_scale f32[num_blocks, KV_HEADS, BLOCK]. block_table i32[B, max_blocks];
    tile_seq, tile_query, tile_queries, tile_len i32[tiles]: a tile's row of the table, its first query, how many it
    has, and how many tokens the first one sees; task_tile, task_split i32[num_tasks[0]], and order i32[num_tasks[0]],
    in which they are done; scores [CORES, ROWS, SPLIT] f32 or f16, or i32; weights [CORES, SUM_ROWS, SPLIT] of k's
    dtype; partial f32[num_tasks, KV_HEADS, SUM_ROWS, V_DIM], or i32; stats f32[num_tasks, KV_HEADS, PLANES + 1, ROWS]:
    maxima, sums, and with PLANES of 2 what one step of a row's first plane is worth.
    """
    core = tl.program_id(0)
    scores_ptr += core * (ROWS * SPLIT)
    weights_ptr += core * (SUM_ROWS * SPLIT)
    num_tasks = tl.load(num_tasks_ptr) * KV_HEADS
    index = core
    while index < num_tasks:  # with a for, the compiler takes two tasks at a time through the same scratch memory
        head = index % KV_HEADS
        slot = tl.load(order_ptr + index // KV_HEADS)
        task = slot * KV_HEADS + head
        tile = tl.load(task_tile_ptr + slot)
        start = tl.load(task_split_ptr + slot) * SPLIT
        queries = tl.load(tile_queries_ptr + tile)
        length = tl.load(tile_len_ptr + tile) - start
        table_ptr = block_table_ptr + tl.load(tile_seq_ptr + tile) * max_blocks + start // BLOCK
        begin = tl.maximum(length - window, 0)
        end = tl.minimum(length + queries - 1, SPLIT)
        q_at = tl.load(tile_query_ptr + tile) * q_query_stride + head * q_head_stride
        store_scores(
            q_ptr + q_at, q_head_stride * KV_HEADS, k_ptr, table_ptr, scores_ptr, begin, end, head, queries * GROUP,
            KV_HEADS, PLANES, ROWS, K_DIM, BLOCK, SPLIT,
        )  # fmt: skip
        tl.sync_block_set("cube", "vector", SCORES_READY)
        tl.sync_block_wait("cube", "vector", SCORES_READY)
        stats_at = task * ((PLANES + 1) * ROWS)
        if PLANES == 2:
            k_scales = token_scales(k_scale_ptr, table_ptr, begin, end, head, KV_HEADS, BLOCK, SPLIT)
            v_scales = token_scales(v_scale_ptr, table_ptr, begin, end, head, KV_HEADS, BLOCK, SPLIT)
        for query in range(0, queries if QUERIES > 1 else 1):
            row = query * GROUP
            if PLANES == 2:
                store_weight_planes(
                    scores_ptr + row * SPLIT, weights_ptr + 2 * row * SPLIT,
                    stats_ptr + stats_at + row, q_scale_ptr + q_at // K_DIM + row, k_scales, v_scales,
                    scale, length + query - window, length + query, GROUP, HEAD_ROWS, ROWS, SPLIT,
                )  # fmt: skip
            else:
                store_weights(
                    scores_ptr + row * SPLIT, weights_ptr + row * SPLIT,
                    stats_ptr + stats_at + row, scale, length + query - window, length + query,
                    GROUP, HEAD_ROWS, ROWS, SPLIT,
                )  # fmt: skip
        tl.sync_block_set("vector", "cube", WEIGHTS_READY)
        tl.sync_block_wait("vector", "cube", WEIGHTS_READY)
        store_sums(
            weights_ptr, v_ptr, table_ptr, partial_ptr + task * (SUM_ROWS * V_DIM), begin, end, head,
            queries * (PLANES * GROUP), KV_HEADS, SUM_ROWS, V_DIM, BLOCK, SPLIT,
        )  # fmt: skip
        index += CORES


@triton.jit  # type: ignore[untyped-decorator]
def store_scores(
    q_ptr, q_addend_stride, k_ptr, table_ptr, scores_ptr, begin, end, head, num_rows,
    KV_HEADS: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, K_DIM: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Q Kᵀ of the blocks from token begin to token end of a split: q [num_rows, K_DIM] -> scores [ROWS, SPLIT].

    The last block is taken whole: scores beyond its end are of whatever lies there, and are never read.
    """
    rows = tl.arange(0, ROWS)
    tokens = tl.arange(0, BLOCK)
    dims = tl.arange(0, K_DIM)
    real = rows < num_rows
    q_ptr += rows[:, None] * K_DIM + dims[None, :]
    q = tl.load(q_ptr, mask=real[:, None], other=0)
    if PLANES == 2:
        tl.static_assert(ADDENDS == 4)
        q1 = tl.load(q_ptr + q_addend_stride, mask=real[:, None], other=0)
        q2 = tl.load(q_ptr + 2 * q_addend_stride, mask=real[:, None], other=0)
        q3 = tl.load(q_ptr + 3 * q_addend_stride, mask=real[:, None], other=0)
    for j in range(begin // BLOCK, (end + BLOCK - 1) // BLOCK):
        k_at = tl.load(table_ptr + j).to(tl.int64) * (BLOCK * KV_HEADS * K_DIM) + head * K_DIM
        k_at = k_ptr + k_at + tokens[:, None] * (KV_HEADS * K_DIM) + dims[None, :]
        k = tl.trans(tl.load(k_at))
        s = tl.dot(q, k)
        if PLANES == 2:
            s = tl.dot(q1, k, s, out_dtype=tl.int32)
            s = tl.dot(q2, k, s, out_dtype=tl.int32)
            s = tl.dot(q3, k, s, out_dtype=tl.int32)
        s_at = scores_ptr + j * BLOCK + rows[:, None] * SPLIT + tokens[None, :]
        tl.store(s_at, s.to(scores_ptr.dtype.element_ty), mask=real[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def store_weights(
    scores_ptr, weights_ptr, stats_ptr, scale, begin, end,
    GROUP: tl.constexpr, HEAD_ROWS: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One query's scores [GROUP, SPLIT] -> exp(s - max) where begin <= token < end, else 0; their maximum and sum.

    A query that sees nothing of the split has weights of 0 and a maximum that no other's weights are changed by.
    """
    heads = tl.arange(0, HEAD_ROWS)
    tokens = tl.arange(0, SPLIT)
    real = heads < GROUP
    seen = (tokens >= begin) & (tokens < end)
    at = heads[:, None] * SPLIT + tokens[None, :]
    s = tl.load(scores_ptr + at, mask=real[:, None] & seen[None, :], other=float("-inf")).to(tl.float32) * scale
    most = tl.maximum(tl.max(s, 1), -1.0e30, propagate_nan=tl.PropagateNan.ALL)
    weights = tl.exp(s - most[:, None])
    tl.store(weights_ptr + at, weights.to(weights_ptr.dtype.element_ty), mask=real[:, None])
    tl.store(stats_ptr + heads, most, mask=real)
    tl.store(stats_ptr + ROWS + heads, tl.sum(weights, 1), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def token_scales(
    scale_ptr, table_ptr, begin, end, head, KV_HEADS: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """Scales f32[SPLIT] of a split's tokens for a head of keys, by block table; of blocks that nobody sees any."""
    blocks = tl.arange(0, SPLIT // BLOCK)
    scales = tl.zeros([SPLIT], tl.float32)
    for _ in range(0, tl.minimum(end, 1)):  # once: else both axes reach all tiles, which vector cores do not share then
        known = blocks < (end + BLOCK - 1) // BLOCK
        at = (tl.maximum(tl.load(table_ptr + blocks, mask=known, other=0), 0) * KV_HEADS + head) * BLOCK
        scales = tl.reshape(tl.load(scale_ptr + at[:, None] + tl.arange(0, BLOCK)[None, :]), [SPLIT])
    return scales


@triton.jit  # type: ignore[untyped-decorator]
def store_weight_planes(
    scores_ptr, weights_ptr, stats_ptr, q_scale_ptr, k_scales, v_scales, scale, begin, end,
    GROUP: tl.constexpr, HEAD_ROWS: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One query's scores i32[GROUP, SPLIT] -> exp(s - max) times the values' scales, i8[2, GROUP, SPLIT].

    A weight is (first plane + second / FINE) steps, off by half of a step of the second at most; what its row's step is
    comes third in the statistics. Sums are of weights before they were rounded, without the values' scales. What the
    query does not see has a score of 1, times -inf. A value whose scale is not finite makes its score NaN, and by that
    the sum: int8 has no NaN.
    """
    tokens = tl.arange(0, SPLIT)
    seen = (tokens >= begin) & (tokens < end)
    k_scales = tl.where(seen, k_scales + v_scales * 0.0, float("-inf"))
    v_scales = tl.where(seen, v_scales, 0.0)
    heads = tl.arange(0, HEAD_ROWS)
    real = heads < GROUP
    at = heads[:, None] * SPLIT + tokens[None, :]
    q_scale = tl.load(q_scale_ptr + heads, mask=real, other=1.0) * scale
    s = tl.load(scores_ptr + at, mask=real[:, None] & seen[None, :], other=1).to(tl.float32)
    s = s * q_scale[:, None] * k_scales[None, :]
    most = tl.maximum(tl.max(s, 1), -1.0e30, propagate_nan=tl.PropagateNan.ALL)
    weights = tl.exp(s - most[:, None])
    tl.store(stats_ptr + heads, most, mask=real)
    tl.store(stats_ptr + ROWS + heads, tl.sum(weights, 1), mask=real)
    weights = weights * v_scales[None, :]
    step = largest(weights) / STEPS
    tl.store(stats_ptr + 2 * ROWS + heads, step, mask=real)
    steps = weights * (1.0 / step)[:, None]
    coarse = nearest(steps)
    tl.store(weights_ptr + at, as_int8(coarse), mask=real[:, None])
    tl.store(weights_ptr + GROUP * SPLIT + at, as_int8(nearest((steps - coarse) * FINE)), mask=real[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def store_sums(
    weights_ptr, v_ptr, table_ptr, partial_ptr, begin, end, head, num_rows,
    KV_HEADS: tl.constexpr, ROWS: tl.constexpr, V_DIM: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Weights [ROWS, SPLIT] times the values of those blocks, added up by position: partial [num_rows, V_DIM]."""
    rows = tl.arange(0, ROWS)
    tokens = tl.arange(0, BLOCK)
    dims = tl.arange(0, V_DIM)
    real = rows < num_rows
    sums = tl.zeros([ROWS, V_DIM], partial_ptr.dtype.element_ty)
    for j in range(begin // BLOCK, (end + BLOCK - 1) // BLOCK):
        v_at = tl.load(table_ptr + j).to(tl.int64) * (BLOCK * KV_HEADS * V_DIM) + head * V_DIM
        v_at = v_ptr + v_at + tokens[:, None] * (KV_HEADS * V_DIM) + dims[None, :]
        known = (tokens >= begin - j * BLOCK) & (tokens < end - j * BLOCK)
        v = tl.load(v_at, mask=known[:, None], other=0)
        w_at = weights_ptr + j * BLOCK + rows[:, None] * SPLIT + tokens[None, :]
        sums = tl.dot(tl.load(w_at, mask=real[:, None], other=0), v, sums, out_dtype=partial_ptr.dtype.element_ty)
    tl.store(partial_ptr + rows[:, None] * V_DIM + dims[None, :], sums, mask=real[:, None])


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        "sink_ptr",
        "tile_query_ptr",
        "tile_queries_ptr",
        "tile_task_ptr",
        "tile_splits_ptr",
        "num_tiles_ptr",
        "out_query_stride",
        "out_head_stride",
    ]
)
def paged_attention_combine(
    partial_ptr,
    stats_ptr,
    sink_ptr,
    tile_query_ptr,
    tile_queries_ptr,
    tile_task_ptr,
    tile_splits_ptr,
    num_tiles_ptr,
    out_ptr,
    out_query_stride,
    out_head_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PLANES: tl.constexpr,
    HEAD_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    V_DIM: tl.constexpr,
    HAS_SINK: tl.constexpr,
    CORES: tl.constexpr,
):
    """The splits of each query and head of keys, added up in order of position.

    Shapes: partial, stats as above; sink f32[KV_HEADS, GROUP], for each head of queries a logit that takes part in the
    sum of weights and has no value, read with HAS_SINK; tile_task, tile_splits i32[num_tiles[0]]: a tile's first task,
    and how many it has, one after the other; out [KV_HEADS, queries, GROUP, V_DIM] by its strides.
    """
    core = tl.program_id(0)
    heads = tl.arange(0, HEAD_ROWS)
    dims = tl.arange(0, V_DIM)
    real = heads < GROUP
    num_tiles = tl.load(num_tiles_ptr) * KV_HEADS
    for index in range(core, num_tiles, CORES):
        tile = index // KV_HEADS
        head = index % KV_HEADS
        first = tl.load(tile_task_ptr + tile) * KV_HEADS + head
        for query in range(0, tl.load(tile_queries_ptr + tile)):
            rows = query * GROUP + heads
            most = tl.full([HEAD_ROWS], -1.0e30, tl.float32)
            total = tl.zeros([HEAD_ROWS], tl.float32)
            if HAS_SINK:
                most = tl.load(sink_ptr + head * GROUP + heads, mask=real, other=0.0)
                total += 1.0
            sums = tl.zeros([HEAD_ROWS, V_DIM], tl.float32)
            for split in range(0, tl.load(tile_splits_ptr + tile)):
                task = first + split * KV_HEADS
                stats = stats_ptr + task * ((PLANES + 1) * ROWS) + rows
                its_most = tl.load(stats, mask=real, other=0.0)
                its_total = tl.load(stats + ROWS, mask=real, other=0.0)
                at = task * (SUM_ROWS * V_DIM) + PLANES * query * (GROUP * V_DIM)
                at = partial_ptr + at + heads[:, None] * V_DIM + dims[None, :]
                its_sums = tl.load(at, mask=real[:, None], other=0).to(tl.float32)
                if PLANES == 2:
                    low = tl.load(at + GROUP * V_DIM, mask=real[:, None], other=0).to(tl.float32)
                    step = tl.load(stats + 2 * ROWS, mask=real, other=0.0)
                    its_sums = (its_sums + low / FINE) * step[:, None]
                larger = tl.maximum(most, its_most, propagate_nan=tl.PropagateNan.ALL)
                kept = tl.exp(most - larger)
                added = tl.exp(its_most - larger)
                sums = sums * kept[:, None] + its_sums * added[:, None]
                total = total * kept + its_total * added
                most = larger
            out = (tl.load(tile_query_ptr + tile) + query) * out_query_stride + head * out_head_stride
            out = out_ptr + out + heads[:, None] * V_DIM + dims[None, :]
            tl.store(out, (sums / total[:, None]).to(out_ptr.dtype.element_ty), mask=real[:, None])
