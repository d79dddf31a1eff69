"""Link 5: steps as the Ascend backend runs them: buckets of graphs, and plans that take several launches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.ascend import attention
from kernels.ascend.backend import ops_on
from kernels.ascend.plan import SPLIT, plan_attention
from kernels.ascend.variant import AttentionVariant
from kernels.ops import AttentionBatch, BackendOptions, StepInputs, StepLimits
from kernels.spec import f32_tensor
from tests.support.ascend_links import link
from tools.ascend.emulation.platform import emulated_platform

pytestmark = link(5)

HEADS, KV_HEADS, HEAD_DIM, BLOCKS = 4, 2, 64, 300


class TinyModel:
    """One layer of attention: each token is its own query, key and value."""

    def __init__(
        self, *, eager: bool, max_rows: int, blocks: int = BLOCKS, max_model_len: int = 256, group: int = 1
    ) -> None:
        ops = ops_on(emulated_platform(), BackendOptions(dtype="float16", eager=eager))
        rng = np.random.default_rng(0)
        width = HEADS * HEAD_DIM
        embedding = ops.prepare_linear([f32_tensor(rng.standard_normal((50, width)))], None)
        cache = ops.memory.alloc_cache(blocks, 128, KV_HEADS, HEAD_DIM)

        def forward(inputs):
            x = ops.embed(inputs.token_ids, embedding).reshape(-1, HEADS, HEAD_DIM)
            ops.write_kv(cache, x[:, :KV_HEADS], x[:, KV_HEADS:], inputs.slots)
            q = x[:, :, None].expand(-1, -1, group, -1).reshape(len(x), -1, HEAD_DIM)
            attended = ops.paged_attention(q, cache, inputs.attention, HEAD_DIM**-0.5, None)[:, :HEADS]
            return ops.logits(attended.reshape(-1, width), inputs.logit_rows, embedding)

        self.run = ops.record(forward, StepLimits(max(max_rows, 128), max_rows, max_model_len))


def step(lengths, counts, seed=0):
    """Sequences of so many tokens, of which so many are new; each has blocks of its own."""
    rng = np.random.default_rng(seed)
    lens, counts = np.array(lengths, dtype=np.int32), np.array(counts, dtype=np.int32)
    blocks_of = -(-lens // 128)
    table = np.full((len(lens), blocks_of.max()), -1, dtype=np.int32)
    for row, first, count in zip(table, np.cumsum(blocks_of) - blocks_of, blocks_of, strict=True):
        row[:count] = np.arange(first, first + count)
    seqs = np.repeat(np.arange(len(lens)), counts)
    positions = np.concatenate([np.arange(n - new, n) for n, new in zip(lens, counts, strict=True)]).astype(np.int32)
    slots = (table[seqs, positions // 128] * 128 + positions % 128).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    rows = (starts[1:] - 1).astype(np.int32)
    token_ids = rng.integers(0, 50, len(seqs)).astype(np.int32)
    return StepInputs(token_ids, positions, slots, AttentionBatch(starts, lens, table), rows)


def whole(scores):
    return scores.rows(range(len(scores.best)))


def logits(model, *steps):
    return [whole(model.run(each)) for each in steps]


STEPS = (step([40, 3, 1], [40, 3, 1]), step([41, 4, 2], [1, 1, 1], seed=1), step([42, 5, 3], [1, 1, 1], seed=2))


@pytest.mark.parametrize("eager", [False, True])
def test_drafts_are_rows_like_any(eager, monkeypatch):
    """The bits of one token after the other, from one block into the next, and by a graph where there are graphs."""
    prompts, ids = step([2, 126], [2, 126]), np.array([7, 11, 12, 13, 14], dtype=np.int32)
    singles = [step([3, 127 + i], [1, 1])._replace(token_ids=ids[[0, 1 + i]]) for i in range(4)]
    drafts = step([3, 130], [1, 4])._replace(token_ids=ids, logit_rows=np.arange(5, dtype=np.int32))
    _, *wanted = logits(TinyModel(eager=True, max_rows=6), prompts, *singles)
    model = TinyModel(eager=eager, max_rows=6)
    logits(model, prompts)
    monkeypatch.setattr("kernels.ascend.attention.PROMPT_ROWS", None)  # no prompt is read from here on
    if not eager:
        monkeypatch.setattr(model.run, "_forward", lambda _: pytest.fail("not by a graph"))
    got = logits(model, drafts)[0]
    assert np.array_equal(got[0], wanted[0][0])
    for i, each in enumerate(wanted):
        assert np.array_equal(got[1 + i], each[1])


def test_more_sequences_than_a_block_has_slots():
    model = TinyModel(eager=False, max_rows=150)
    many = step(np.ones(140, dtype=int), [1] * 140)
    assert np.array_equal(logits(model, many)[0], logits(TinyModel(eager=True, max_rows=150), many)[0])


def test_there_are_no_graphs_for_more_sequences_than_the_cache_has_blocks():
    model = TinyModel(eager=False, max_rows=150, blocks=5)
    assert [bucket.rows for bucket in model.run._buckets] == [1, 2, 4, 5]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_plan_of_several_launches_gives_what_one_gives(monkeypatch, most):
    whole = logits(TinyModel(eager=True, max_rows=4), *STEPS)
    monkeypatch.setattr(attention, "MAX_TASKS", most)
    for one, other in zip(whole, logits(TinyModel(eager=True, max_rows=4), *STEPS), strict=True):
        assert np.array_equal(one, other)


def test_a_plan_is_cut_between_tiles():
    lens = np.array([5 * SPLIT, 1, 2 * SPLIT + 1, SPLIT, 7], dtype=np.int32)
    plan = plan_attention(np.arange(6, dtype=np.int32), lens)
    for most in (5, 6, 8, 100):
        parts = attention.launches(plan, most)
        assert sum(len(part.tile_seq) for part in parts) == 5
        assert max(len(part.task_tile) for part in parts) <= most
        for part in parts:
            assert sorted(part.order.tolist()) == list(range(len(part.task_tile)))
            assert np.array_equal(np.bincount(part.task_tile, minlength=len(part.tile_seq)), part.tile_splits)
        assert np.array_equal(np.concatenate([part.tile_seq for part in parts]), plan.tile_seq)
        assert np.array_equal(np.concatenate([part.task_split for part in parts]), plan.task_split)


@pytest.mark.parametrize("scores", ["fp32", "i32"])
@pytest.mark.parametrize("kv_heads", [1, 8, 32])
def test_a_launch_takes_no_more_scratch_memory_than_it_may(kv_heads, scores):
    """A tile of a context of 128k fits, and offsets of elements fit 32 bits."""
    for dim, group, queries in ((64, 1, 64), (256, 1, 64), (128, 4, 16), (256, 16, 1)):
        variant = AttentionVariant(kv_heads, group, dim, dim, "fp16", scores, queries)
        tasks = attention.most_tasks_of(variant)
        assert 131072 // SPLIT <= tasks <= attention.MAX_TASKS
        assert 4 * variant.partial_elements(tasks) <= attention.MAX_PARTIAL_BYTES
        assert tasks == attention.MAX_TASKS or 4 * variant.partial_elements(tasks + 1) > attention.MAX_PARTIAL_BYTES


def test_a_plan_too_large_for_a_graph_runs_eagerly(monkeypatch):
    monkeypatch.setattr(attention, "MAX_TASKS", 2)
    model = TinyModel(eager=False, max_rows=2, max_model_len=3 * SPLIT)
    long = step([2 * SPLIT + 2, 1], [1, 1])
    with torch.inference_mode():
        assert model.run._filled(step([SPLIT, 1], [1, 1])) is not None
        assert model.run._filled(long) is None
    eager = TinyModel(eager=True, max_rows=2, max_model_len=3 * SPLIT)
    assert np.array_equal(logits(model, long)[0], logits(eager, long)[0])


def test_nothing_is_waited_for_in_the_middle_of_a_prompt(monkeypatch):
    model = TinyModel(eager=True, max_rows=2)
    inputs = step([130], [20])._replace(logit_rows=np.zeros(0, dtype=np.int32))
    monkeypatch.setattr("kernels.ascend.recorded.fetched", lambda _: pytest.fail("waits for the device"))
    scores = model.run(inputs)
    assert scores.best.shape == (0,)


def test_fewer_than_all_sequences_of_a_graph_may_want_a_token():
    def some(model):
        model.run(STEPS[0])
        scores = model.run(STEPS[1]._replace(logit_rows=np.array([0, 2], dtype=np.int32)))
        return scores, whole(scores)

    model = TinyModel(eager=False, max_rows=4)
    assert [bucket.rows for bucket in model.run._buckets] == [1, 2, 4]
    (scores, rows), (_, eager) = some(model), some(TinyModel(eager=True, max_rows=4))
    assert np.array_equal(rows, eager)
    assert scores.best.tolist() == rows.argmax(axis=1).tolist()
    assert np.array_equal(scores.rows([1])[0], rows[1])
    assert not np.array_equal(rows[0], rows[1])
