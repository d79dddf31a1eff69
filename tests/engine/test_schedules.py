"""Any schedule gives each request the tokens it gets alone, and loses no block: thousands of random workloads."""

from __future__ import annotations

import hashlib
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.batch
import engine.block_pool
import engine.engine
from engine.block_pool import BlockPool, BlockPoolCorrupt
from engine.eviction import EvictionOrder
from engine.scheduler import Scheduler
from tests.support.workloads import WrongAnswer, random_workload, run_workload

CAUGHT = (WrongAnswer, BlockPoolCorrupt, AssertionError, IndexError, KeyError)


def test_random_workloads_answer_as_alone():
    preemptions = prefix_hits = 0
    for seed in range(2000):
        outcome = run_workload(random_workload(seed))
        preemptions += outcome.preemptions
        prefix_hits += outcome.prefix_hits
    assert preemptions > 500, "the workloads are too easy: hardly a preemption"
    assert prefix_hits > 5000, "the workloads are too easy: hardly a prefix hit"


@given(st.integers(min_value=2**32, max_value=2**62))
@settings(max_examples=200)
def test_any_workload_answers_as_alone(seed):
    run_workload(random_workload(seed))


@pytest.mark.soak
def test_a_hundred_thousand_workloads():
    run_many(100_000)


def wrong_slot(monkeypatch):
    real = engine.batch.build_batch

    def shifted(plan, block_size):
        batch = real(plan, block_size)
        batch.slots[-1] = batch.slots[-1] ^ 1 if block_size > 1 else batch.slots[-1]
        return batch

    monkeypatch.setattr(engine.engine, "build_batch", shifted)


def released_twice(monkeypatch):
    real = BlockPool.release

    def twice(self, seq, *, forget=False):
        blocks = list(seq.block_ids)
        real(self, seq, forget=forget)
        self._free.extend(block for block in blocks[:1] if self._hash_of[block] is None)

    monkeypatch.setattr(BlockPool, "release", twice)


def never_released(monkeypatch):
    real = Scheduler.remove

    def leaking(self, seq, *, forget=False):
        seq.block_ids = seq.block_ids[:-1]
        real(self, seq, forget=forget)

    monkeypatch.setattr(Scheduler, "remove", leaking)


def hash_without_parent(monkeypatch):
    monkeypatch.setattr(
        engine.block_pool, "chain_hash", lambda _parent, ids: hashlib.sha256(array("i", ids).tobytes()).digest()
    )


def hash_without_tenant(monkeypatch):
    monkeypatch.setattr(engine.block_pool, "root_hash", lambda _tenant: b"")


def committed_before_computed(monkeypatch):
    real = BlockPool.admit

    def eager(self, seq):
        if not real(self, seq):
            return False
        computed, seq.num_computed = seq.num_computed, len(seq.token_ids)
        self.commit(seq)
        seq.num_computed = computed
        return True

    monkeypatch.setattr(BlockPool, "admit", eager)


def evicted_but_still_named(monkeypatch):
    def allocate(self):
        block = self._free.pop() if self._free else self._cached.pop()
        self._ref_counts[block] = 1
        return block

    monkeypatch.setattr(BlockPool, "_allocate", allocate)


def more_kept_than_half(monkeypatch):
    monkeypatch.setattr(engine.block_pool, "EvictionOrder", lambda _: EvictionOrder(max_kept=10**9))


def named_for_more_than_was_computed(monkeypatch):
    real = BlockPool._offer

    def eager(self, seq, index, name):
        computed, seq.num_computed = seq.num_computed, len(seq.token_ids) + 1
        seq.token_ids.append(0)
        real(self, seq, index, name)
        seq.token_ids.pop()
        seq.num_computed = computed

    monkeypatch.setattr(BlockPool, "_offer", eager)


def preempted_keeps_its_progress(monkeypatch):
    real = Scheduler._preempt

    def forgetful(self, seq):
        computed = seq.num_computed
        real(self, seq)
        seq.num_computed = computed

    monkeypatch.setattr(Scheduler, "_preempt", forgetful)


@pytest.mark.parametrize(
    "plant",
    [
        wrong_slot,
        released_twice,
        never_released,
        hash_without_parent,
        hash_without_tenant,
        committed_before_computed,
        evicted_but_still_named,
        more_kept_than_half,
        named_for_more_than_was_computed,
        preempted_keeps_its_progress,
    ],
)
def test_planted_bugs_are_caught(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(CAUGHT):
        run_many(500)


def run_many(count):
    for seed in range(count):
        run_workload(random_workload(seed))
