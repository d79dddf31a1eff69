"""What a step costs beside the model: everything between two forward passes of a decoding engine.

The engine's own loop runs over a real socket, whose other end a process of its own empties, with a model that answers
at once. Counted is the time from the end of one forward pass to the start of the next: choosing tokens, their text,
the message to the server, the look into the inbox, the next plan and the next batch. Alone on its caches: a floor.
``upwell_between_steps_seconds`` in /metrics counts the same in a serving process, and ``make bench`` reads it there.

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
from kernels.ops import F32, I32, DrawParams, Scores, StepInputs
from server.settings import DEFAULT_MODEL, cache_dir

VOCAB_SIZE = 49152
PROMPT_TOKENS, NEW_TOKENS, WARM_UP = 1000, 500, 50
BUDGETS_US = {1: 150, 64: 1000}
"""For all but penalties, which grow with the text that they look back on."""
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.8, "top_p": 0.95},
    "drawn, penalties": {"temperature": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.2},
    "greedy, stop strings": {"temperature": 0.0, "stop": ("\n\nUser:", "</answer>")},
}


class EnoughSteps(Exception):
    """The figures are complete."""


class InstantRunner:
    """A model without weights, whose answers come at once; notes when it was called, and when it returned."""

    vocab_size = VOCAB_SIZE

    def __init__(self, num_seqs: int) -> None:
        self._answers = np.random.default_rng(0).integers(1000, VOCAB_SIZE, (64, num_seqs)).astype(np.int32)
        self._logits = np.zeros((num_seqs, VOCAB_SIZE), dtype=np.float32)
        self.called_s: list[float] = []
        self.returned_s: list[float] = []

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """There is no cache."""

    def forward(self, batch: StepInputs) -> Scores:
        """Some tokens, and logits that are all 0."""
        called_s = time.perf_counter()
        rows = len(batch.logit_rows)
        if len(batch.token_ids) == self._answers.shape[1]:  # every sequence decodes
            self.called_s.append(called_s)
            self.returned_s.append(time.perf_counter())
            if len(self.called_s) == NEW_TOKENS:
                raise EnoughSteps
        return Scores(self._logits[:rows], self._answers[len(self.called_s) % 64, :rows])

    def draw(self, logits: F32, params: DrawParams) -> I32:
        """Some tokens; what a backend's own draw takes is not counted."""
        return self._answers[len(self.called_s) % 64, : len(params.uniform)]

    def native_cpu_s(self) -> float:
        """None of it is native."""
        return 0.0

    def native_wall_s(self) -> float:
        """None of it is native."""
        return 0.0

    def between_us(self) -> F32:
        """Microseconds between a return and the next call, one a step."""
        gaps = np.array(self.called_s[1:]) - np.array(self.returned_s[:-1])
        return (1e6 * gaps[WARM_UP:]).astype(np.float32)


def measure(tokenizer: Tokenizer, num_seqs: int, sampling: dict[str, Any]) -> F32:
    """Microseconds of each step, with ``num_seqs`` sequences that decode."""
    runner = InstantRunner(num_seqs)
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
    print(f"{'sequences':>9}  {'sampling':<22}{'p50 us':>8}{'p90 us':>8}{'budget':>8}")
    for num_seqs in (1, 16, 64):
        for name, sampling in SAMPLINGS.items():
            p50, p90 = np.percentile(measure(tokenizer, num_seqs, sampling), [50, 90])
            budget = None if "penalties" in name else BUDGETS_US.get(num_seqs)
            within &= budget is None or p50 <= budget
            print(f"{num_seqs:>9}  {name:<22}{p50:>8.0f}{p90:>8.0f}{budget or '':>8}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
