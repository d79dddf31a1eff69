"""What the prefix cache promises: one prompt is computed once, keyed prompts stay longest, and a miss has a reason."""

from __future__ import annotations

from collections import OrderedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import CacheConfig, SchedulerConfig
from engine.engine import Engine
from engine.eviction import EvictedNames, EvictionOrder
from engine.types import CacheMiss, GenerateRequest, SamplingParams, Usage
from kernels.ops import Scores, StepInputs
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.echo_model import EchoRunner, expected_tokens

BLOCK = 4
NUM_BLOCKS = 16


class CountingRunner(EchoRunner):
    num_tokens = 0

    def forward(self, batch: StepInputs) -> Scores:
        self.num_tokens += len(batch.token_ids)
        return super().forward(batch)


class Bench:
    """An engine, and what its requests cost."""

    def __init__(self, *, num_blocks=NUM_BLOCKS, block_size=BLOCK, caching=True, max_num_seqs=8, budget=512):
        cache = CacheConfig(num_blocks, block_size, caching)
        self.runner = CountingRunner(cache)
        limits = SchedulerConfig(max_num_seqs, budget, num_blocks * block_size)
        self.engine = Engine(self.runner, ByteTokenizer(), (), limits, cache)
        self.num_requests = 0

    def submit(self, prompt, **fields) -> GenerateRequest:
        self.num_requests += 1
        sampling = SamplingParams(max_tokens=fields.pop("max_tokens", 1), temperature=0.0, ignore_eos=True)
        request = GenerateRequest(f"r{self.num_requests}", list(prompt), sampling, **fields)
        self.engine.submit(request)
        return request

    def run(self) -> dict[str, Usage]:
        """To the end; every answer is held against the right one, and the books against themselves."""
        tokens, usages = {}, {}
        prompts = {name: seq.request for name, seq in self.engine.sequences.items()}
        while self.engine.has_work:
            for delta in self.engine.step().deltas:
                tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
                if delta.usage is not None:
                    usages[delta.request_id] = delta.usage
            self.engine.pool.check(self.engine.sequences.values())
        for name, request in prompts.items():
            assert tokens[name] == expected_tokens(request.prompt_ids, request.sampling.max_tokens)
        return usages

    def ask(self, prompt, **fields) -> Usage:
        request = self.submit(prompt, **fields)
        return self.run()[request.request_id]

    def choices(self, prompt, n, **fields) -> list[Usage]:
        """What the server makes of a request with ``n``."""
        group = f"call-{self.num_requests}"
        for _ in range(n):
            self.submit(prompt, group=group, **fields)
        return list(self.run().values())


def numbered(first, count=17) -> list[int]:
    """Prompts with other first numbers have no block in common; of 17, four blocks are full and can be found."""
    return [first, *(100 + i % 100 for i in range(count - 1))]


