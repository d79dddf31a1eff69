"""Step 8: a whole engine with a real model: eagerly and with graphs, each prompt alone and all together."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.ascend.steps.bench import GIB, Bench
from deploy.ascend.steps.report import Report
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.tokenizer import load_tokenizer
from engine.types import GenerateRequest, SamplingParams
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
Answers = dict[str, list[int]]


def serving(bench: Bench, report: Report) -> None:
    """Step 8."""
    path = resolve_model(bench.model, cache_dir(None), report.say).path
    tokenizer = load_tokenizer(path)
    prompts = {f"prompt {i + 1}": tokenizer.encode(text, add_special=True) for i, text in enumerate(PROMPTS)}
    found: dict[str, Answers] = {}
    with on_platform(bench):
        for eager in (True, False):
            with report.attempt("eagerly" if eager else "with graphs", NOT_LOADED):
                _both_ways(bench, report, path, prompts, eager=eager, found=found)
            gc.collect()
    if found:
        first_name, first = next(iter(found.items()))
        for name, answers in found.items():
            odd = [key for key in prompts if answers[key] != first[key]]
            text = f"{', '.join(odd)} differ" if odd else "the same tokens"
            if answers is not first:
                report.check(not odd, f"{name}, and {first_name}: {text}", DIFFERENT)
        for text, ids in zip(PROMPTS, first.values(), strict=True):
            report.say(f"{text!r} -> {tokenizer.decode(ids)!r}")


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
    *,
    eager: bool,
    found: dict[str, Answers],
) -> None:
    """Load an engine, answer all prompts together and each alone; no prefix of one run is known to the next."""
    how, began_s = "eagerly" if eager else "with graphs", time.perf_counter()
    config = EngineConfig(
        model_path=str(path), device="ascend", dtype=bench.dtype, eager=eager, enable_prefix_caching=False,
        max_num_seqs=len(prompts), max_num_batched_tokens=64, max_model_len=512, kv_cache_bytes=GIB // 2,
    )  # fmt: skip
    engine, ready = load_engine(config, lambda *_: None)
    seconds = time.perf_counter() - began_s
    report.measured(f"{ready.backend}: {ready.architecture} loaded {how} in {seconds:.1f} s", load_s=seconds)
    answers, rate = answered(engine, prompts, bench.sizes.answer)
    found[f"{how}, together"] = answers
    report.measured(f"{how}, {len(prompts)} together: {rate:.1f} tokens/s, prompts included", tokens_per_s=rate)
    alone: Answers = {}
    rates = []
    for name, ids in prompts.items():
        answers, rate = answered(engine, {name: ids}, bench.sizes.answer)
        alone |= answers
        rates.append(rate)
    found[f"{how}, each alone"] = alone
    rate = sum(rates) / len(rates)
    report.measured(f"{how}, one alone: {rate:.1f} tokens/s, prompts included", tokens_per_s=rate)


def answered(engine: Engine, prompts: Mapping[str, list[int]], max_tokens: int) -> tuple[Answers, float]:
    """Greedy answers, and tokens a second over all of them.

    Raises:
        RuntimeError: a request ended in an error.
    """
    began_s = time.perf_counter()
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    answers: Answers = {name: [] for name in prompts}
    for name, ids in prompts.items():
        engine.submit(GenerateRequest(name, ids, sampling))
    while engine.has_work:
        for delta in engine.step().deltas:
            if delta.error:
                raise RuntimeError(f"{delta.request_id}: {delta.error}")
            answers[delta.request_id] += delta.token_ids
    return answers, sum(map(len, answers.values())) / (time.perf_counter() - began_s)
