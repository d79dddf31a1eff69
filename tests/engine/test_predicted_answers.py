"""Answers with a prediction: trying what comes next there changes when tokens come, never which.

That no bit of any answer changes, in company, is ``test_invariance``'s and, for schedules, ``test_schedules``'.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engine.block_pool import BlockPool
from engine.config import CacheConfig, SchedulerConfig
from engine.detokenizer import IncrementalDetokenizer
from engine.engine import Engine
from engine.errors import InvalidRequest
from engine.grammar import AnswerGrammar
from engine.prediction import FIRST_DRAFTS, MOST_DRAFTS, Prediction
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.types import FinishReason, GenerateRequest, SamplingParams
from kernels.reference.sampling import scores_of
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.echo_model import EchoRunner, expected_tokens
from tests.support.grammars import lark
from tests.support.tiny_models import tiny_engine
from tests.support.workloads import random_workload, run_workload

PROMPT = [72, 101, 108, 108, 111]


@pytest.fixture(scope="module")
def engine():
    return tiny_engine("tiny-mistral", max_model_len=200, max_num_seqs=4)


def deltas_of(engine, *requests):
    """Of all requests, in order; and the steps that they took."""
    for request in requests:
        engine.submit(request)
    before, deltas = engine.stats().steps, []
    while engine.has_work:
        deltas += engine.step().deltas
        engine.pool.check(engine.sequences.values())
        assert all(seq.num_generated == 0 or seq.num_remaining == 1 for seq in engine.sequences.values())
    assert engine.pool.num_used == 0
    return deltas, engine.stats().steps - before


def outcome(deltas):
    """All that a request's deltas say, whatever the steps they came in."""
    return (
        [token for delta in deltas for token in delta.token_ids],
        [entry for delta in deltas for entry in delta.logprobs or ()],
        "".join(delta.text for delta in deltas),
        deltas[-1].finish,
        deltas[-1].error,
    )


def both(engine, prediction, grammar="", **sampling):
    """(deltas, steps) without a prediction and with it: that they say the same is asserted."""
    params = SamplingParams(**{"max_tokens": 60, "temperature": 0.0, "ignore_eos": True, **sampling})
    plain = deltas_of(engine, GenerateRequest("r", PROMPT, params, grammar=grammar))
    tokens = outcome(plain[0])[0]
    foretold = tuple(prediction(tokens))
    helped = deltas_of(engine, GenerateRequest("r", PROMPT, params, grammar=grammar, prediction_ids=foretold))
    assert outcome(helped[0]) == outcome(plain[0])
    return plain, helped


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"logprobs": 3},
        {"temperature": 1.2, "seed": 5, "logprobs": 0},
        {"temperature": 1.0, "top_k": 4, "frequency_penalty": 1.0},
        {"repetition_penalty": 1.5, "presence_penalty": -0.5, "logit_bias": ((70, 4.0),)},
        {"min_tokens": 30, "ignore_eos": False, "logit_bias": ((258, 20.0), (1, 20.0))},
        {"grammar": lark("start: /[a-c]{50}/")},
        {"grammar": lark("start: /[a-c]{50}/"), "temperature": 1.5, "seed": 3, "logprobs": 2},
    ],
)
def test_a_right_prediction_saves_steps_and_nothing_else(engine, sampling):
    (_, steps), (deltas, fewer) = both(engine, lambda tokens: tokens, **sampling)
    usage = deltas[-1].usage
    assert fewer <= 2 + steps / (1 + FIRST_DRAFTS)
    assert max(len(delta.token_ids) for delta in deltas) == 1 + MOST_DRAFTS
    assert (usage.accepted_tokens, usage.rejected_tokens) == (usage.completion_tokens, 0)
    if "logprobs" in sampling:
        assert all([entry.token_id for entry in delta.logprobs] == delta.token_ids for delta in deltas)
    else:
        assert all(delta.logprobs is None for delta in deltas)


def test_a_wrong_prediction_is_tried_once(engine):
    (_, steps), (deltas, same) = both(engine, lambda tokens: [token ^ 1 for token in tokens])
    assert steps - 1 <= same <= steps
    assert deltas[-1].usage.accepted_tokens <= 5
    assert FIRST_DRAFTS <= deltas[-1].usage.rejected_tokens <= 3 * FIRST_DRAFTS


def test_a_stop_string_amid_drafts_ends_the_answer(engine):
    text = outcome(both(engine, lambda tokens: tokens)[0][0])[2]
    for place in (7, 20, 33):
        _, (deltas, _) = both(engine, lambda tokens: [*tokens, 0, 0, 0], stop=(text[place : place + 2],))
        assert deltas[-1].finish is FinishReason.STOP


def test_no_more_is_tried_than_the_answer_may_have(engine, monkeypatch):
    """Not even where prompt and answer fill the context; all of the prediction comes, and none of it beyond."""
    tried = []
    real = Prediction.note_tried
    monkeypatch.setattr(Prediction, "note_tried", lambda self, count: tried.append(count) or real(self, count))
    for max_tokens in (1, 2, 5, 18, 200 - len(PROMPT)):
        tried.clear()
        _, (deltas, _) = both(engine, lambda tokens: [*tokens, *tokens], max_tokens=max_tokens)
        assert deltas[-1].usage.completion_tokens == max_tokens
        assert sum(tried) < max_tokens
        assert deltas[-1].usage.rejected_tokens == 0