class TestChoices:
    @pytest.mark.parametrize("caching", [True, False])
    @pytest.mark.parametrize("block_size", [1, 16, 128])
    @pytest.mark.parametrize("length", [1, 2, 30, 96, 128, 200])
    @pytest.mark.parametrize("max_tokens", [1, 3])
    def test_compute_their_prompt_once_and_a_token_each(self, max_tokens, length, block_size, caching):
        bench = Bench(num_blocks=2048 // block_size, block_size=block_size, caching=caching)
        usages = bench.choices(numbered(7, length), 4, max_tokens=max_tokens)
        assert bench.runner.num_tokens == length + 3 * 1 + 4 * (max_tokens - 1)
        assert [usage.cached_tokens for usage in usages] == [0, *[length - 1] * 3]
        assert [usage.cache_miss for usage in usages[1:]] == [None] * 3

    def test_in_chunks_too(self):
        bench = Bench(num_blocks=64, budget=32)
        bench.choices(numbered(7, 150), 4)
        assert bench.runner.num_tokens == 150 + 3

    def test_come_later_where_no_more_run_at_once(self):
        """The first one's block, full by then of its answer too, still begins as the prompt ends."""
        bench = Bench(max_num_seqs=2)
        bench.choices(numbered(7, 10), 4, max_tokens=6)
        assert bench.runner.num_tokens == 10 + 3 * 1 + 4 * 5

    def test_let_others_by_while_they_wait_for_their_prompt(self):
        bench = Bench()
        for _ in range(2):
            bench.submit(numbered(7), group="call", max_tokens=2)
        other = bench.submit(numbered(8), max_tokens=2)
        first_step = {delta.request_id for delta in bench.engine.step().deltas}
        assert first_step == {"r1", other.request_id}

    def test_of_different_requests_share_nothing_where_the_cache_is_off(self):
        bench = Bench(caching=False)
        for group in ("one", "two", ""):
            bench.submit(numbered(7), group=group)
        usages = bench.run().values()
        assert bench.runner.num_tokens == 3 * 17
        assert [usage.cache_miss for usage in usages] == [CacheMiss.PREFIX_CACHING_OFF] * 3

    def test_leave_nothing_to_others_where_the_cache_is_off(self):
        bench = Bench(caching=False)
        bench.choices(numbered(7), 2)
        assert bench.ask(numbered(7)).cached_tokens == 0
        assert bench.choices(numbered(7), 2)[0].cached_tokens == 0

    def test_go_on_when_the_one_they_wait_for_leaves(self):
        bench = Bench(num_blocks=64, budget=32)
        for _ in range(2):
            bench.submit(numbered(7, 100), group="call")
        bench.engine.step()
        bench.engine.abort("r1")
        while bench.engine.has_work:
            deltas = bench.engine.step().deltas
        assert deltas[-1].usage.cached_tokens == 32, "what was computed of the prompt before"


class TestKeptPrompts:
    def flood(self, bench, count, start=50, **fields):
        for number in range(start, start + count):
            bench.ask(numbered(number), **fields)

    def test_are_found_where_others_had_to_make_room(self):
        bench = Bench()
        bench.ask(numbered(1), keep_cached=True)
        bench.ask(numbered(2))
        self.flood(bench, 10)
        kept, other = bench.ask(numbered(1)), bench.ask(numbered(2))
        assert (kept.cached_tokens, kept.cache_miss) == (16, None)
        assert (other.cached_tokens, other.cache_miss) == (0, CacheMiss.EVICTED)

    def test_stay_kept_after_a_reader_that_did_not_ask_for_it(self):
        bench = Bench()
        bench.ask(numbered(1), keep_cached=True)
        bench.ask(numbered(1))
        self.flood(bench, 10)
        assert bench.ask(numbered(1)).cached_tokens == 16

    def test_do_not_push_out_what_was_used_after_half_of_the_cache_was_theirs(self):
        bench = Bench(num_blocks=20)
        self.flood(bench, 10, keep_cached=True)
        bench.ask(numbered(1))
        self.flood(bench, 1, start=90, keep_cached=True)
        assert bench.engine.pool._cached.num_kept == 10
        assert bench.ask(numbered(1)).cached_tokens == 16

    def test_leave_nothing_of_it_to_what_comes_after_them_in_their_blocks(self):
        bench = Bench(num_blocks=8)
        bench.ask(numbered(1), keep_cached=True)
        assert bench.engine.pool._cached.num_kept == 4
        bench.ask(numbered(2, 31))
        assert (bench.engine.pool.num_cached, bench.engine.pool._cached.num_kept) == (8, 0)

    def test_of_another_tenant_are_not_found(self):
        bench = Bench()
        bench.ask(numbered(1), keep_cached=True, tenant="one")
        assert bench.ask(numbered(1), keep_cached=True, tenant="two").cache_miss is CacheMiss.NEW


class TestMisses:
    def test_new_then_found(self):
        bench = Bench()
        assert bench.ask(numbered(1)).cache_miss is CacheMiss.NEW
        again = bench.ask(numbered(1))
        assert (again.cached_tokens, again.cache_miss) == (16, None)

    def test_differs_and_where(self):
        bench = Bench()
        bench.ask(numbered(1))
        usage = bench.ask([*numbered(1)[:10], *range(200, 207)])
        assert (usage.cached_tokens, usage.cache_miss) == (10, CacheMiss.DIFFERS)

    @pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
    def test_prompts_of_any_length_are_found(self, length):
        bench = Bench()
        assert bench.ask(numbered(1, length)).cache_miss is CacheMiss.NEW
        again = bench.ask(numbered(1, length))
        assert (again.cached_tokens, again.cache_miss) == (length - 1, None)
        bench.ask(numbered(2, 4 * NUM_BLOCKS - 1))
        assert bench.ask(numbered(1, length)).cache_miss is CacheMiss.EVICTED

    def test_a_prompt_of_one_token_misses_nothing(self):
        assert Bench().ask([1]).cache_miss is None

    def test_a_prompt_is_found_that_an_answer_has_gone_on_with(self):
        bench = Bench()
        bench.ask(numbered(1, 7), max_tokens=9)
        assert bench.ask(numbered(1, 7)).cached_tokens == 6
        bench.ask(numbered(2, 4 * NUM_BLOCKS - 1))
        assert bench.ask(numbered(1, 3)).cache_miss is CacheMiss.NEW
        assert bench.ask(numbered(1, 7)).cache_miss is CacheMiss.EVICTED

    def test_the_part_of_an_evicted_block(self):
        bench = Bench()
        bench.ask(numbered(1, 3), max_tokens=9)
        bench.ask(numbered(2, 4 * NUM_BLOCKS - 1))
        assert bench.ask(numbered(1, 3)).cache_miss is CacheMiss.EVICTED

    def test_off(self):
        assert Bench(caching=False).ask(numbered(1)).cache_miss is CacheMiss.PREFIX_CACHING_OFF

    def test_what_another_tenant_has_had_evicted_is_new(self):
        bench = Bench()
        bench.ask(numbered(1), tenant="one")
        for number in range(50, 60):
            bench.ask(numbered(number), tenant="one")
        assert bench.ask(numbered(1), tenant="two").cache_miss is CacheMiss.NEW
        assert bench.ask(numbered(1), tenant="one").cache_miss is CacheMiss.EVICTED

    def test_is_of_the_first_admission(self):
        bench = Bench(num_blocks=8)
        first = bench.submit(numbered(1, 15), max_tokens=10)
        last = bench.submit(numbered(2, 15), max_tokens=10, priority=1)
        usages = bench.run()
        assert usages[last.request_id].preemptions > 0
        assert usages[last.request_id].cache_miss is CacheMiss.NEW
        assert usages[first.request_id].preemptions == 0


@given(
    st.lists(st.tuples(st.sampled_from(["add", "keep", "take", "pop", "forget"]), st.integers(0, 7))), st.integers(0, 4)
)
@settings(max_examples=300)
def test_the_order_of_eviction(actions, max_kept):
    """Held against the words of ``EvictionOrder``'s docstring, followed with lists."""
    order = EvictionOrder(max_kept)
    others: list[int] = []
    kept: list[int] = []
    to_keep: set[int] = set()
    for action, block in actions:
        idle = block in others or block in kept
        if action in ("add", "keep") and not idle:
            order.add(block, keep=action == "keep")
            to_keep |= {block} if action == "keep" else set()
            (kept if block in to_keep else others).append(block)
            if len(kept) > max_kept:
                to_keep.remove(kept[0])
                others.append(kept.pop(0))
        elif action == "take" and idle:
            order.take(block)
            (kept if block in kept else others).remove(block)
        elif action == "pop" and others + kept:
            popped = order.pop()
            assert popped == (others or kept).pop(0)
            order.forget(popped)
            to_keep.discard(popped)
        elif action == "forget" and not idle:
            order.forget(block)
            to_keep.discard(block)
        assert list(order) == others + kept
        assert (len(order), order.num_kept) == (len(others) + len(kept), len(kept))


names = st.binary(min_size=8, max_size=32)


@given(st.lists(names), names)
def test_an_evicted_name_is_known_until_another_takes_its_place(added, other):
    memory, places = EvictedNames(5), OrderedDict()
    for name in added:
        memory.add(name)
        places[int.from_bytes(name[:8], "big") % 5] = name[:8]
        assert name in memory
    for name in [*added, other]:
        place = int.from_bytes(name[:8], "big") % 5
        assert (name in memory) == (places.get(place, bytes(8) if place == 0 else None) == name[:8])


def test_fields_cross_the_wire():
    usage = Bench(caching=False).ask(numbered(1))
    packed = msgspec.msgpack.encode(usage)
    assert msgspec.msgpack.decode(packed, type=Usage) == usage
