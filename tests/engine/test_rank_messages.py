"""Orders between ranks: they arrive as they were given, and what is none is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rank_messages import decode_order, encode_copies, encode_step
from engine.wire import BadFrame, FrameReader
from kernels.ops import AttentionBatch, StepInputs


def payload_of(frame):
    (payload,) = FrameReader().feed(frame)
    return payload


def i32(*numbers):
    return np.array(numbers, dtype=np.int32)


def step(counts, num_blocks, num_rows, first=0):
    total = sum(counts)
    numbers = np.arange(first, first + total, dtype=np.int32)
    table = np.arange(len(counts) * num_blocks, dtype=np.int32).reshape(-1, num_blocks) - 1
    where = AttentionBatch(i32(*np.cumsum([0, *counts])), i32(*counts) + 7, table)
    return StepInputs(numbers, numbers + 1, numbers * 3, where, numbers[:num_rows])


def arrays(inputs):
    return [inputs.token_ids, inputs.positions, inputs.slots, *inputs.attention, inputs.logit_rows]


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    num_blocks=st.integers(1, 9),
    num_rows=st.integers(0, 6),
    first=st.integers(0, 2**29),
)
def test_a_step_arrives_as_it_was(counts, num_blocks, num_rows, first):
    sent = step(counts, num_blocks, num_rows, first)
    got = decode_order(payload_of(encode_step(sent)))
    for one, other in zip(arrays(sent), arrays(got), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
        assert other.flags.writeable, "torch warns of arrays that are not"


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))))
def test_copies_arrive_in_order(copies):
    assert decode_order(payload_of(encode_copies(copies))) == copies


GOOD = payload_of(encode_step(step([3, 1], 2, 2)))


@pytest.mark.parametrize(
    "bad",
    [b"", b"abc", GOOD[:-4], GOOD + bytes(4), i32(9, 1, 1).tobytes(), i32(1, 5).tobytes(), i32(2, 5).tobytes(),
     i32(1, -1, 0, 0, 3, 0, 0, 0, 0).tobytes()],
)  # fmt: skip
def test_what_is_no_order_is_refused(bad):
    with pytest.raises(BadFrame):
        decode_order(bad)