def test_answers_of_one_prompt_share_a_prediction(engine):
    params = [SamplingParams(max_tokens=30, ignore_eos=True, seed=4, choice=choice, logprobs=1) for choice in range(4)]
    plain = [deltas_of(engine, GenerateRequest("r", PROMPT, each))[0] for each in params]
    foretold = tuple(outcome(plain[2])[0])
    deltas, _ = deltas_of(
        engine,
        *(GenerateRequest(f"r{i}", PROMPT, each, prediction_ids=foretold) for i, each in enumerate(params)),
    )
    for i, each in enumerate(plain):
        assert outcome([delta for delta in deltas if delta.request_id == f"r{i}"]) == outcome(each)


def test_rows_for_drafts_are_no_places_for_sequences():
    engine = tiny_engine("tiny-mistral", max_model_len=200, max_num_seqs=2)
    for i in range(5):
        engine.submit(GenerateRequest(f"r{i}", PROMPT, SamplingParams(max_tokens=9, ignore_eos=True)))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 3)


def test_a_client_leaves_amid_drafts(engine):
    params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    tokens = outcome(deltas_of(engine, GenerateRequest("r", PROMPT, params))[0])[0]
    for num_steps in range(1, 5):
        engine.submit(GenerateRequest("r", PROMPT, params, prediction_ids=tuple(tokens)))
        for _ in range(num_steps):
            engine.step()
        engine.abort("r")
        engine.pool.check([])
        assert engine.pool.num_used == 0


def test_ids_beyond_the_vocabulary_are_refused(engine):
    for wrong in (-1, 259):
        with pytest.raises(InvalidRequest) as caught:
            engine.submit(GenerateRequest("r", PROMPT, SamplingParams(max_tokens=3), prediction_ids=(1, wrong)))
        assert caught.value.param == "prediction"
    assert not engine.has_work


def test_a_grammar_that_fails_amid_drafts_fails_where_it_would_have(engine, monkeypatch):
    real_accept, real_allowed = AnswerGrammar.accept, AnswerGrammar.allowed
    for method, place in itertools.product(("accept", "allowed"), (1, 8, 20)):
        calls: dict[AnswerGrammar, int] = {}

        def accept(self, token_id, method=method, place=place, calls=calls):
            real_accept(self, token_id)
            calls[self] = calls.get(self, 0) + 1
            if method == "accept" and calls[self] == place:
                self.failure = "too much"

        def allowed(self, vocab_size, method=method, place=place, calls=calls):
            found = real_allowed(self, vocab_size)
            if method == "allowed" and calls.get(self, 0) == place:
                self.failure = "too much"
            return None if self.failure else found

        monkeypatch.setattr(AnswerGrammar, "accept", accept)
        monkeypatch.setattr(AnswerGrammar, "allowed", allowed)
        _, (deltas, _) = both(engine, lambda tokens: [*tokens, *tokens], grammar=lark("start: /[a]{50}/"))
        assert deltas[-1].error.code == "grammar_failed"
        assert deltas[-1].token_ids == [], "what came before is not part of the error, which may be all that is told"
        assert sum(len(delta.token_ids) for delta in deltas) == place


class NotANumber(EchoRunner):
    """Where the context has so many tokens, or holds a certain one in its answer."""

    def __init__(self, cache, length, bad_token):
        super().__init__(cache)
        self._length, self._bad_token = length, bad_token

    def forward(self, batch):
        logits = np.array(super().forward(batch).rows(range(len(batch.logit_rows))))
        for row, query in enumerate(batch.logit_rows):
            if batch.positions[query] + 1 == self._length or batch.token_ids[query] == self._bad_token:
                logits[row, 3] = np.nan
        return scores_of(logits)


