"""What a prediction saves: tokens a second of a model whose answers are foretold rightly, partly, wrongly, or not.

The engine runs in this process. Each answer is drawn once without a prediction, and then again with what is made of it:
the answer itself, one with every twentieth token another, one whose second half is another answer's, and another
answer's altogether. All kinds take turns in each round, so that whatever else the machine does, it does to all. Tokens
are counted from the end of the first step, with the prompt behind it. That answers are the same is checked.

    .venv/bin/python -m tools.bench_prediction [MODEL]       smollm2-135m by default
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

import msgspec

from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.tokenizer import load_tokenizer
from engine.types import GenerateRequest, SamplingParams, Usage
from engine.weights.store import resolve_model
from server.settings import DEFAULT_MODEL, cache_dir

TEXT = "The harbour town had three lighthouses, and each of them was kept by someone who did not trust the other two. "
NEW_TOKENS, ROUNDS = 256, 7
STREAMS = (1, 8)
EDIT_EVERY = 20
KINDS = ("none", "right", "edited", "half right", "wrong")


def requests_of(prompt: Sequence[int], num_streams: int) -> list[GenerateRequest]:
    """One more than there are streams: the last one's answer is what others are foretold wrongly."""
    return [
        GenerateRequest(
            str(i), [*prompt], SamplingParams(max_tokens=NEW_TOKENS, temperature=0.8, seed=i, ignore_eos=True)
        )
        for i in range(num_streams + 1)
    ]


def foretold(kind: str, answer: list[int], other: list[int]) -> tuple[int, ...]:
    """What is predicted of an answer."""
    if kind == "edited":
        return tuple(other[i] if i % EDIT_EVERY == 0 else token for i, token in enumerate(answer))
    half = len(answer) // 2
    return tuple({"none": [], "right": answer, "half right": answer[:half] + other[half:], "wrong": other}[kind])


def run(engine: Engine, requests: Sequence[GenerateRequest]) -> tuple[dict[str, list[int]], list[Usage], float, int]:
    """Answers by request, what they cost, tokens a second of all, and steps."""
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    usages: list[Usage] = []
    begun_s, before, first_step = 0.0, 0, engine.stats().steps
    while engine.has_work:
        for delta in engine.step().deltas:
            answers[delta.request_id] += delta.token_ids
            if delta.usage is not None:
                usages.append(delta.usage)
        if not begun_s and all(answers.values()):
            begun_s, before = time.perf_counter(), sum(map(len, answers.values()))
    tokens = sum(map(len, answers.values())) - before
    return answers, usages, tokens / (time.perf_counter() - begun_s), engine.stats().steps - first_step


def measure(engine: Engine, prompt: Sequence[int], num_streams: int) -> None:
    """All kinds in turns, and a row of the table for each."""
    *requests, spare = requests_of(prompt, num_streams)
    answers = run(engine, [*requests, spare])[0]
    other = answers[spare.request_id]
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    rows: dict[str, tuple[int, int, int]] = {}
    for _ in range(ROUNDS):
        for kind in KINDS:
            given = [
                msgspec.structs.replace(each, prediction_ids=foretold(kind, answers[each.request_id], other))
                for each in requests
            ]
            got, usages, rate, steps = run(engine, given)
            if got != {each.request_id: answers[each.request_id] for each in requests}:
                raise SystemExit(f"a prediction has changed an answer: {kind}, {num_streams} streams")
            rates[kind].append(rate)
            rows[kind] = (steps, sum(u.accepted_tokens for u in usages), sum(u.rejected_tokens for u in usages))
    plain = statistics.median(rates["none"])
    for kind in KINDS:
        rate, low, high = statistics.median(rates[kind]), min(rates[kind]), max(rates[kind])
        steps, accepted, rejected = rows[kind]
        print(
            f"{num_streams:>7}  {kind:<12}{rate:>9.1f}{rate / plain:>7.2f}x{low:>9.1f} to {high:<8.1f}"
            f"{steps:>6}{accepted:>10}{rejected:>10}"
        )


def main() -> int:
    """Measure, and print the table."""
    model = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL
    path = resolve_model(model, cache_dir(None), print).path
    prompt = load_tokenizer(path).encode(TEXT, add_special=True)
    engine, ready = load_engine(EngineConfig(model_path=str(path), max_model_len=2048), lambda *_: None)
    print(f"{model} on {ready.backend}; {NEW_TOKENS} tokens a stream, medians of {ROUNDS} rounds")
    print(
        f"{'streams':>7}  {'prediction':<12}{'tokens/s':>9}{'':>8}{'':>21}{'steps':>6}{'accepted':>10}{'rejected':>10}"
    )
    for num_streams in STREAMS:
        measure(engine, prompt, num_streams)
    return 0


if __name__ == "__main__":
    sys.exit(main())
