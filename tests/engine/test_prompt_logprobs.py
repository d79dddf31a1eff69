"""Prompts that are scored beside others: how many steps they take, and what they leave."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from engine.config import CacheConfig, SchedulerConfig
from engine.engine import Engine
from engine.scheduler import LEFT_SHARE, MOST_ROWS
from engine.types import GenerateRequest, SamplingParams
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.echo_model import EchoRunner


def make_engine(num_blocks, max_num_seqs=64, max_rows=64, budget=512):
    cache = CacheConfig(num_blocks, 16)
    limits = SchedulerConfig(max_num_seqs, budget, 4096, max_rows=max_rows)
    return Engine(EchoRunner(cache), ByteTokenizer(), (), limits, cache)


def request(name, length, *, scored=True, max_tokens=1, group=""):
    tokens = [(17 * place + len(name)) % 256 for place in range(length)]
    tokens[0] = sum(name.encode()) % 256
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return GenerateRequest(name, tokens, sampling, group=group, prompt_logprobs=0 if scored else None)


def steps_of(engine, *requests):
    """Steps until each request has ended, and the number of scores of each."""
    for each in requests:
        engine.submit(each)
    ends, scores, steps = {}, {each.request_id: 0 for each in requests}, 0
    while engine.has_work:
        steps += 1
        for delta in engine.step().deltas:
            scores[delta.request_id] += len(delta.prompt_logprobs or ())
            if delta.finish:
                ends[delta.request_id] = steps
    assert scores == {each.request_id: (len(each.prompt_ids) - 1) * (each.prompt_logprobs == 0) for each in requests}
    return ends


@pytest.mark.parametrize(("num_blocks", "count"), [(34, 10), (34, 64), (34, 128), (2000, 128)])
def test_those_that_wait_do_not_slow_them_down(num_blocks, count):
    """Whether it is for blocks, two prompts filling the pool, or for a place."""
    ends = steps_of(make_engine(num_blocks), *(request(f"r{i}", 256) for i in range(count)))
    rows = MOST_ROWS - MOST_ROWS // LEFT_SHARE
    assert max(ends.values()) <= count * 256 / rows + count


def test_nor_do_the_other_choices_of_their_request():
    first = request("r-0", 512, group="r-0")
    choices = [first, *(replace(first, request_id=f"r-{i}", prompt_logprobs=None) for i in range(1, 16))]
    ends = steps_of(make_engine(200, max_num_seqs=16, max_rows=17), *choices)
    assert max(ends.values()) <= 512 / (17 - 17 // LEFT_SHARE) + 2


def test_they_leave_rows_to_those_that_answer_and_to_those_that_come():
    engine = make_engine(400, max_num_seqs=8, max_rows=8)
    answering = [request(f"a{i}", 2, scored=False, max_tokens=30) for i in range(4)]
    ends = steps_of(engine, *answering, request("scored", 200), *(request(f"b{i}", 2, scored=False) for i in range(3)))
    assert {ends[each.request_id] for each in answering} == {30}, "a token in every step"
    assert all(ends[f"b{i}"] <= 3 for i in range(3))
    assert ends["scored"] < 100


def test_one_at_a_time_where_there_is_one_row():
    ends = steps_of(make_engine(10, max_num_seqs=1, max_rows=1), request("r", 20, max_tokens=0))
    assert ends == {"r": 20}
