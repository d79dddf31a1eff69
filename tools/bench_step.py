"""What a step costs beside the model: everything between two forward passes of a decoding engine.

The engine's own loop runs over a real socket, whose other end a process of its own empties. Counted is the time from
the end of one forward pass to the start of the next: choosing tokens, their text, the message to the server, the look
into the inbox, the next plan and the next batch. It is taken twice. *Warm*, a model answers at once and Python has the
caches to itself: a floor. *Cold*, native code reads as many weights as a small model has, so that Python finds nothing
of its own in the caches, as in service. ``upwell_between_steps_seconds`` in /metrics counts the same in a serving
process, and ``make bench`` reads it there: an API process that wants the core comes on top.

    .venv/bin/python tools/bench_step.py [MODEL]       MODEL lends its tokenizer; smollm2-135m by default
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import sys
import time
from typing import Any

import numpy as np

from engine.config import CacheConfig, SchedulerConfig
from engine.engine import Engine
from engine.process import Link, serve
from engine.tokenizer import Tokenizer, load_tokenizer
from engine.types import GenerateRequest, SamplingParams
from engine.weights.store import resolve_model
from kernels.cpu.backend import cpu_ops
from kernels.formats import RawTensor, WeightFormat
from kernels.ops import F32, I32, BackendOptions, DrawParams, HostScores, Scores, StepInputs, StepLimits, Tensor
from server.settings import DEFAULT_MODEL, cache_dir

VOCAB_SIZE = 49152
PROMPT_TOKENS, NEW_TOKENS, WARM_UP = 1000, 300, 50
HIDDEN, NUM_PRODUCTS = 1024, 40
"""Of the model that reads weights: 98 MB of them a step."""
BUDGETS_US = {1: 150, 64: 1000}
"""When cold, for all but penalties, which grow with the text that they look back on."""
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.8, "top_p": 0.95},
    "drawn, penalties": {"temperature": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.2},
    "greedy, stop strings": {"temperature": 0.0, "stop": ("\n\nUser:", "</answer>")},
}


class EnoughSteps(Exception):
    """The figures are complete."""


class InstantRunner:
    """A model without weights, whose answers come at once; notes after each step what the clocks say."""

    vocab_size = VOCAB_SIZE

    def __init__(self, num_seqs: int) -> None:
        self._answers = np.random.default_rng(0).integers(1000, VOCAB_SIZE, (64, num_seqs)).astype(np.int32)
        self._logits = np.zeros((num_seqs, VOCAB_SIZE), dtype=np.float32)
        self._clocks_s: list[tuple[float, float]] = []

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """There is no cache."""

    def forward(self, batch: StepInputs) -> Scores:
        """Some tokens, and logits that are all 0."""
        rows = len(batch.logit_rows)
        logits = self._logits[:rows]
        if len(batch.token_ids) == self._answers.shape[1]:  # every sequence decodes
            logits = self.compute(batch, logits)
            self._clocks_s.append((time.monotonic(), self.native_wall_s()))
            if len(self._clocks_s) == NEW_TOKENS:
                raise EnoughSteps
        return HostScores(logits, self._answers[len(self._clocks_s) % 64, :rows])

    def compute(self, _batch: StepInputs, logits: F32) -> F32:
        """The logits as they are."""
        return logits

    def draw(self, logits: F32, params: DrawParams) -> I32:
        """Some tokens; what a backend's own draw takes is not counted."""
        return self._answers[len(self._clocks_s) % 64, : len(params.uniform)]

    def native_cpu_s(self) -> float:
        """None of it is native."""
        return 0.0

    def native_wall_s(self) -> float:
        """None of it is native."""
        return 0.0

    def native_rested(self) -> int:
        """None of it is native."""
        return 0

    def between_us(self) -> F32:
        """Microseconds from the native code of one step to that of the next, one a step."""
        steps_s = np.diff(np.array(self._clocks_s[WARM_UP:]), axis=0)
        return (1e6 * (steps_s[:, 0] - steps_s[:, 1])).astype(np.float32)


class ReadingRunner(InstantRunner):
    """A model whose weights are all 0, but have to be read to know."""

    def __init__(self, num_seqs: int) -> None:
        super().__init__(num_seqs)
        ops = cpu_ops(BackendOptions())
        head = ops.prepare_linear([_zeros(VOCAB_SIZE)], None)
        products = [ops.prepare_linear([_zeros(HIDDEN)], None) for _ in range(NUM_PRODUCTS)]

        def forward(inputs: StepInputs) -> Tensor:
            x = ops.embed(inputs.token_ids, head)
            for product in products:
                x = ops.linear(x, product)
            return ops.logits(x, inputs.logit_rows, head)

        self._step = ops.record(forward, StepLimits(num_seqs, num_seqs, 1))
        self._native_wall_s = ops.native_wall_s

    def compute(self, batch: StepInputs, _logits: F32) -> F32:
        """Zeros, the long way."""
        return self._step(batch).rows(range(len(batch.logit_rows)))

    def native_wall_s(self) -> float:
        """Seconds that it has read."""
        return self._native_wall_s()


def _zeros(num_outputs: int) -> RawTensor:
    row_bytes = HIDDEN // 32 * 34
    return RawTensor((num_outputs, HIDDEN), WeightFormat.Q8_0, np.zeros((num_outputs, row_bytes), dtype=np.uint8))


def measure(tokenizer: Tokenizer, runner: InstantRunner, num_seqs: int, sampling: dict[str, Any]) -> F32:
    """Microseconds of each step, with ``num_seqs`` sequences that decode."""
    limits = SchedulerConfig(num_seqs, 4096, PROMPT_TOKENS + 2 * NEW_TOKENS)
    engine = Engine(runner, tokenizer, (0,), limits, CacheConfig(num_seqs * 128, 16))
    rng = np.random.default_rng(1)
    for index in range(num_seqs):
        params = SamplingParams(max_tokens=2 * NEW_TOKENS, seed=index, **sampling)
        prompt = rng.integers(0, VOCAB_SIZE, PROMPT_TOKENS).tolist()
        engine.submit(GenerateRequest(f"chatcmpl-{index:024d}", prompt, params))
    ours, theirs = socket.socketpair()
    reader = multiprocessing.get_context("fork").Process(target=empty, args=(theirs, ours), daemon=True)
    reader.start()
    theirs.close()
    with contextlib.suppress(EnoughSteps), ours:
        serve(Link(ours), engine)
    reader.join()
    return runner.between_us()


def empty(sock: socket.socket, other_end: socket.socket) -> None:
    """The server's end: read until the engine's is closed."""
    other_end.close()
    while sock.recv(1 << 18):
        pass


def main() -> int:
    model = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL
    tokenizer = load_tokenizer(resolve_model(model, cache_dir(None), print).path)
    within = True
    print(f"{'sequences':>9}  {'sampling':<22}{'warm p50':>9}{'p90 us':>8}{'cold p50':>10}{'p90 us':>8}{'budget':>8}")
    for num_seqs in (1, 16, 64):
        for name, sampling in SAMPLINGS.items():
            runners = InstantRunner(num_seqs), ReadingRunner(num_seqs)
            warm, cold = (np.percentile(measure(tokenizer, each, num_seqs, sampling), [50, 90]) for each in runners)
            budget = None if "penalties" in name else BUDGETS_US.get(num_seqs)
            within &= budget is None or cold[0] <= budget
            figures = f"{warm[0]:>9.0f}{warm[1]:>8.0f}{cold[0]:>10.0f}{cold[1]:>8.0f}"
            print(f"{num_seqs:>9}  {name:<22}{figures}{budget or '':>8}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
