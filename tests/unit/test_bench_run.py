"""From what systems answered, through the JSON that is kept, to each goal's verdict. Nothing here is timed."""

from __future__ import annotations

import copy
import itertools
import json

import pytest

from tools.bench import systems
from tools.bench.client import Job, Outcome, Trace
from tools.bench.figures import beside_weights
from tools.bench.goals import judge
from tools.bench.measure import Conditions, measure_system
from tools.bench.report import notes, system_rows, verdict_rows
from tools.bench.scrape import Scrape
from tools.bench.systems import System
from tools.bench.workloads import KEYS, Workload

WEIGHTS_BYTES, KV_BYTES = 1_000_000_000, 4096
PROMPT, ANSWER, JOBS = 4, 5, 2
"""Tokens of a prompt and of an answer, and requests of a load."""
LIMITS = {
    "weights_bytes": WEIGHTS_BYTES,
    **{f"{name}_n_gbs": {"best": 100.0} for name in ("read_weights", "read_large")},
    "int8_n_gops": {"best": 100.0},
    "fma_n_gflops": {"best": 1.0},
}
STEPS_BOUNDS_S = (1e-4, 1e-3)

OURS = {key: {"rate": 1000.0, "first_s": 1e-3, "api_s": 0.0, "engine_s": 0.0, "native_s": 0.0} for key in KEYS}
OURS["d1"] |= {"rate": 70.7, "step_s": 149e-6}
OURS["d4"] |= {"rate": 30.3, "first_s": 0.396}
OURS["d16"] |= {"rate": 30.3, "first_s": 0.396}
OURS["d64"] |= {"rate": 124.5, "first_s": 0.495, "api_s": 24.8e-6 * ANSWER * JOBS, "step_s": 0.99e-3}
OURS["tiny"] |= {"rate": 14.1, "api_s": 1e-3, "engine_s": 1.0, "native_s": 1.0 + 1e-3 - 0.79e-3 * JOBS}
OURS["warm"] |= {"first_s": 1.0, "warm_s": 0.0495}
OURS["long1000"] |= {"first_s": PROMPT / 1810}
OURS["long4000"] |= {"first_s": PROMPT / 1510}
PEERS = {key: {"rate": 10.0, "first_s": 1.0, "api_s": 0.0, "engine_s": 0.0, "native_s": 0.0} for key in KEYS}
PEERS["d1"] |= {"rate": 35.0}
PEERS["d64"] |= {"rate": 56.3}
PEERS["long4000"] |= {"first_s": PROMPT / 1510 / 0.645}
SCENE = {
    "upwell": OURS | {"start_s": 1.49, "beside_bytes": 119_000_000},
    "peer": PEERS | {"start_s": 9.0, "beside_bytes": 0},
    "limits": LIMITS,
}
"""A run that reaches each goal by a hundredth or two."""


