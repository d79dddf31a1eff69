"""Where an answer is in its prediction, and what is worth a try: of known tokens, without an engine."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prediction import FIRST_DRAFTS, MOST_DRAFTS, NEAR, READ_AHEAD, RUN, Prediction

few_tokens = st.lists(st.integers(0, 3), min_size=1, max_size=60)


class Walk:
    """An answer of known tokens, and how an engine would come through it.

    Attributes:
        expected: tokens that came where they were expected, whether they were tried or not.
        tried, wasted: drafts, and those that were not the tokens that came; most: in one step.
    """

    def __init__(self, prediction, answer):
        self.prediction = Prediction(tuple(prediction))
        self.steps = self.expected = self.tried = self.wasted = self.most = 0
        left = list(answer)
        while left:
            drafts = self.prediction.drafts()[: len(left) - 1]
            self.prediction.note_tried(len(drafts))
            right = next((i for i, (a, b) in enumerate(zip(drafts, left, strict=False)) if a != b), len(drafts))
            for token in left[: right + 1]:
                self.expected += self.prediction._expected() == token
                self.prediction.note(token)
            del left[: right + 1]
            self.steps += 1
            self.tried += len(drafts)
            self.most = max(self.most, len(drafts))
            self.wasted += len(drafts) - right


TEXT = list(range(1000, 1600))


def test_a_right_prediction_takes_the_fewest_steps():
    walk = Walk(TEXT, TEXT)
    assert walk.steps <= 2 + len(TEXT) / (1 + MOST_DRAFTS)
    assert walk.most == MOST_DRAFTS
    assert (walk.wasted, walk.prediction.num_accepted, walk.prediction.num_rejected) == (0, len(TEXT), 0)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([*TEXT[:300], 1, *TEXT[301:]], id="one replaced"),
        pytest.param([*TEXT[:300], 1, 2, 3, *TEXT[300:]], id="some inserted"),
        pytest.param([*TEXT[:300], *TEXT[300 + NEAR - 1 :]], id="some left out"),
        pytest.param([1, 2, *TEXT], id="begun otherwise"),
        pytest.param([*TEXT[:300], *range(100), *TEXT[300:]], id="many inserted"),
        pytest.param([*TEXT[300:500], *TEXT[:300]], id="moved"),
        pytest.param([*TEXT[:100], *TEXT[500:]], id="many left out"),
        pytest.param([*TEXT[:200], *TEXT[:200], *TEXT[200:]], id="said twice"),
    ],
)
def test_what_follows_an_edit_is_found_again(answer):
    """After a token nearby, or ``RUN`` of them; where much is passed over, that is read first."""
    walk = Walk(TEXT, answer)
    new = len([token for token in answer if token < 1000])
    lost = new + 2 * RUN + len(TEXT) // READ_AHEAD
    assert walk.steps <= lost + 10 + len(answer) / (1 + MOST_DRAFTS)


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        ([*TEXT[:300], 1, *TEXT[301:]], 1),
        ([*TEXT[:300], 1, 2, 3, *TEXT[300:]], 3),
        ([*TEXT[:300], *TEXT[300 + NEAR - 1 :]], 0),
        ([*TEXT[:100], *TEXT[500:]], RUN - 1),
        ([*TEXT[:100], *TEXT[:100]], RUN - 1),
        ([*TEXT[:100], *TEXT[500 : 500 + RUN], 1, *TEXT[501 + RUN :]], RUN - 1 + 1),
        ([*TEXT[:100], TEXT[110], *TEXT[100:]], 0),
        ([*TEXT[:100], *TEXT[110 : 110 + RUN - 1], *TEXT[100:]], 0),
    ],
)
def test_how_long_nothing_is_tried(answer, lost):
    """Until a token of the right text comes nearby, or ``RUN`` of them farther off, if that has been read."""
    prediction = Prediction(tuple(TEXT))
    while prediction._num_read < len(TEXT) - RUN + 1:
        prediction._read_on()
    tries = []
    for token in answer:
        tries.append(bool(prediction.drafts()))
        prediction.note(token)
    assert tries.count(False) == lost


def test_of_several_places_the_next_one_counts():
    """Or, where none is left, the last."""
    run, one, two, three = ([base + i for i in range(40)] for base in (0, 100, 200, 300))
    run = run[:RUN]
    prediction = Prediction((*run, *one, *run, *two, *run, *three))
    expected = []
    for part in ([*run, *one[:5], 7000, 7001], run, [*two[:5], 7002], run, [*three, 7003], run):
        for token in part:
            prediction.note(token)
        expected.append(prediction.drafts()[:1])
    assert expected == [(), (two[0],), (), (three[0],), (), (three[0],)]


@given(prediction=few_tokens, answer=few_tokens)
def test_counts_are_of_the_prediction_s_own_tokens(prediction, answer):
    walk = Walk(prediction, answer)
    accepted, rejected = walk.prediction.num_accepted, walk.prediction.num_rejected
    assert accepted <= len(answer)
    assert accepted + rejected <= len(prediction)
    assert rejected <= walk.wasted


def test_what_came_once_is_not_rejected_later():
    """The answer begins as the prediction does, twice, and the second time goes another way."""
    prediction = Walk(TEXT[:100], [*TEXT[:100], *TEXT[:10], *range(30)]).prediction
    assert (prediction.num_accepted, prediction.num_rejected) == (100, 0)


@given(prediction=few_tokens, answer=few_tokens)
def test_drafts_are_a_piece_of_the_prediction(prediction, answer):
    known = Prediction(tuple(prediction))
    pieces = {tuple(prediction[a:b]) for a in range(len(prediction) + 1) for b in range(a, len(prediction) + 1)}
    for token in answer:
        assert known.drafts() in pieces
        assert len(known.drafts()) <= MOST_DRAFTS
        known.note(token)


@given(prediction=few_tokens, answer=few_tokens)
def test_a_wrong_prediction_costs_little(prediction, answer):
    """What is tried in vain is paid for by tokens that came as expected.

    A try that fails leaves a quarter of the trust, so failures in a row cost 4/3 of it; a token that comes as expected
    adds 8 at most, from 8 to 16.
    """
    walk = Walk(prediction, answer)
    assert walk.wasted <= 4 / 3 * (FIRST_DRAFTS + 8 * walk.expected)
    assert Walk([token + 100 for token in prediction], answer).tried <= FIRST_DRAFTS


def test_work_is_linear():
    """Each place of the prediction is read once, and so many a token at most."""
    prediction = Prediction(tuple(i % 7 for i in range(1000)))
    for count in range(1, 20):
        prediction.note(99)
        assert prediction._num_read == min(count * READ_AHEAD, 1000 - RUN + 1)
    assert sum(map(len, prediction._found.values())) == 1000 - RUN + 1
    assert max(map(len, prediction._found)) == RUN


def test_a_prediction_shorter_than_a_run():
    for length, answer in itertools.product((1, 2, 3), ([5, 6, 7], [0, 1, 2], [9] * 5)):
        Walk(range(5, 5 + length), answer)
