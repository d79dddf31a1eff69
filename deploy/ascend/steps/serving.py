"""Step 8: a whole engine with a real model: eagerly, with graphs, with a cache of int8; prompts alone and together."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.ascend.steps.bench import GIB, Bench
from deploy.ascend.steps.report import Report
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.tokenizer import load_tokenizer
from engine.types import GenerateRequest, SamplingParams, TokenDelta
from engine.weights.store import resolve_model
from kernels import resolve
from kernels.ascend.backend import ops_on
from server.settings import cache_dir

PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):",
    "Once upon a time, in a house at the edge of a forest, there lived a child who was afraid of nothing but",
)
DIFFERENT = (
    "The promise does not hold here. Look at step 3: an operation whose rows depend on their neighbours explains it; "
    "if all are the same there and step 4 passed, report both with the model's name."
)
NOT_LOADED = "Read the error: it names the flag, or the operation. --model takes another model; see `upwell doctor`."
NO_INT8 = "Serve without --kv-cache-dtype i8; the error names the operation. Step 4 tries that cache alone."
Answers = dict[str, list[int]]


@dataclass(frozen=True)
class Way:
    """One way to serve.

    Attributes:
        name: as it is printed.
        remedy: what to do if nothing is answered so.
    """

    name: str
    eager: bool
    kv_cache_dtype: str = "auto"
    remedy: str = NOT_LOADED


EAGER, GRAPHS = Way("eagerly", eager=True), Way("with graphs", eager=False)
INT8 = Way("with graphs and a cache of int8", eager=False, kv_cache_dtype="i8", remedy=NO_INT8)


def serving(bench: Bench, report: Report) -> None:
    """Step 8."""
    path = resolve_model(bench.model, cache_dir(None), report.say).path
    tokenizer = load_tokenizer(path)
    prompts = {f"prompt {i + 1}": tokenizer.encode(text, add_special=True) for i, text in enumerate(PROMPTS)}
    found: dict[Way, list[tuple[str, Answers]]] = {}
    with on_platform(bench):
        for way in (EAGER, GRAPHS, INT8):
            found[way] = []
            with report.attempt(way.name, way.remedy):
                _both_ways(bench, report, path, prompts, way, found[way])
            gc.collect()
    full = found[EAGER] + found[GRAPHS]
    _same(report, full)
    _same(report, found[INT8])
    if full and found[INT8]:
        tokens_in_common(report, full[0][1], found[INT8][0][1])
    for text, ids in zip(PROMPTS, full[0][1].values() if full else (), strict=False):
        report.say(f"{text!r} -> {tokenizer.decode(ids)!r}")


def _same(report: Report, found: Sequence[tuple[str, Answers]]) -> None:
    """Hold all answers to the first."""
    for name, answers in found[1:]:
        first_name, first = found[0]
        odd = [key for key in first if answers[key] != first[key]]
        text = f"{', '.join(odd)} differ" if odd else "the same tokens"
        report.check(not odd, f"{name}, and {first_name}: {text}", DIFFERENT)


def tokens_in_common(report: Report, full: Answers, int8: Answers) -> None:
    """How far a cache of int8 answers as one of the dtype does: rounded keys and values may choose other tokens."""
    common = [len(os.path.commonprefix([full[key], int8[key]])) for key in full]
    total = sum(map(len, full.values()))
    text = f"{sum(common)} of {total} tokens come before the first that a cache of int8 changes"
    report.measured(f"{text}: {', '.join(map(str, common))} of each prompt", common=common, tokens=total)


@contextlib.contextmanager
def on_platform(bench: Bench) -> Iterator[None]:
    """``--device ascend`` means the bench's platform: on a chip that is the backend as it stands."""
    before = resolve.BACKENDS["ascend"]
    if bench.emulated:
        resolve.BACKENDS["ascend"] = lambda options: ops_on(bench.platform, options)
    try:
        yield
    finally:
        resolve.BACKENDS["ascend"] = before


def _both_ways(
    bench: Bench,
    report: Report,
    path: Path,
    prompts: Mapping[str, list[int]],
    way: Way,
    found: list[tuple[str, Answers]],
) -> None:
    """Load an engine, answer all prompts together and each alone; no prefix of one run is known to the next."""
    began_s = time.perf_counter()
    config = EngineConfig(
        model_path=str(path), device="ascend", dtype=bench.dtype, eager=way.eager, kv_cache_dtype=way.kv_cache_dtype,
        enable_prefix_caching=False, max_num_seqs=len(prompts), max_num_batched_tokens=64, max_model_len=512,
        kv_cache_bytes=GIB // 2,
    )  # fmt: skip
    engine, ready = load_engine(config, lambda *_: None)
    seconds = time.perf_counter() - began_s
    report.measured(f"{ready.backend}: {ready.architecture} loaded {way.name} in {seconds:.1f} s", load_s=seconds)
    answers, rate = answered(engine, prompts, bench.sizes.answer)
    found.append((f"{way.name}, together", answers))
    report.measured(f"{way.name}, {len(prompts)} together: {rate:.1f} tokens/s, prompts included", tokens_per_s=rate)
    alone: Answers = {}
    rates = []
    for name, ids in prompts.items():
        answers, rate = answered(engine, {name: ids}, bench.sizes.answer)
        alone |= answers
        rates.append(rate)
    found.append((f"{way.name}, each alone", alone))
    rate = sum(rates) / len(rates)
    report.measured(f"{way.name}, one alone: {rate:.1f} tokens/s, prompts included", tokens_per_s=rate)


def answered(engine: Engine, prompts: Mapping[str, list[int]], max_tokens: int) -> tuple[Answers, float]:
    """Greedy answers, and tokens a second over all of them.

    Raises:
        RuntimeError: a request ended in an error.
    """
    began_s = time.perf_counter()
    answers: Answers = {name: [] for name in prompts}
    for delta in greedily(engine, prompts, max_tokens):
        answers[delta.request_id] += delta.token_ids
    return answers, sum(map(len, answers.values())) / (time.perf_counter() - began_s)


def greedily(
    engine: Engine, prompts: Mapping[str, list[int]], max_tokens: int, logprobs: int | None = None
) -> Iterator[TokenDelta]:
    """What steps add to greedy answers to prompts that come at once, until all have so many tokens.

    Raises:
        RuntimeError: a request ended in an error.
    """
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, logprobs=logprobs)
    for name, ids in prompts.items():
        engine.submit(GenerateRequest(name, ids, sampling))
    while engine.has_work:
        for delta in engine.step().deltas:
            if delta.error:
                raise RuntimeError(f"{delta.request_id}: {delta.error}")
            yield delta
