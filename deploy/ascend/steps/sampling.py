"""What the sampler asks of the device, as subjects of steps 2 and 3; and what it adds to a step's time, for step 7."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from deploy.ascend.steps.bench import Array, Bench
from deploy.ascend.steps.launches import times_of
from deploy.ascend.steps.report import Report, table
from deploy.ascend.steps.subjects import ROWS, Subject, exactly

TOP_SCORES = 65
DRAWN = 50
"""The top_k of a row that is drawn; one score more than that comes down."""
TIES = 5


def sampling_subjects(bench: Bench) -> list[Callable[[], Subject]]:
    """What builds them, in the order in which they are tried."""
    return [partial(best, bench), partial(highest, bench)]


def best(bench: Bench) -> Subject:
    """The token of each row's highest score: the lowest of those that tie, and -1 where a score is not finite."""
    from kernels.ascend.sampling import best_tokens  # noqa: PLC0415

    rng, size = np.random.default_rng(15), bench.sizes.vocabulary
    scores = rng.standard_normal((ROWS, size)).astype(np.float32)
    for row in range(1, ROWS, 3):
        scores[row, rng.choice(size, TIES, replace=False)] = scores[row].max()
    for row in range(2, ROWS, 3):
        scores[row, rng.integers(size)] = (np.nan, np.inf, -np.inf)[row // 3 % 3]

    def oracle(x: Array) -> list[tuple[Array, Array]]:
        return [exactly(np.where(np.isfinite(x).all(-1), x.argmax(-1), -1))]

    x = bench.upload(scores, bench.torch.float32)
    return Subject("best token of a row", (x,), lambda x: (best_tokens(bench.torch, x),), oracle)


def highest(bench: Bench) -> Subject:
    """The highest scores of each row, which are told apart by the last bits of a float32 alone."""
    rng, size = np.random.default_rng(16), bench.sizes.vocabulary
    order = np.argsort(rng.random((ROWS, size)), axis=1)
    x = bench.upload((1 + order * 2.0**-22).astype(np.float32), bench.torch.float32)

    def oracle(x: Array) -> list[tuple[Array, Array]]:
        return [exactly(np.sort(x)[:, : -TOP_SCORES - 1 : -1]), exactly(np.argsort(-x)[:, :TOP_SCORES])]

    return Subject("torch.topk", (x,), lambda x: tuple(x.topk(TOP_SCORES, dim=-1)), oracle)


def sampling_times(bench: Bench, report: Report) -> None:
    """What scores take of a step on the device: the best tokens in every step, the highest where rows are drawn."""
    from kernels.ascend.sampling import best_tokens  # noqa: PLC0415

    torch, size = bench.torch, bench.sizes.vocabulary
    rows = []
    for count in bench.sizes.batches:
        logits = torch.empty(count, size, dtype=torch.float32, device=bench.platform.device).normal_()
        best_of = times_of(bench, report, "the best tokens", partial(best_tokens, torch, logits))
        highest_of = times_of(bench, report, "the highest scores", partial(logits.topk, DRAWN + 1, dim=-1))
        report.measured(
            f"{count} x {size} scores: {best_of.best_s * 1e6:.1f} us for the best token of each, "
            f"{highest_of.best_s * 1e6:.1f} us for its {DRAWN + 1} highest",
            rows=count, vocabulary=size, best_s=best_of.best_s, highest_s=highest_of.best_s,
        )  # fmt: skip
        rows.append((f"{count} x {size}", *best_of.cells(), *highest_of.cells()))
    report.say("microseconds that sampling adds to a step on the device: the best tokens to all, the highest if drawn")
    table(report, ("rows x scores", "best eager", "graph", f"{DRAWN + 1} highest eager", "graph"), rows)