def echo_engine(runner=None, num_blocks=40, **limits):
    cache = CacheConfig(num_blocks, 4)
    config = SchedulerConfig(**{"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 100, **limits})
    return Engine(runner or EchoRunner(cache), ByteTokenizer(), (), config, cache)


@pytest.mark.parametrize("length", [5, 6, 9, 13, 24])
def test_what_is_not_a_number_ends_the_answer_where_it_would_have(length):
    engine = echo_engine(NotANumber(CacheConfig(40, 4), length, None), max_rows=20)
    wanted = expected_tokens(PROMPT, 30)
    _, (deltas, _) = both(engine, lambda _: wanted, max_tokens=30)
    tokens, *_, finish, error = outcome(deltas)
    assert (tokens, finish, error.code) == (wanted[: length - 5], FinishReason.ERROR, "numerical_error")
    assert deltas[-1].token_ids == []


def test_what_is_not_a_number_after_a_wrong_draft_is_nothing():
    wanted = expected_tokens(PROMPT, 30)
    bad = next(token for token in range(256) if token not in wanted)
    engine = echo_engine(NotANumber(CacheConfig(40, 4), -1, bad), max_rows=20)
    _, (deltas, _) = both(engine, lambda _: [*wanted[:2], bad, *wanted[3:]], max_tokens=30)
    assert outcome(deltas)[0] == wanted
    assert deltas[-1].usage.rejected_tokens > 0


def test_what_was_tried_in_vain_is_not_in_the_prefix_cache():
    """Although the blocks are full of it, and the next prompt goes on with just that."""
    engine = echo_engine(max_rows=20)
    wrong = [token ^ 1 for token in expected_tokens(PROMPT, 20)]
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    for prompt in (PROMPT, PROMPT + wrong[:3], PROMPT + wrong):
        deltas, _ = deltas_of(engine, GenerateRequest("r", prompt, params, prediction_ids=tuple(wrong)))
        assert outcome(deltas)[0] == expected_tokens(prompt, 3)
        assert deltas[-1].usage.cached_tokens <= len(prompt)
    assert deltas[-1].usage.cached_tokens < len(PROMPT) + 4, "no more than what was computed as a prompt"


class Planned:
    """A scheduler whose sequences, which never get a token, have predictions."""

    def __init__(self, *lengths, num_blocks=100, **limits):
        self.pool = BlockPool(CacheConfig(num_blocks, 4))
        self.scheduler = Scheduler(SchedulerConfig(**{"max_num_seqs": 4, "max_model_len": 1000, **limits}), self.pool)
        for arrival, length in enumerate(lengths):
            self.add(arrival, length)

    def add(self, arrival, length):
        params = SamplingParams(max_tokens=100)
        prompt = [arrival] * length
        request = GenerateRequest(str(arrival), prompt, params, prediction_ids=tuple(range(50)))
        seq = Sequence(request, arrival, IncrementalDetokenizer(ByteTokenizer(), ()))
        self.scheduler.add(seq)
        return seq

    def plan(self):
        """request id -> (tokens known, drafts)."""
        plan = self.scheduler.schedule()
        self.pool.check(self.scheduler.running)
        return {each.seq.request.request_id: (each.count, len(each.drafts)) for each in plan}


def test_drafts_take_what_is_left_of_the_tokens_and_the_rows():
    assert Planned(5, 5, 5, max_num_batched_tokens=64, max_rows=64).plan() == dict.fromkeys("012", (5, FIRST_DRAFTS))
    assert Planned(5, 5, 5, max_num_batched_tokens=21, max_rows=64).plan() == {"0": (5, 4), "1": (5, 2), "2": (5, 0)}
    assert Planned(5, 5, 5, max_num_batched_tokens=64, max_rows=9).plan() == {"0": (5, 4), "1": (5, 2), "2": (5, 0)}
    assert Planned(5, 40, max_num_batched_tokens=16, max_rows=64).plan() == {"0": (5, 0), "1": (11, 0)}
    assert Planned(5, 5, max_num_batched_tokens=64).plan() == {"0": (5, 2), "1": (5, 0)}, "rows: as many as sequences"


def test_drafts_take_free_blocks_and_no_others():
    planned = Planned(6, num_blocks=2, max_num_batched_tokens=64, max_rows=64)
    assert planned.plan() == {"0": (6, 2)}, "as many as the last block has room for"
    planned = Planned(5, max_num_batched_tokens=64, max_rows=64, num_blocks=4)
    old = planned.add(7, 8)
    planned.scheduler.schedule()
    for seq in planned.scheduler.running:
        seq.num_computed = len(seq.token_ids)
        planned.pool.commit(seq)
    planned.scheduler.remove(old)
    assert (planned.pool.num_free, planned.pool.num_cached) == (0, 2)
    first = planned.scheduler.running[0]
    first.token_ids.append(0)
    assert planned.plan() == {"0": (1, 2)}
    assert planned.pool.num_cached == 2


def test_blocks_that_were_tried_in_vain_are_given_back():
    engine = echo_engine(max_rows=20)
    wrong = tuple(token ^ 1 for token in expected_tokens(PROMPT, 20))
    params = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
    engine.submit(GenerateRequest("r", PROMPT, params, prediction_ids=wrong))
    while engine.has_work:
        engine.step()
        for seq in engine.sequences.values():
            assert len(seq.block_ids) <= -(-len(seq.token_ids) // 4)
            assert seq.num_computed == len(seq.token_ids) - 1


def test_steps_keep_to_their_limits(monkeypatch):
    """Random workloads with predictions, all of them; few rows and tokens to spare."""
    sizes, real = [], EchoRunner.forward
    monkeypatch.setattr(
        EchoRunner,
        "forward",
        lambda self, batch: sizes.append((len(batch.token_ids), len(batch.logit_rows))) or real(self, batch),
    )
    full = 0
    for seed in range(150):
        workload = random_workload(seed, predicted=1.0)
        sizes.clear()
        run_workload(workload)
        limits = workload.limits
        assert all(tokens <= limits.max_num_batched_tokens and rows <= limits.max_rows for tokens, rows in sizes)
        full += sum(rows == limits.max_rows for _, rows in sizes)
    assert full > 50, "hardly any step is full of drafts"
