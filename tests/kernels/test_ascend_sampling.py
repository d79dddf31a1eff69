"""Link 5: what of a step's scores comes down from the device, and that tokens are those of whole rows all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.sampler import Sampler, SamplerState
from engine.types import SamplingParams
from kernels.ascend.sampling import DeviceScores
from kernels.ops import MOST_CANDIDATES, BackendOptions, Candidates, DrawParams, HostScores
from kernels.reference.sampling import draw, draw_among, scores_of
from kernels.resolve import BACKENDS
from tests.support.ascend_links import link
from tests.support.backends import DEVICES
from tools.ascend.emulation.registry import install

pytestmark = link(5, attention=False)

EOS = 4
DRAWS = {device: BACKENDS[device](BackendOptions()).draw for device in DEVICES}
VIEWS = {"aten::slice", "aten::detach", "aten::lift_fresh"}
"""Operations that only look at a tensor in another way, which torch has for every device."""


def on_device(logits, best=None, places=None):
    best = scores_of(logits).best if best is None else best
    return DeviceScores(torch.from_numpy(logits.copy()), best, places)


class FetchedBytes(TorchFunctionMode):
    """Counts what is read of tensors by NumPy."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, np.ndarray):
            self.total += result.nbytes
        assert func.__name__ not in {"tolist", "item", "__array__"}, "not counted"
        return result


@st.composite
def drawings(draw_from):
    """Rows of few different logits, some -inf, and parameters that cut them."""
    n, vocab = draw_from(st.integers(1, 5)), draw_from(st.integers(1, 40))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    logits = rng.integers(-draw_from(st.integers(0, 60)), 3, (n, vocab)).astype(np.float32)
    logits[rng.random(logits.shape) < draw_from(st.sampled_from([0.0, 0.3, 0.9]))] = -np.inf
    logits[np.arange(n), rng.integers(0, vocab, n)] = 1.0  # a row of -inf alone has no token
    params = DrawParams(
        temperature=rng.choice([0.3, 1.0, 1.9], n),
        top_k=draw_from(st.sampled_from([rng.integers(1, vocab + 4, n), np.ones(n)])).astype(np.int32),
        top_p=rng.choice([0.4, 0.95, 1.0], n),
        min_p=rng.choice([0.0, 0.0, 0.2], n),
        uniform=rng.choice([0.0, 1 - 2**-53, rng.random()], n),
    )
    return logits, params, rng


def ends_between_equals(row, top_k):
    ordered = np.sort(row)[::-1]
    return top_k < len(row) and ordered[top_k - 1] == ordered[top_k]


@pytest.mark.parametrize("device", DRAWS)
@given(drawings())
def test_a_draw_from_the_highest_is_the_draw_of_the_whole_row(device, given_rows):
    logits, params, rng = given_rows
    count = int(params.top_k.max()) + 1
    found = on_device(logits).highest(range(len(logits)), count)
    assert found.ids.shape == (len(logits), min(count, logits.shape[1]))
    shuffled = rng.permuted(np.tile(np.arange(found.ids.shape[1]), (len(logits), 1)), axis=1)
    found = Candidates(*(np.take_along_axis(part, shuffled, axis=1) for part in found))
    whole = DRAWS[device](logits.copy(), params)
    tokens = draw_among(found, params, DRAWS[device])
    for row, top_k, token, wanted in zip(logits, params.top_k, tokens, whole, strict=True):
        assert token == (-1 if ends_between_equals(row, top_k) else wanted)


def test_equal_logits_may_come_in_any_order_and_be_any():
    """What torch promises of them is nothing; the lower id goes first wherever that decides."""
    params = DrawParams(*(np.full(2, x) for x in (1.0, np.int32(3), 1.0, 0.0, 0.5)))
    logits = np.array([[2, 1, 1, 0], [2, 1, 1, 1]], dtype=np.float32)
    for ids in ([7, 5, 3, 9], [7, 3, 5, 9]):
        tokens = draw_among(Candidates(logits, np.array([ids, ids], dtype=np.int32)), params, draw)
        assert tokens.tolist() == [7, -1]
        high = DrawParams(params.temperature, params.top_k, params.top_p, params.min_p, np.full(2, 0.7))
        assert draw_among(Candidates(logits, np.array([ids, ids], dtype=np.int32)), high, draw).tolist() == [3, -1]


@pytest.mark.parametrize("top_k", [50, 255, MOST_CANDIDATES - 1])
@pytest.mark.parametrize("device", DRAWS)
def test_a_draw_from_the_highest_of_a_real_vocabulary(device, top_k):
    rng = np.random.default_rng(top_k)
    logits = (3 * rng.standard_normal((24, 151_936))).astype(np.float32)
    columns = {"top_p": rng.choice([0.8, 1.0], 24), "min_p": rng.choice([0.0, 0.01], 24), "uniform": rng.random(24)}
    params = DrawParams(temperature=np.full(24, 1.5), top_k=np.full(24, top_k, dtype=np.int32), **columns)
    tokens = draw_among(on_device(logits).highest(range(24), top_k + 1), params, DRAWS[device])
    assert tokens.tolist() == DRAWS[device](logits.copy(), params).tolist()


def state(**params):
    return SamplerState(SamplingParams(max_tokens=100, **params), [1, 2])