class Scripted:
    """A system that answers as a scene has it, and counts the processor time it is said to use."""

    def __init__(self, script, first_pid, cpu_s, pss):
        self.start_s, self.script, self.cpu_s = script["start_s"], script, cpu_s
        self.api, self.engine = first_pid, first_pid + 1
        self.native_s, self.steps = 0.0, [0, 0, 0]
        self.steps_s = 0.0
        cpu_s |= {self.api: 5.0, self.engine: 7.0}
        pss |= {self.api: 1000, self.engine: WEIGHTS_BYTES + KV_BYTES // 4 + script["beside_bytes"] - 1000}

    async def ready(self):
        pass

    async def run(self, jobs, concurrency, *, probe):
        script = self.script.get(jobs[0].prompt)
        if script is None:
            return Outcome([], 1.0)
        self.cpu_s[self.api] += script["api_s"]
        self.cpu_s[self.engine] += script["engine_s"]
        self.native_s += script["native_s"]
        if step_s := script.get("step_s"):
            self.steps[sum(step_s > bound_s for bound_s in STEPS_BOUNDS_S)] += 10
            self.steps_s += 10 * step_s
        starts_s = itertools.cycle([script["first_s"], script.get("warm_s", script["first_s"])])
        traces = []
        for job, first_s in zip(jobs, starts_s, strict=False):
            stamps_s = [100 + first_s + index * 1e-3 for index in range(ANSWER)]
            traces.append(Trace(100.0, stamps_s, script.get("answered", job.max_tokens), len(job.ids)))
        traces[-1].error = script.get("error")  # after its last token
        return Outcome(traces, sum(job.max_tokens for job in jobs) / script["rate"])

    async def metrics(self):
        below = list(itertools.accumulate(self.steps))
        buckets = zip((*STEPS_BOUNDS_S, "+Inf"), below, strict=True)
        lines = [
            "# TYPE upwell_between_steps_seconds histogram",
            *(f'upwell_between_steps_seconds_bucket{{le="{bound}"}} {count}' for bound, count in buckets),
            f"upwell_between_steps_seconds_sum {self.steps_s!r}",
            "# TYPE upwell_native_cpu_seconds counter",
            f"upwell_native_cpu_seconds_total {self.native_s!r}",
            f"# TYPE upwell_kv_cache_bytes gauge\nupwell_kv_cache_bytes {KV_BYTES}",
            "# TYPE upwell_kv_blocks gauge",
            *(f'upwell_kv_blocks{{state="{state}"}} {n}' for state, n in (("free", 3), ("cached", 1), ("used", 0))),
        ]
        return Scrape("\n".join(lines) + "\n")

    def pids(self):
        return {"api": [self.api], "engine": [self.engine]}

    async def backend(self):
        return "scripted"

    async def close(self):
        pass


def load(key):
    jobs = [Job(key, [1] * PROMPT, ANSWER)] * JOBS
    return Workload(key, key, 1, jobs, pairs=key == "warm")


@pytest.fixture
def play(monkeypatch):
    """Measure a scene, and return the run as it is read from its file."""
    cpu_s, pss = {}, {}
    monkeypatch.setattr(systems, "cpu_s", cpu_s.__getitem__)
    monkeypatch.setattr(systems, "pss_bytes", pss.__getitem__)
    monkeypatch.setattr(systems, "rss_bytes", pss.__getitem__)

    async def play(scene):
        conditions = Conditions([Job("warm up", [1], 1)], 0.0, lambda _: None)
        measured = []
        for name in scene.keys() - {"limits"}:
            running = Scripted(scene[name], 10 * len(measured) + 10, cpu_s, pss)
            system = System(name, "", None, lambda _, running=running: running)
            measured.append(await measure_system(system, [load(key) for key in KEYS], conditions))
        run = {"systems": measured, "limits": scene["limits"], "weights_bytes": WEIGHTS_BYTES}
        return json.loads(json.dumps(run))

    return play


def changed(*path, to=None, by=None):
    """The scene with one figure another; ``path`` leads to it."""
    scene = copy.deepcopy(SCENE)
    inner = scene
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to if by is None else inner[path[-1]] * by
    return scene


def goals_of(run):
    return {(line.what, goal.name): goal.reached for line in judge(run) for goal in line.goals}


async def test_a_run_that_reaches_every_goal(play):
    run = await play(SCENE)
    assert {name for name, reached in goals_of(run).items() if reached is not True} == set()
    rows = verdict_rows(judge(run))
    assert {row[5] for row in rows} == {"yes", ""}
    assert len(system_rows(run)) == 2 * len(KEYS)
    assert not any("counts for nothing" in line for line in notes(run))


@pytest.mark.parametrize(
    ("goal", "path", "by"),
    [
        (("1 stream, tokens/s", "limit"), ("limits", "read_weights_n_gbs", "best"), 1.02),
        (("1 stream, tokens/s", "peer"), ("peer", "d1", "rate"), 1.02),
        (("4 streams, tokens/s", "peer"), ("upwell", "d4", "rate"), 0.98),
        (("4 streams, first token", "peer"), ("upwell", "d4", "first_s"), 1.02),
        (("16 streams, tokens/s", "peer"), ("upwell", "d16", "rate"), 0.98),
        (("16 streams, first token", "peer"), ("peer", "d16", "first_s"), 0.98),
        (("64 streams, tokens/s", "limit"), ("limits", "int8_n_gops", "best"), 1.02),
        (("64 streams, tokens/s", "peer"), ("peer", "d64", "rate"), 1.02),
        (("64 streams, first token", "peer"), ("upwell", "d64", "first_s"), 1.02),
        (("1,000-token prompt, cold", "rate"), ("upwell", "long1000", "first_s"), 1.02),
        (("4,000-token prompt, first token", "peer"), ("peer", "long4000", "first_s"), 0.98),
        (("warm prefix, first token", "cold"), ("upwell", "warm", "warm_s"), 1.02),
        (("tiny requests, requests/s", "peer"), ("upwell", "tiny", "rate"), 0.98),
        (("tiny requests, CPU outside native code", "CPU"), ("upwell", "tiny", "engine_s"), 1.00004),
        (("1 stream, Python between two native steps", "time"), ("upwell", "d1", "step_s"), 1.02),
        (("64 streams, Python between two native steps", "time"), ("upwell", "d64", "step_s"), 1.02),
        (("64 streams, CPU of the API process", "CPU"), ("upwell", "d64", "api_s"), 1.02),
        (("start until ready", "time"), ("upwell", "start_s"), 1.02),
        (("memory beside weights and KV cache", "bytes"), ("upwell", "beside_bytes"), 1.02),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and value[0] not in SCENE else "",
)
async def test_a_figure_that_is_a_little_worse_misses_its_goal_alone(play, goal, path, by):
    run = await play(changed(*path, by=by))
    assert {name for name, reached in goals_of(run).items() if not reached} == {goal}
    assert [row[5][:2] for row in verdict_rows(judge(run)) if row[0] == goal[0]] == ["no"]


async def test_a_slow_long_prompt_misses_its_rate_and_the_peer(play):
    run = await play(changed("upwell", "long4000", "first_s", by=1.02))
    missed = {("4,000-token prompt, cold", "rate"), ("4,000-token prompt, first token", "peer")}
    assert {name for name, reached in goals_of(run).items() if not reached} == missed


OF_A_LOAD = {
    "d1": "1 stream,",
    "d4": "4 streams,",
    "d16": "16 streams,",
    "d64": "64 streams,",
    "tiny": "tiny requests,",
    "warm": "warm prefix,",
    "long1000": "1,000-token",
    "long4000": "4,000-token",
}


FAULTS = {"failed": {"error": "it broke"}, "short": {"answered": ANSWER - 1}}
OBJECTIONS = {"failed": "1 requests failed, the first: it broke", "short": "other numbers of tokens than were asked"}
each_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("key", OF_A_LOAD)
async def test_a_load_that_is_not_answered_as_asked_is_judged_neither_way(play, key, fault):
    run = await play(changed("upwell", key, to=OURS[key] | FAULTS[fault]))
    unjudged = {name for name, reached in goals_of(run).items() if reached is None}
    assert unjudged == {name for name in goals_of(run) if name[0].startswith(OF_A_LOAD[key])}
    assert False not in goals_of(run).values()
    objections = [line for line in notes(run) if "counts for nothing" in line]
    assert len(objections) == 1
    assert objections[0].startswith(f"upwell: {key} counts for nothing: {OBJECTIONS[fault]}")


@each_fault
async def test_a_faster_peer_counts_if_it_answers_as_asked(play, fault):
    fast = changed("peer", "d4", to=PEERS["d4"] | {"rate": 99.0, "first_s": 0.1})
    missed = {("4 streams, tokens/s", "peer"), ("4 streams, first token", "peer")}
    run = await play(SCENE | {"fast": fast["peer"]})
    assert {name for name, reached in goals_of(run).items() if not reached} == missed
    fast["peer"]["d4"] |= fault
    run = await play(SCENE | {"fast": fast["peer"]})
    assert False not in goals_of(run).values()


@each_fault
async def test_a_peer_alone_that_fails_leaves_nothing_to_compare_with(play, fault):
    run = await play(changed("peer", "d16", to=PEERS["d16"] | fault))
    unjudged = {name for name, reached in goals_of(run).items() if reached is None}
    assert unjudged == {("16 streams, tokens/s", "peer"), ("16 streams, first token", "peer")}


@pytest.mark.parametrize(
    ("end", "beside"),
    [
        ({"pss": 1000, "rss": 5000, "kv_bytes": 300, "kv_written_bytes": 100}, 200),
        ({"pss": 1000, "rss": 5000, "kv_bytes": 300, "kv_written_bytes": 0}, 300),
        ({"pss": 600, "rss": 600, "kv_bytes": 0, "kv_written_bytes": 0}, -100),  # weights that were never touched
        ({"pss": 1000, "rss": 5000}, None),
        (None, None),
    ],
)
def test_memory_beside_the_weights_and_what_the_cache_holds(end, beside):
    assert beside_weights({"memory_at_end": end} if end else {}, 700) == beside
