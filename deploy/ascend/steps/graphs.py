"""Step 7: decoding steps captured as graphs and replayed, beside the same steps run eagerly, with either cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from deploy.ascend.steps.bench import GIB, Bench, Tensor
from deploy.ascend.steps.report import Report
from deploy.ascend.steps.sampling import sampling_times
from kernels.ascend.backend import ops_on
from kernels.ascend.plan import BLOCK_SIZE
from kernels.formats import RawTensor
from kernels.ops import AttentionBatch, BackendOptions, Ops, StepInputs, StepLimits
from kernels.spec import f32_tensor

EAGERLY = "Serve with --eager, which captures nothing and gives the same answers, only slower; report the lines."
NOT_TIMED = "Nothing else depends on it: read the error, and report the line."
CACHES = {"auto": "", "i8": ", a cache of int8"}
"""Kinds of cache -> what is said of them."""
LAYERS = 2
VOCABULARY = 512
MOST = 4
"""Sequences at once, each with blocks of its own."""
MAX_LEN = 3 * BLOCK_SIZE
PROMPT_LENS = (5, BLOCK_SIZE - 2, BLOCK_SIZE + 70)
STEPS = ((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 2), (1,), (1,), (0, 1, 2))
"""Which sequences decode in each step; the second one goes on into its next block."""


class Decoder:
    """A transformer of two layers with random weights, of the same ones on every table.

    Attributes:
        hidden: elements of a row; q_heads, kv_heads, dim: of attention.
    """

    def __init__(self, bench: Bench, ops: Ops) -> None:
        group, self.dim = bench.sizes.heads[0]
        self.kv_heads, self.q_heads = 2, 2 * group
        self.hidden = self.q_heads * self.dim
        self._ops, self._rng = ops, np.random.default_rng(21)
        blocks = MOST * (MAX_LEN // BLOCK_SIZE)
        outputs = (self.q_heads + 2 * self.kv_heads) * self.dim
        self._embedding = self._weight(VOCABULARY, self.hidden)
        self._layers = [
            (
                ops.prepare_vector(f32_tensor(np.ones(self.hidden))),
                ops.prepare_linear([self._weight(outputs, self.hidden)], None),
                ops.prepare_linear([self._weight(self.hidden, self.hidden)], None),
                ops.memory.alloc_cache(blocks, BLOCK_SIZE, self.kv_heads, self.dim),
            )
            for _ in range(LAYERS)
        ]
        self._head = ops.prepare_linear([self._embedding], None)
        self._rope = ops.prepare_rope(10000.0 ** (-np.arange(self.dim // 2) / (self.dim // 2)), 1.0, MAX_LEN)

    def _weight(self, rows: int, columns: int) -> RawTensor:
        return f32_tensor(self._rng.standard_normal((rows, columns)) / np.sqrt(columns))

    def __call__(self, inputs: StepInputs) -> Tensor:
        """Logits f32[R,V] of a step."""
        ops = self._ops
        x = ops.embed(inputs.token_ids, self._head)
        ends = self.q_heads * self.dim, (self.q_heads + self.kv_heads) * self.dim
        for norm, qkv_weight, out_weight, cache in self._layers:
            qkv = ops.linear(ops.rms_norm(x, norm, 1e-5), qkv_weight)
            q, k, v = (part.reshape(len(part), -1, self.dim) for part in (
                qkv[:, : ends[0]], qkv[:, ends[0] : ends[1]], qkv[:, ends[1] :],
            ))  # fmt: skip
            ops.write_kv(cache, ops.rope(k, inputs.positions, self._rope), v, inputs.slots)
            q = ops.rope(q, inputs.positions, self._rope)
            seen = ops.paged_attention(q, cache, inputs.attention, self.dim**-0.5, None)
            x = ops.add_rms_norm(ops.linear(seen.reshape(len(seen), -1), out_weight), x, norm, 1e-5)[0]
        return ops.logits(x, inputs.logit_rows, self._head)


def step_inputs(spans: Sequence[tuple[int, int, int]]) -> StepInputs:
    """A step's arrays: (sequence, tokens that it has already, tokens of this step) of each; tokens are made up."""
    per = MAX_LEN // BLOCK_SIZE
    positions = np.concatenate([np.arange(done, done + count) for _, done, count in spans])
    seqs = np.repeat([seq for seq, _, _ in spans], [count for _, _, count in spans])
    table = np.stack([seq * per + np.random.default_rng(seq).permutation(per) for seq, _, _ in spans])
    rows = np.cumsum([count for _, _, count in spans])
    of_row = {seq: row for row, (seq, _, _) in enumerate(spans)}
    blocks = table[[of_row[seq] for seq in seqs], positions // BLOCK_SIZE]
    i32: Any = np.int32
    kv_lens = np.array([done + count for _, done, count in spans], dtype=i32)
    attention = AttentionBatch(np.concatenate([[0], rows]).astype(i32), kv_lens, table.astype(i32))
    tokens = (positions * 7 + seqs * 131) % VOCABULARY
    slots = blocks * BLOCK_SIZE + positions % BLOCK_SIZE
    return StepInputs(tokens.astype(i32), positions.astype(i32), slots.astype(i32), attention, (rows - 1).astype(i32))


def graphs(bench: Bench, report: Report) -> None:
    """Step 7: the same steps on two tables, one of which captures, with either cache; and what sampling adds to one."""
    for kv_cache_dtype, cache in CACHES.items():
        with report.attempt(f"graphs{cache}", EAGERLY):
            _captured_and_not(bench, report, kv_cache_dtype, cache)
    with report.attempt("the time of sampling", NOT_TIMED):
        sampling_times(bench, report)


def _captured_and_not(bench: Bench, report: Report, kv_cache_dtype: str, cache: str) -> None:
    made: list[Counted] = []

    def new_graph() -> Any:
        made.append(Counted(bench.platform.new_graph()))
        return made[-1].graph

    limits = StepLimits(MOST * MAX_LEN, MOST, MAX_LEN)
    free, began_s = bench.platform.free_bytes(), time.perf_counter()
    counted = dataclasses.replace(bench.platform, new_graph=new_graph)
    ops = ops_on(counted, BackendOptions(dtype=bench.dtype, kv_cache_dtype=kv_cache_dtype))
    replayed = ops.record(Decoder(bench, ops), limits)
    bench.platform.synchronize()
    seconds, taken = time.perf_counter() - began_s, (free - bench.platform.free_bytes()) / GIB
    report.check(len(made) > 0, f"{len(made)} graphs captured in {seconds:.2f} s{cache}", EAGERLY)
    report.measured(f"they and the model took {taken:.2f} GiB", capture_s=seconds, taken_gib=taken)
    eager_ops = bench.ops_for(eager=True, kv_cache_dtype=kv_cache_dtype)
    eager = eager_ops.record(Decoder(bench, eager_ops), limits)
    done = _compare(report, replayed, eager, cache)
    replays = sum(graph.replays for graph in made)
    report.check(replays == len(STEPS), f"graphs were replayed {replays} times in {len(STEPS)} steps{cache}", EAGERLY)
    inputs = step_inputs([(seq, count, 1) for seq, count in enumerate(done)])
    times = [bench.seconds(partial(run, inputs)) for run in (replayed, eager)]
    text = f"{times[0] * 1e3:.3f} ms as a graph, {times[1] * 1e3:.3f} ms eagerly"
    what = f"a step of {len(done)} sequences{cache}"
    report.measured(f"{what}: {text}", graph_s=times[0], eager_s=times[1], kv_cache_dtype=kv_cache_dtype)


class Counted:
    """A graph whose replays are counted, so that eager steps are not taken for them.

    Attributes:
        graph: the platform's own.
        replays: so far.
    """

    def __init__(self, graph: Any) -> None:
        self.graph, self.replays = graph, 0
        self._replay = graph.replay
        graph.replay = self._counted

    def _counted(self) -> None:
        self.replays += 1
        self._replay()


def _compare(report: Report, replayed: Any, eager: Any, cache: str) -> list[int]:
    """The steps of both, one after the other; how many tokens each sequence has then."""
    done = list(PROMPT_LENS)
    prompts = step_inputs([(seq, 0, count) for seq, count in enumerate(PROMPT_LENS)])
    _equal(report, f"prompts, which both run eagerly{cache}", replayed(prompts), eager(prompts))
    for seqs in STEPS:
        inputs = step_inputs([(seq, done[seq], 1) for seq in seqs])
        lens = ", ".join(str(done[seq] + 1) for seq in seqs)
        _equal(report, f"decoding at {lens} tokens, as a graph and eagerly{cache}", replayed(inputs), eager(inputs))
        for seq in seqs:
            done[seq] += 1
    return done


def _equal(report: Report, what: str, one: Any, other: Any) -> None:
    a, b = (scores.rows(range(len(scores.best))) for scores in (one, other))
    good = a.tobytes() == b.tobytes() and bool(np.isfinite(a).all()) and one.best.tolist() == other.best.tolist()
    text = "the same bits" if good else f"{int((a != b).sum())} of {a.size} logits differ, or are not finite"
    report.check(good, f"{what}: {text}", EAGERLY)