GREEDY = {"temperature": 0.0}
STATES = (
    GREEDY,
    {"top_k": 3, "seed": 1},
    {"top_k": 1, "seed": 2},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.05, "seed": 3},
    {"top_k": 3, "logprobs": 2, "seed": 4},
    {"top_k": 3, "presence_penalty": 1.0, "repetition_penalty": 1.3, "seed": 5},
    {"top_k": 3, "logit_bias": ((0, 3.0),), "seed": 6},
    {"top_k": 3, "min_tokens": 2, "seed": 7},
    {"top_k": 2**40, "seed": 8},
    {"top_p": 0.9, "seed": 9},
    {"temperature": 0.7, "seed": 10},
    {**GREEDY, "logprobs": 3},
    {**GREEDY, "logit_bias": ((2, 5.0),), "logprobs": 0},
    {**GREEDY, "min_tokens": 1},
)


@given(st.integers(0, 2**32), st.lists(st.sampled_from(STATES), min_size=1, max_size=8), st.integers(5, 40))
def test_the_sampler_takes_the_same_tokens_from_device_and_host(seed, params, vocab):
    """Integer logits, so that many rows are tied where top_k ends; one row is not finite."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 9, (len(params) + 1, vocab)).astype(np.float32)
    logits[-1, 3] = np.nan
    rows = [*params, {"top_k": 2}]
    wanted = Sampler([EOS], draw).sample(scores_of(logits.copy()), [state(**row) for row in rows])
    assert wanted[-1] is None
    assert Sampler([EOS], draw).sample(on_device(logits), [state(**row) for row in rows]) == wanted
    places = rng.permutation(len(rows) + 3)[: len(rows)].astype(np.int32)
    places.sort()
    scattered = np.full((len(rows) + 3, vocab), np.nan, dtype=np.float32)
    scattered[places] = logits
    of_places = on_device(scattered, scores_of(logits).best, places)
    assert Sampler([EOS], draw).sample(of_places, [state(**row) for row in rows]) == wanted


VOCAB = 1000
WHOLE = 4 * VOCAB


@pytest.mark.parametrize(
    ("special", "wanted"),
    [
        ({}, 0),
        ({5: {**GREEDY, "logprobs": 1}}, WHOLE),
        ({5: {**GREEDY, "logit_bias": ((1, 1.0),)}, 9: {**GREEDY, "logprobs": 1}}, 2 * WHOLE),
        ({5: {"temperature": 0.8}}, WHOLE),
        ({5: {"top_k": 20}, 6: {"top_k": 4, "top_p": 0.9}, 63: {"top_k": 7}}, 3 * 21 * 8),
        ({5: {"top_k": 20}, 6: {"top_k": 20, "logprobs": 0}}, 21 * 8 + WHOLE),
        ({5: {"top_k": 20, "frequency_penalty": 0.5}}, WHOLE),
        ({5: {"top_k": MOST_CANDIDATES - 1}}, 8 * MOST_CANDIDATES),
        ({5: {"top_k": MOST_CANDIDATES}}, WHOLE),
        ({0: {"top_k": 3}}, 4 * 8 + WHOLE),
        ({0: {"top_k": 3}, 1: {"top_k": 3}, 2: {"temperature": 0.5}}, 2 * 4 * 8 + 2 * WHOLE),
    ],
)
def test_of_a_mixed_step_only_what_it_needs_comes_down(special, wanted):
    """64 rows, of which the first has equal logits alone, so that top_k cannot be decided from its highest."""
    logits = np.random.default_rng(0).standard_normal((64, VOCAB)).astype(np.float32)
    logits[0] = 1.0
    scores = on_device(logits)
    states = [state(**special.get(row, GREEDY)) for row in range(64)]
    with FetchedBytes() as fetched:
        Sampler([EOS], draw).sample(scores, states)
    assert fetched.total == wanted


def test_an_end_that_has_been_waited_for_takes_no_row():
    waited = state(**GREEDY, min_tokens=1)
    waited.note(7)
    drawing = state(top_k=5, min_tokens=1)
    drawing.note(7)
    with FetchedBytes() as fetched:
        Sampler([EOS], draw).sample(on_device(np.arange(2 * VOCAB, dtype=np.float32).reshape(2, -1)), [waited, drawing])
    assert fetched.total == 6 * 8


@pytest.mark.parametrize("rows", [[], [1], [0, 1], [1, 2, 3], [0, 2], [0, 1, 3]])
def test_rows_are_those_asked_for_and_the_callers_own(rows):
    logits = np.arange(20, dtype=np.float32).reshape(4, 5)
    device, host = on_device(logits), HostScores(logits.copy(), None)
    for scores in (device, host):
        assert np.array_equal(scores.rows(rows), logits[rows])
        assert np.array_equal(scores.rows(tuple(rows)), logits[rows])
    device.rows(rows)[:] = 7
    assert np.array_equal(device.rows(range(4)), logits)


def test_the_host_copies_no_rows_that_lie_together():
    logits = np.zeros((4, 5), dtype=np.float32)
    assert all(np.shares_memory(HostScores(logits, None).rows(rows), logits) for rows in ([2], [1, 2], range(4)))


def test_each_operation_has_a_kernel_of_torch_npus():
    """So says what torch_npu registers as it is imported; what it computes takes a device."""
    install()
    called = set()

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    scores = on_device(np.zeros((4, 9), dtype=np.float32))
    with Noting():
        scores.rows([0, 2])
        scores.highest([1, 2], 3)
    assert called >= {"aten::topk", "aten::index_select", "aten::_to_copy"}
    for name in called - VIEWS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "PrivateUse1"), name
