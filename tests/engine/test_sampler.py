"""The next token: each parameter does what it says, and a row never depends on its neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.errors import InvalidRequest
from engine.sampler import Sampler, SamplerState, logprobs_of
from engine.types import SamplingParams
from kernels.ops import DrawParams, HostScores
from kernels.reference.sampling import draw, highest, nucleus, scores_of

EOS = 4
finite = st.floats(-30, 30, width=32)
rows = hnp.arrays(np.float32, st.integers(5, 400), elements=finite)


def state(prompt=(), generated=(), **params):
    made = SamplerState(SamplingParams(max_tokens=100, **params), prompt)
    for token_id in generated:
        made.note(token_id)
    return made


def sampled_rows(rows, states, eos=(EOS,)):
    return Sampler(eos, draw).sample(scores_of(np.array(rows, dtype=np.float32)), states)


def sample(logits, *states):
    return [sampled.token_id for sampled in sampled_rows([logits] * len(states), states)]


def drawn(logits, uniforms, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """One token for each number in ``uniforms``."""
    count = len(uniforms)
    params = DrawParams(
        temperature=np.full(count, temperature),
        top_k=np.full(count, top_k, dtype=np.int32),
        top_p=np.full(count, top_p),
        min_p=np.full(count, min_p),
        uniform=np.asarray(uniforms, dtype=np.float64),
    )
    return draw(np.tile(np.asarray(logits, dtype=np.float32), (count, 1)), params)


def frequencies(logits, draws=4000, **params):
    """How often each token is drawn, over as many seeds."""
    tokens = drawn(logits, [state(seed=seed).uniform() for seed in range(draws)], **params)
    return np.bincount(tokens, minlength=len(logits)) / draws


@given(rows)
def test_greedy_takes_the_highest_and_the_lowest_id_on_a_tie(row):
    assert sample(row, state(temperature=0.0)) == [int(np.flatnonzero(row == row.max())[0])]


def test_draws_follow_the_softmax():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    # 4000 draws: the standard deviation of a frequency is below 0.008, so 0.03 is nearly four of them.
    np.testing.assert_allclose(frequencies(logits), [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_temperature_sharpens_and_flattens():
    logits = np.log([0.6, 0.3, 0.1])
    for temperature in (0.5, 2.0):
        wanted = np.array([0.6, 0.3, 0.1]) ** (1 / temperature)
        np.testing.assert_allclose(frequencies(logits, temperature=temperature), wanted / wanted.sum(), atol=0.03)


@pytest.mark.parametrize("temperature", [1e-45, 1e-300, 1e-9])
def test_a_tiny_temperature_is_greedy(temperature):
    assert sample([0.0, 3.0, 2.999], state(temperature=temperature)) == [1]


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.8}, {0, 1}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 0.61}, {0}),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.2}, {0, 1, 2}),
    ],
)
def test_filters_keep_exactly_what_they_say(params, allowed):
    # top_p 0.5 and 0.8 lie on borders of the cumulated probabilities; a hair of rounding decides, so stay off them.
    logits = np.log([0.5001, 0.3, 0.1499, 0.05])
    assert set(drawn(logits, np.linspace(0, 1 - 2**-53, 500), **params).tolist()) == allowed


@given(rows, st.integers(0, 450))
def test_highest_is_a_stable_sort(row, count):
    wanted = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
    assert highest(row.astype(np.float64), count).tolist() == wanted


@given(hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(1e-6, 1)), st.floats(0.01, 1.0))
def test_nucleus_is_the_smallest_set_that_reaches_top_p(weights, top_p):
    kept = nucleus(weights, top_p)
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    assert kept.tolist() == order[: len(kept)]
    assert weights[kept[:-1]].sum() < top_p * weights.sum() * (1 + 1e-12)  # a sum of the same in another order
    assert math.isclose(max(weights[kept].sum(), top_p * weights.sum()), weights[kept].sum(), rel_tol=1e-9)


def test_nucleus_beyond_the_first_guess():
    assert len(nucleus(np.ones(5000), 0.5)) == 2500


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(uniform):
    logits = np.array([-np.inf, 0.0, 1.0, -np.inf])
    assert drawn(logits, [uniform])[0] in {1, 2}


def test_logit_bias():
    assert sample([0.0, 1.0, 2.0], state(temperature=0.0, logit_bias=((0, 5.0), (2, -3.0)))) == [0]


def test_repetition_penalty_counts_prompt_and_answer():
    logits = [2.0, 1.9, -1.0, 0.0, 0.0]
    assert sample(logits, state(prompt=[0], temperature=0.0, repetition_penalty=1.5)) == [1]
    assert sample(logits, state(prompt=[0], generated=[1], temperature=0.0, repetition_penalty=1.5)) == [0]
    negative = [-1.0, -1.2, -9.0, -9.0, -9.0]
    assert sample(negative, state(prompt=[0], temperature=0.0, repetition_penalty=1.5)) == [1]


def test_frequency_and_presence_penalties_count_the_answer_alone():
    logits = [2.0, 1.2, 0.9, 0.0, 0.0]
    assert sample(logits, state(prompt=[0, 0, 0], temperature=0.0, frequency_penalty=1.0)) == [0]
    assert sample(logits, state(generated=[0], temperature=0.0, frequency_penalty=1.0)) == [1]
    assert sample(logits, state(generated=[0, 0, 1], temperature=0.0, frequency_penalty=0.6)) == [2]
    assert sample(logits, state(generated=[0, 0, 1], temperature=0.0, presence_penalty=0.5)) == [0]


def test_min_tokens_bans_every_end():
    logits = [0.0, 0.0, 1.0, 2.0, 3.0]
    waiting = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (3,)}
    assert sample(logits, state(generated=[1], **waiting)) == [2]
    assert sample(logits, state(generated=[1, 1], **waiting)) == [EOS]


@given(rows, st.integers(0, 20))
def test_logprobs(row, num_top):
    found = logprobs_of(row.astype(np.float64), 3, num_top)
    wide = row.astype(np.float128)
    exact = wide - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
    assert found.logprob == pytest.approx(float(exact[3]), abs=1e-9)
    assert [token for token, _ in found.top] == sorted(range(len(row)), key=lambda i: (-row[i], i))[:num_top]
    assert [value for _, value in found.top] == pytest.approx([float(exact[t]) for t, _ in found.top], abs=1e-9)


def test_logprobs_are_those_of_the_model_itself():
    biased = state(temperature=0.5, logit_bias=((0, 50.0),), logprobs=2, top_k=1)
    (sampled,) = sampled_rows(np.log([[0.2, 0.8]]), [biased])
    assert sampled.token_id == 0
    assert math.exp(sampled.logprobs.logprob) == pytest.approx(0.2, abs=1e-6)
    assert [token for token, _ in sampled.logprobs.top] == [1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_no_token_and_harms_nobody(bad):
    logits = np.zeros((2, 5), dtype=np.float32)
    logits[0, 2] = bad
    logits[1, 1] = 1.0
    states = [state(logprobs=1, presence_penalty=1.0), state(temperature=0.0)]
    assert [s and s.token_id for s in sampled_rows(logits, states)] == [None, 1]


def test_greedy_rows_leave_the_logits_alone():
    """The backend has found the highest already; a vocabulary of rows is not read again."""
    scores = HostScores(None, np.array([3, -1, 0], dtype=np.int32))
    found = Sampler([EOS], None).sample(scores, [state(temperature=0.0)] * 3)
    assert [s and s.token_id for s in found] == [3, None, 0]


def test_all_rows_that_draw_are_drawn_together():
    calls = []

    def noting(logits, params):
        calls.append((logits.copy(), params))
        return draw(logits, params)

    states = [state(), state(temperature=0.0), state(temperature=0.5, top_k=2**40, logit_bias=((1, 2.0),)), state()]
    logits = np.arange(20, dtype=np.float32).reshape(4, 5)
    logits[3, 0] = np.nan
    Sampler([EOS], noting).sample(scores_of(logits.copy()), states)
    ((given, params),) = calls
    np.testing.assert_array_equal(given, logits[[0, 2]] + np.array([[0], [2]]) * (np.arange(5) == 1))
    assert params.temperature.tolist() == [1.0, 0.5]
    assert params.top_k.tolist() == [0, 2**31 - 1]


def test_penalties_cannot_leave_float32():
    huge = np.array([3e38, -3e38, 0.0, 0.0, 0.0], dtype=np.float32)
    worst = {"repetition_penalty": 0.01, "logit_bias": ((0, 100.0),)}
    assert sample(huge, state(prompt=[0, 1], **worst), state(prompt=[1, 0], temperature=0.0, **worst)) == [0, 0]


@pytest.mark.parametrize("num_generated", [0, 1, 63, 64, 200])
def test_random_numbers_are_the_first_words_of_philox(num_generated):
    made = state(seed=-5, choice=3)
    made.uniform()
    made.num_generated = num_generated
    key = np.array([2**64 - 5, 3], dtype=np.uint64)
    word = int(np.random.Philox(key=key, counter=num_generated).random_raw())
    assert [made.uniform(), made.uniform()] == [(word >> 11) * 2.0**-53] * 2


def test_random_numbers_depend_on_seed_choice_and_position_alone():
    def numbers(**params):
        made = state(**params)
        out = []
        for _ in range(50):
            out.append(made.uniform())
            made.note(1)
        return out

    assert numbers(seed=5) == numbers(seed=5)
    distinct = {x for p in ({"seed": 5}, {"seed": 6}, {"seed": 5, "choice": 1}, {"seed": -1}) for x in numbers(**p)}
    assert len(distinct) == 200
    assert all(0 <= x < 1 for x in distinct)
    # 200 uniform numbers: their mean has a standard deviation of 0.02.
    assert abs(np.mean(list(distinct)) - 0.5) < 0.08


@given(hnp.arrays(np.float32, (4, 60), elements=finite), st.permutations(range(4)))
@settings(max_examples=50)
def test_rows_do_not_meet(logits, order):
    def states():
        return [
            state(seed=1, top_p=0.9, logprobs=2),
            state(prompt=[1, 2], seed=2, repetition_penalty=1.2, temperature=0.7),
            state(temperature=0.0),
            state(seed=3, top_k=4, min_p=0.1),
        ]

    together = sampled_rows(logits, states())
    shuffled = sampled_rows(logits[order], [states()[i] for i in order])
    alone = [sampled_rows(logits[i : i + 1], [states()[i]])[0] for i in range(4)]
    assert together == alone
    assert shuffled == [together[i] for i in order]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("frequency_penalty", 3.0),
        ("presence_penalty", -2.5),
        ("seed", 2**64),
        ("min_tokens", -1),
        ("min_tokens", 101),
        ("stop", ("",)),
        ("stop", ("x",) * 17),
        ("stop_token_ids", (1,) * 129),
        ("logit_bias", ((1, math.nan),)),
        ("logit_bias", ((1, 101.0),)),
        ("logprobs", 21),
    ],
)
def test_parameters_out_of_bounds_are_refused_by_name(field, value):
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{"max_tokens": 100, field: value})
    assert caught.value.param == ("top_logprobs" if field == "logprobs" else field)
