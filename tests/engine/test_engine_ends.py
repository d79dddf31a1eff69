"""Every end a request can have: exactly one last delta (none for a client that left), and all its blocks back."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from engine.config import CacheConfig, SchedulerConfig
from engine.engine import Engine
from engine.errors import ContextLengthExceeded, InvalidRequest
from engine.types import FinishReason, GenerateRequest, SamplingParams
from kernels.reference.sampling import scores_of
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.echo_model import VOCAB_SIZE, EchoRunner, expected_tokens

PROMPT = [10, 20, 30, 40, 50]


class Clock:
    now_s = 100.0

    def __call__(self):
        self.now_s += 1.0
        return self.now_s


def make_engine(num_blocks=12, block_size=4, max_num_seqs=4, budget=16, eos=(), runner=None):
    cache = CacheConfig(num_blocks, block_size)
    limits = SchedulerConfig(max_num_seqs, budget, 40)
    return Engine(runner or EchoRunner(cache), ByteTokenizer(), eos, limits, cache, Clock())


def request(name="r", prompt=PROMPT, priority=0, **sampling):
    params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **sampling})
    return GenerateRequest(name, list(prompt), params, priority, arrived_at_s=90.0)


def finish(engine, limit=200):
    deltas = []
    while engine.has_work:
        assert limit > 0, "no end"
        limit -= 1
        deltas += engine.step().deltas
    assert_idle(engine)
    return deltas


def assert_idle(engine):
    engine.pool.check([])
    stats = engine.stats()
    assert (stats.blocks_used, stats.running, stats.waiting) == (0, 0, 0)
    assert stats.blocks_free + stats.blocks_cached == engine.pool.num_blocks


def test_length():
    engine = make_engine()
    engine.submit(request())
    deltas = finish(engine)
    assert [token for delta in deltas for token in delta.token_ids] == expected_tokens(PROMPT, 8)
    assert [delta.finish for delta in deltas] == [None] * 7 + [FinishReason.LENGTH]
    usage = deltas[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (5, 8, 0)
    assert usage.queue_s == pytest.approx(11.0)
    assert usage.prefill_s > 0
    assert usage.decode_s > 0
    assert all(delta.usage is None for delta in deltas[:-1])


def test_end_of_sequence():
    answer = expected_tokens(PROMPT, 8)
    engine = make_engine(eos=(answer[3],))
    engine.submit(request(ignore_eos=False))
    deltas = finish(engine)
    assert [t for d in deltas for t in d.token_ids] == answer[:4]
    assert deltas[-1].finish is FinishReason.STOP
    assert deltas[-1].usage.completion_tokens == 4
    assert deltas[-1].text in {"", "\ufffd"}, "the ending token itself is not part of the text"


def test_stop_token():
    answer = expected_tokens(PROMPT, 8)
    engine = make_engine()
    engine.submit(request(stop_token_ids=(answer[2],)))
    deltas = finish(engine)
    assert [t for d in deltas for t in d.token_ids] == answer[:3]
    assert deltas[-1].finish is FinishReason.STOP


def test_stop_string_across_tokens():
    class Letters(EchoRunner):
        """Answers abcdef... whatever the prompt."""

        def forward(self, batch):
            logits = np.zeros((len(batch.logit_rows), VOCAB_SIZE), dtype=np.float32)
            logits[np.arange(len(logits)), ord("a") + batch.positions[batch.logit_rows] - len(PROMPT) + 1] = 9
            return scores_of(logits)

    engine = make_engine(runner=Letters(CacheConfig(12, 4)))
    engine.submit(request(stop=("xyz", "de")))
    deltas = finish(engine)
    assert "".join(delta.text for delta in deltas) == "abc"
    assert deltas[-1].finish is FinishReason.STOP
    assert deltas[-1].usage.completion_tokens == 5


@pytest.mark.parametrize("state", ["waiting", "in a chunk", "decoding", "preempted", "finished", "unknown"])
def test_client_gone(state):
    engine = make_engine(num_blocks=10, max_num_seqs=1 if state == "waiting" else 4)
    engine.submit(request("other", prompt=PROMPT[::-1]))
    long_prompt = state == "in a chunk"
    engine.submit(
        request("r", prompt=range(30) if long_prompt else PROMPT, max_tokens=3 if state == "finished" else 10)
    )
    for _ in range(1 if long_prompt or state == "waiting" else 4):
        engine.step()
    seq = engine.sequences.get("r")
    if state == "preempted":
        engine.scheduler._preempt(seq)
    assert {
        "waiting": lambda: seq in engine.scheduler.waiting,
        "in a chunk": lambda: 0 < seq.num_computed < 30,
        "decoding": lambda: seq.num_generated > 1,
        "preempted": lambda: seq in engine.scheduler.waiting and seq.num_preemptions == 1,
        "finished": lambda: seq is None,
        "unknown": lambda: True,
    }[state]()
    gone = "nobody" if state == "unknown" else "r"
    engine.abort(gone)
    engine.abort(gone)
    engine.pool.check(engine.sequences.values())
    rest = finish(engine)
    assert {delta.request_id for delta in rest} == ({"other", "r"} if state == "unknown" else {"other"})


def test_preempted_to_the_end_and_right():
    engine = make_engine(num_blocks=9)
    for name, prompt in [("a", PROMPT), ("b", PROMPT[::-1]), ("c", range(9))]:
        engine.submit(request(name, prompt=prompt, max_tokens=14))
    deltas = finish(engine)
    assert engine.stats().preemptions > 0
    for name, prompt in [("a", PROMPT), ("b", PROMPT[::-1]), ("c", list(range(9)))]:
        mine = [delta for delta in deltas if delta.request_id == name]
        assert [t for d in mine for t in d.token_ids] == expected_tokens(prompt, 14)
        assert [d.finish for d in mine if d.finish] == [FinishReason.LENGTH]


class BreaksFor(EchoRunner):
    """NaN for one prompt; its blocks are found by nobody afterwards."""

    poison = 77

    def forward(self, batch):
        logits, where = super().forward(batch).logits, batch.attention
        owners = np.searchsorted(where.q_starts, batch.logit_rows, side="right") - 1
        for row, owner in enumerate(owners):
            if self._slots[where.block_table[owner, 0], 0] == self.poison:
                logits[row, 3] = np.nan
        return scores_of(logits)


def test_numbers_that_are_none_end_that_request_alone_and_are_not_cached():
    engine = make_engine(runner=BreaksFor(CacheConfig(12, 4)), budget=8)  # so that a chunk is cached before it breaks
    bad = request("bad", prompt=[BreaksFor.poison, *range(12)])
    for _ in range(2):
        engine.submit(bad)
        engine.step()
        assert engine.sequences["bad"].num_committed > 0
        engine.submit(request("good"))
        deltas = finish(engine)
        (end,) = [delta for delta in deltas if delta.request_id == "bad"]
        assert (end.finish, end.error.code, end.token_ids) == (FinishReason.ERROR, "numerical_error", [])
        assert end.usage.cached_tokens == 0
        assert [t for d in deltas if d.request_id == "good" for t in d.token_ids] == expected_tokens(PROMPT, 8)


class BreaksAmidPrompts(EchoRunner):
    """NaN behind the fourth token of every prompt, and behind no other."""

    def forward(self, batch):
        logits = super().forward(batch).logits
        logits[batch.positions[batch.logit_rows] == 3] = np.nan
        return scores_of(logits)


@pytest.mark.parametrize(("length", "max_num_seqs"), [(9, 4), (9, 8), (6, 8)], ids=["begun", "most of it", "all of it"])
def test_a_prompt_that_cannot_be_scored_is_not_answered(length, max_num_seqs):
    """Whether the step computes the whole prompt, so that a token would come, or a part."""
    engine = make_engine(runner=BreaksAmidPrompts(CacheConfig(12, 4)), max_num_seqs=max_num_seqs)
    params = SamplingParams(max_tokens=2, temperature=0.0)
    asked = GenerateRequest("r", list(range(length)), params, prompt_logprobs=0)
    engine.submit(asked)
    deltas = finish(engine)
    assert (deltas[-1].finish, deltas[-1].error.code) == (FinishReason.ERROR, "numerical_error")
    assert not any(delta.token_ids for delta in deltas)
    assert engine.stats().steps == 1, "not only once all of the prompt is computed"
    engine.submit(msgspec.structs.replace(asked, prompt_logprobs=None))
    assert finish(engine)[-1].usage.cached_tokens == 0


def test_log_probabilities_of_a_prompt_are_bounded():
    with pytest.raises(InvalidRequest) as caught:
        GenerateRequest("r", [1, 2], SamplingParams(max_tokens=0), prompt_logprobs=21)
    assert caught.value.param == "logprobs"


def test_the_prefix_cache_is_found_within_a_tenant_only():
    engine = make_engine(num_blocks=20)
    found = {}
    for name, tenant in [("first", "x"), ("same", "x"), ("other", "y")]:
        asked = GenerateRequest(name, list(range(17)), SamplingParams(max_tokens=1, temperature=0.0), 0, tenant)
        engine.submit(asked)
        found[name] = finish(engine)[-1].usage.cached_tokens
    assert found == {"first": 0, "same": 16, "other": 0}
    assert engine.stats().prefix_hit_tokens == 16
    assert engine.stats().prefix_queried_tokens == 51


def test_a_prompt_of_whole_blocks_leaves_a_token_to_compute():
    engine = make_engine()
    for expected in (0, 7):
        engine.submit(request(prompt=range(8), max_tokens=1))
        assert finish(engine)[-1].usage.cached_tokens == expected


@pytest.mark.parametrize(("prompt", "cached"), [([0, 1, 2, 9], 3), ([*range(6), 99, 98, 97], 6), ([5, 6, 7, 8], 0)])
def test_a_prefix_is_found_up_to_the_token_where_prompts_differ(prompt, cached):
    engine = make_engine()
    engine.submit(request(prompt=range(12), max_tokens=1))
    finish(engine)
    engine.submit(request(prompt=prompt))
    deltas = finish(engine)
    assert deltas[-1].usage.cached_tokens == cached
    assert [t for d in deltas for t in d.token_ids] == expected_tokens(list(prompt), 8)


def test_the_longest_of_several_beginnings_is_taken():
    engine = make_engine()
    for last in (9, 3, 8):
        engine.submit(request(prompt=[0, 1, last, 4, 5], max_tokens=1))
        finish(engine)
    engine.submit(request(prompt=[0, 1, 3, 7, 5, 6], max_tokens=1))
    assert finish(engine)[-1].usage.cached_tokens == 3


@pytest.mark.parametrize(
    ("changed", "error", "param"),
    [
        ({"prompt": []}, InvalidRequest, "prompt"),
        ({"prompt": [256]}, InvalidRequest, "prompt"),
        ({"prompt": [-1]}, InvalidRequest, "prompt"),
        ({"logit_bias": ((256, 1.0),)}, InvalidRequest, "logit_bias"),
        ({"stop_token_ids": (-1,)}, InvalidRequest, "stop_token_ids"),
        ({"prompt": [1] * 33}, ContextLengthExceeded, "prompt"),
        ({"max_tokens": 36}, ContextLengthExceeded, "prompt"),
    ],
)
def test_what_can_never_be_answered_is_refused_at_once(changed, error, param):
    engine = make_engine()
    with pytest.raises(error) as caught:
        engine.submit(request(**changed))
    assert caught.value.param == param
    assert not engine.has_work
    engine.submit(request(prompt=[1] * 32))
    finish(engine)


def test_a_request_larger_than_the_pool_is_refused_though_the_context_would_hold_it():
    engine = make_engine(num_blocks=5)
    with pytest.raises(ContextLengthExceeded):
        engine.submit(request(max_tokens=17))  # 5 + 17 - 1 tokens need 6 blocks
    engine.submit(request(max_tokens=16))
    finish(engine)


def test_an_id_is_open_only_once():
    engine = make_engine()
    engine.submit(request())
    with pytest.raises(InvalidRequest, match="open already"):
        engine.submit(request())
    finish(engine)
    engine.submit(request())
    finish(engine)
