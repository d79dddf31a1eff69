"""The time between the native code of two steps, told by a clock that only moves when it is said to."""

from __future__ import annotations

import pytest

from engine.config import CacheConfig, SchedulerConfig
from engine.engine import STATS_EVERY_S, Engine
from engine.types import GAP_BOUNDS_S, GenerateRequest, SamplingParams
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.echo_model import EchoRunner

NATIVE_S, PYTHON_S, IDLE_S = 0.25, 0.0008, 60.0


class TimedRunner(EchoRunner):
    """Native code takes ``native_s`` a step and Python ``PYTHON_S`` around it."""

    def __init__(self, cache, native_s=NATIVE_S):
        super().__init__(cache)
        self.now_s, self.in_native_s, self.native_s = 100.0, 0.0, native_s
        self.step_s = PYTHON_S + NATIVE_S

    def forward(self, batch):
        self.in_native_s += self.native_s
        self.now_s += self.step_s
        return super().forward(batch)

    def native_wall_s(self):
        return self.in_native_s


def engine_of(runner):
    cache = CacheConfig(32, 4)
    return Engine(runner, ByteTokenizer(), (), SchedulerConfig(4, 16, 40), cache, lambda: runner.now_s)


def submit(engine, name="r", max_tokens=5):
    engine.submit(GenerateRequest(name, [1, 2, 3], SamplingParams(max_tokens=max_tokens, ignore_eos=True)))


def finish(engine):
    while engine.has_work:
        engine.step()


def test_steps_that_follow_each_other_leave_gaps_and_waiting_leaves_none():
    runner = TimedRunner(CacheConfig(32, 4))
    engine = engine_of(runner)
    for _ in range(2):
        submit(engine)
        finish(engine)
        runner.now_s += IDLE_S
    stats = engine.stats()
    assert stats.native_wall_s == 10 * NATIVE_S
    assert sum(stats.gap_counts) == 2 * 4, "five steps have four gaps"
    assert stats.gap_counts[GAP_BOUNDS_S.index(0.001)] == 8
    assert stats.gaps_s == pytest.approx(8 * PYTHON_S)


def test_a_client_that_leaves_takes_the_gap_with_it():
    runner = TimedRunner(CacheConfig(32, 4))
    engine = engine_of(runner)
    submit(engine)
    engine.step()
    engine.abort("r")
    engine.step()  # as the loop does before it waits
    runner.now_s += IDLE_S
    submit(engine, "s", max_tokens=1)
    finish(engine)
    assert sum(engine.stats().gap_counts) == 0


def test_without_native_code_there_is_nothing_to_be_between():
    engine = engine_of(TimedRunner(CacheConfig(32, 4), native_s=0.0))
    submit(engine)
    finish(engine)
    assert (engine.stats().gaps_s, sum(engine.stats().gap_counts)) == (0.0, 0)


def test_statistics_come_with_every_end_with_a_heartbeat_and_now_and_then():
    runner = TimedRunner(CacheConfig(32, 4))
    engine = engine_of(runner)
    submit(engine, "short", max_tokens=3)
    submit(engine, "long", max_tokens=5)
    outputs = [engine.step() for _ in range(6)]
    told = [output.stats is not None for output in outputs]
    assert told == [True] * 6, f"a step of {NATIVE_S} s or more is longer than {STATS_EVERY_S} s"
    runner.step_s = STATS_EVERY_S / 2.5
    submit(engine, "short", max_tokens=3)
    submit(engine, "long", max_tokens=7)
    outputs = [engine.step() for _ in range(8)]
    assert [len(output.deltas) for output in outputs] == [2, 2, 2, 1, 1, 1, 1, 0]
    assert [output.stats and output.stats.steps - 5 for output in outputs] == [None, None, 3, None, None, 6, 7, 7]
    assert outputs[-2].stats.generated_tokens == 3 + 5 + 3 + 7, "all of it is told with the last end"
