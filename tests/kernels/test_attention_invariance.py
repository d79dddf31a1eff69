"""A query's attention is the same, bit for bit, alone, in any batch, in any chunk, over any blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.ops import AttentionBatch
from kernels.specs.attention import attention_run, make_attention_case
from tests.support.backends import TABLES, block_sizes, new_table

short = st.integers(1, 300).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total)))
# Over several segments of the native backend, at their borders and next to them; one token alone is shared out by them.
long = st.tuples(st.sampled_from([511, 512, 513, 1023, 1025, 1300, 2049]), st.integers(1, 5))
lengths = st.one_of(short, long)

NANS = [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0xFFFFFFFF]


def only(inputs, sequence, first_query, num_queries, block_size):
    """The same queries of one sequence, alone, in blocks of another size and order."""
    total = int(inputs["kv_lens"][sequence])
    num_new = int(inputs["q_starts"][sequence + 1] - inputs["q_starts"][sequence])
    end = int(np.cumsum(inputs["kv_lens"])[sequence])
    tokens = slice(end - total, end - num_new + first_query + num_queries)
    alone = make_attention_case(
        np.random.default_rng(block_size),
        [(tokens.stop - tokens.start, num_queries)],
        heads=inputs["q"].shape[1],
        kv_heads=inputs["k"].shape[1],
        head_dim=inputs["q"].shape[2],
        block_size=block_size,
        window=inputs["window"],
    )
    start = int(inputs["q_starts"][sequence]) + first_query
    return {**alone, "k": inputs["k"][tokens], "v": inputs["v"][tokens], "q": inputs["q"][start : start + num_queries]}


def attend(table, inputs):
    """Attention by new threads: three calls."""
    return attention_run(new_table(table), inputs)


@pytest.mark.parametrize("table", TABLES)
@given(data=st.data())
def test_attention_is_invariant(table, data):
    ops = TABLES[table]
    seqs = data.draw(st.lists(lengths, min_size=1, max_size=4))
    heads, kv_heads = data.draw(st.sampled_from([(1, 1), (3, 1), (6, 2), (4, 4)]))
    window = data.draw(st.sampled_from([None, 1, 40, 130]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    inputs = make_attention_case(rng, seqs, heads=heads, kv_heads=kv_heads, window=window)
    whole = attend(table, inputs)
    for sequence, (_, num_new) in enumerate(seqs):
        first = data.draw(st.integers(0, num_new - 1))
        count = data.draw(st.integers(1, num_new - first))
        block_size = data.draw(st.sampled_from(block_sizes(ops)))
        alone = attend(table, only(inputs, sequence, first, count, block_size))
        start = int(inputs["q_starts"][sequence]) + first
        np.testing.assert_array_equal(alone, whole[start : start + count])


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("seqs", [[(0, 0), (1024, 2)], [(700, 2), (600, 0), (1025, 1)], [(40, 1), (8, 0)]], ids=str)
def test_a_sequence_without_queries_is_nothing_to_the_others(table, seqs):
    """Also where there are as many queries as sequences, as in a step of one token for each."""
    inputs = make_attention_case(np.random.default_rng(0), seqs)
    got = attend(table, inputs)
    for sequence, (_, num_new) in enumerate(seqs):
        if num_new:
            start = int(inputs["q_starts"][sequence])
            alone = attend(table, only(inputs, sequence, 0, num_new, 16))
            np.testing.assert_array_equal(got[start : start + num_new], alone)


@pytest.mark.parametrize("table", TABLES)
def test_no_sequences_have_no_results(table):
    ops = new_table(table)
    cache = ops.memory.alloc_cache(2, 16, 1, 64)
    none = np.zeros(0, dtype=np.int32)
    batch = AttentionBatch(np.zeros(1, dtype=np.int32), none, none.reshape(0, 1))
    q = ops.memory.upload(np.zeros((0, 1, 64), dtype=np.float32))
    assert ops.memory.download(ops.paged_attention(q, cache, batch, 0.125, None)).shape == (0, 1, 64)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("bits", NANS, ids=hex)
def test_a_key_that_is_no_number_leaves_none_to_who_sees_it(table, bits):
    """Whatever bits it has, among few keys or many."""
    inputs = make_attention_case(np.random.default_rng(0), [(20, 20), (600, 2)])
    inputs["k"].view(np.uint32)[[3, 23], :, 5] = bits
    got = attend(table, inputs)
    assert np.isnan(got[3:]).all()
    assert np.isfinite(got[:3]).all()


@pytest.mark.parametrize("table", TABLES)
@given(data=st.data())
def test_what_a_query_does_not_see_is_nothing_to_it(table, data):
    """Neither an infinity nor a NaN, of a later token of its own chunk or from before its window.

    Who sees it shows it; but a key whose score is minus infinity has no weight.
    """
    total, num_new = data.draw(short)
    window = data.draw(st.sampled_from([None, 1, 40, 130]))
    heads, kv_heads = data.draw(st.sampled_from([(1, 1), (6, 2)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    inputs = make_attention_case(rng, [(total, num_new)], heads=heads, kv_heads=kv_heads, window=window)
    clean = attend(table, inputs)
    where, token = data.draw(st.sampled_from("kv")), data.draw(st.integers(0, total - 1))
    spoilt = {**inputs, where: inputs[where].copy()}
    column = data.draw(st.integers(0, inputs["k"].shape[2] - 1))
    bad = data.draw(st.sampled_from([0x7F800000, 0xFF800000, *NANS]))
    spoilt[where].view(np.uint32)[token, 0, column] = bad
    got = attend(table, spoilt)
    positions = np.arange(total - num_new, total)
    sees = (positions >= token) & (positions < token + (window or total))
    np.testing.assert_array_equal(got[~sees], clean[~sees])
    of_head = heads // kv_heads
    np.testing.assert_array_equal(got[:, of_head:], clean[:, of_head:])
    if where == "v" or bad in NANS:
        assert not np.isfinite(got[sees, :of_head, column]).any()
