"""What the scheduler promises: budget, order, priorities, preemption of the last, nobody starved."""

from __future__ import annotations

import pytest

from engine.block_pool import BlockPool
from engine.config import ENOUGH_ROWS, CacheConfig, MoeConfig, SchedulerConfig
from engine.detokenizer import IncrementalDetokenizer
from engine.errors import ConfigError
from engine.scheduler import ENOUGH_PER_WAITING, Scheduler
from engine.sequence import Sequence
from engine.types import GenerateRequest, SamplingParams
from tests.support.byte_tokenizer import ByteTokenizer


class Bench:
    """A scheduler, and a model that only moves ``num_computed``."""

    def __init__(self, num_blocks=100, block_size=4, max_num_seqs=4, budget=16, caching=False, enough=ENOUGH_ROWS):
        self.pool = BlockPool(CacheConfig(num_blocks, block_size, caching))
        self.scheduler = Scheduler(SchedulerConfig(max_num_seqs, budget, 1000, enough), self.pool)
        self.arrivals = 0

    def add(self, name, num_tokens, priority=0):
        request = GenerateRequest(name, list(range(num_tokens)), SamplingParams(max_tokens=100), priority)
        seq = Sequence(request, self.arrivals, IncrementalDetokenizer(ByteTokenizer(), ()))
        self.arrivals += 1
        self.scheduler.add(seq)
        return seq

    def step(self):
        """One step; returns {name: tokens computed}, in the plan's order."""
        plan = self.scheduler.schedule()
        for scheduled in plan:
            completes = scheduled.completes
            scheduled.seq.num_computed += scheduled.count
            self.pool.commit(scheduled.seq)
            if completes:
                scheduled.seq.token_ids.append(0)
        self.pool.check(self.scheduler.running)
        return {scheduled.seq.request.request_id: scheduled.count for scheduled in plan}


def test_a_long_prompt_is_computed_in_chunks():
    bench = Bench(budget=16)
    bench.add("long", 40)
    assert [bench.step() for _ in range(4)] == [{"long": 16}, {"long": 16}, {"long": 8}, {"long": 1}]


def test_decodes_come_before_chunks_and_both_share_the_budget():
    bench = Bench(budget=16)
    bench.add("first", 10)
    assert bench.step() == {"first": 10}
    bench.add("second", 40)
    assert bench.step() == {"first": 1, "second": 15}
    bench.add("third", 3)
    assert bench.step() == {"first": 1, "second": 15}
    assert list(bench.step().items()) == [("first", 1), ("second", 10), ("third", 3)]


def test_first_come_first_served_up_to_max_num_seqs():
    bench = Bench(max_num_seqs=2)
    seqs = [bench.add(name, 3) for name in "abc"]
    assert list(bench.step()) == ["a", "b"]
    bench.scheduler.remove(seqs[0])
    assert list(bench.step()) == ["b", "c"]


def test_a_smaller_priority_number_goes_first():
    bench = Bench(max_num_seqs=1)
    bench.add("flex", 3, priority=1)
    bench.add("default", 3)
    bench.add("urgent", 3, priority=-1)
    assert list(bench.step()) == ["urgent"]
    assert [seq.request.request_id for seq in bench.scheduler.waiting] == ["default", "flex"]


def test_nobody_overtakes_a_request_that_waits_for_room():
    bench = Bench(num_blocks=10, block_size=4)
    bench.add("running", 20)
    bench.step()
    bench.add("large", 24)
    bench.add("small", 2)
    for _ in range(3):
        assert "small" not in bench.step()


def test_the_last_in_order_gives_its_blocks_and_resumes_before_newcomers():
    bench = Bench(num_blocks=8, block_size=4)
    first, last = bench.add("first", 15), bench.add("last", 15)
    bench.step()
    bench.step()
    assert (len(first.block_ids), len(last.block_ids)) == (4, 4)
    assert bench.step() == {"first": 1}, "its 17th token needs a block that only the last one can give"
    assert (last.num_preemptions, last.num_computed, len(last.block_ids)) == (1, 0, 0)
    bench.add("newcomer", 1)
    bench.scheduler.remove(first)
    assert list(bench.step()) == ["last"]


def test_an_urgent_newcomer_outlives_an_older_one():
    bench = Bench(num_blocks=8, block_size=4)
    old = bench.add("old", 15)
    bench.step()
    urgent = bench.add("urgent", 15, priority=-1)
    for _ in range(4):
        bench.step()
    assert urgent.num_preemptions == 0
    assert old.num_preemptions == 1


def test_a_preempted_sequence_finds_its_own_blocks_again():
    bench = Bench(num_blocks=9, block_size=4, caching=True, budget=64)
    first, last = bench.add("first", 15), bench.add("last", 15, priority=1)
    last.token_ids[:] = range(100, 115)
    while not last.num_preemptions:
        bench.step()
    bench.scheduler.remove(first)
    bench.step()
    assert last in bench.scheduler.running
    assert last.num_computed > 12, "its first blocks came from the prefix cache, not from a new computation"


def test_what_was_just_preempted_does_not_come_back_in_the_same_step():
    bench = Bench(num_blocks=8, block_size=4, caching=True, budget=64)
    first, last = bench.add("first", 15), bench.add("last", 12)
    last.token_ids[:] = range(100, 112)
    while not last.num_preemptions:
        plan = bench.step()
    assert list(plan) == ["first"]
    assert last in bench.scheduler.waiting
    assert first.num_preemptions == 0


def test_the_least_recently_used_block_is_evicted_first_and_a_prefix_from_its_end():
    bench = Bench(num_blocks=6, block_size=4, caching=True, budget=64)
    for name, start in (("old", 0), ("new", 100)):
        seq = bench.add(name, 11)
        seq.token_ids[:] = range(start, start + 11)
        bench.step()
        bench.scheduler.remove(seq)
    assert (bench.pool.num_free, bench.pool.num_cached) == (0, 6)
    other = bench.add("other", 5)  # evicts two blocks
    other.token_ids[:] = range(200, 205)
    bench.step()
    bench.scheduler.remove(other)
    found = {}
    for name, start in (("new", 100), ("old", 0)):
        seq = bench.add(name, 11)
        seq.token_ids[:] = range(start, start + 11)
        found[name] = len(bench.pool._match(seq))
    assert found == {"new": 2, "old": 1}


def test_an_empty_scheduler_plans_nothing():
    assert Bench().step() == {}


def test_a_budget_below_max_num_seqs_is_refused_by_flag():
    with pytest.raises(ConfigError, match="--max-num-batched-tokens"):
        Bench(max_num_seqs=8, budget=7)


def test_prompts_wait_for_a_step_of_their_own_when_one_alone_is_enough_for_it():
    bench = Bench(budget=512)
    for name in ("first", "second", "third"):
        bench.add(name, ENOUGH_ROWS)
    size = ENOUGH_ROWS
    assert list(bench.step().items()) == [("first", size)]
    assert list(bench.step().items()) == [("first", 1), ("second", size)]
    assert list(bench.step().items()) == [("first", 1), ("second", 1), ("third", size)]


def test_short_prompts_share_a_step_until_it_has_enough():
    bench = Bench(budget=512, max_num_seqs=8)
    size = ENOUGH_ROWS // 2 - 1
    for name in "abcd":
        bench.add(name, size)
    assert bench.step() == dict.fromkeys("abc", size)
    assert bench.step() == {"a": 1, "b": 1, "c": 1, "d": size}


def test_routed_experts_want_more_tokens_in_a_step():
    moe = MoeConfig(num_experts=8, num_experts_per_tok=2, intermediate_size=16, norm_topk_prob=True)
    bench = Bench(num_blocks=1000, budget=2048, enough=moe.tokens_for(ENOUGH_ROWS))
    for name in "abcde":
        bench.add(name, ENOUGH_ROWS)
    assert bench.step() == dict.fromkeys("abcd", ENOUGH_ROWS)


def test_where_many_wait_a_step_takes_more_of_them():
    many = 2 * ENOUGH_ROWS // ENOUGH_PER_WAITING
    bench = Bench(num_blocks=10000, budget=100 * ENOUGH_ROWS, max_num_seqs=many)
    for i in range(many):
        bench.add(i, ENOUGH_ROWS)
    assert len(bench.step()) == 2
