"""Steps 2 and 3: the operations against NumPy in float64, and whether a row depends on the rows beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from deploy.ascend.steps.bench import Bench, Tensor, bits, f64
from deploy.ascend.steps.caches import cache_subjects
from deploy.ascend.steps.report import Report, table
from deploy.ascend.steps.sampling import sampling_subjects
from deploy.ascend.steps.subjects import ROWS, Subject, Subjects

OTHERS = (2, 16, 17, 255, 256, 257)
"""How many rows a row travels with."""
FEW = 19
"""Rows that step 2 computes: neither a tile nor a power of two."""
WRONG = (
    "Compare torch, torch_npu and CANN with the sets that `upwell doctor` prints, and report the line: nothing that "
    "uses this operation should be served."
)
REFUSED = (
    "The arguments are those of the backend: compare torch_npu and CANN with `upwell doctor`, and report the line."
)


def accuracy(bench: Bench, report: Report) -> None:
    """Step 2."""
    for subject in _built(bench, report):
        if subject.oracle is None:
            continue
        with report.attempt(subject.name, subject.way_out or REFUSED):
            rows = tuple(tensor[:FEW].contiguous() for tensor in subject.rows)
            results = subject.run(*rows)
            bench.platform.synchronize()
            worst = _worst(subject, rows, results)
            text = f"{subject.name}: {worst:.3g} times what rounding explains"
            report.check(worst <= 1, text, subject.way_out or WRONG)
    with report.attempt("FRACTAL_NZ", REFUSED):
        _ = bench.ops  # which allows FRACTAL_NZ
        weight = bench.upload(np.ones((64, 64), dtype=np.int8))
        kept = int(bench.npu.get_npu_format(bench.npu.npu_format_cast(weight, 29)))
        remedy = "The weight stays in ND: correct, but slower. Look for a warning about allow_internal_format."
        report.check(kept == 29, f"npu_format_cast: an int8 weight is in format {kept} of 29", remedy)


def _built(bench: Bench, report: Report) -> Iterator[Subject]:
    """The subjects, one at a time; one that cannot be built is a failure."""
    for build in (*Subjects(bench).all(), *cache_subjects(bench), *sampling_subjects(bench)):
        subject = None
        with report.attempt(_name(build), REFUSED):
            subject = build()
        if subject is not None:
            yield subject


def _name(build: Callable[[], Subject]) -> str:
    """Of what could not be built."""
    function = build.func if isinstance(build, partial) else build
    return getattr(function, "__name__", "an operation")


def _worst(subject: Subject, rows: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> float:
    """The largest error as a share of what is allowed."""
    worst = 0.0
    oracle = subject.oracle(*map(f64, rows)) if subject.oracle else []
    for got, (want, allowed) in zip(map(f64, results), oracle, strict=True):
        if got.shape != want.shape or not np.isfinite(got).all():
            return float("inf")
        off = np.abs(got - want)
        shares = np.where(off == 0, 0.0, off / np.maximum(allowed, 1e-300))
        worst = max(worst, float(shares.max()))
    return worst


def invariance(bench: Bench, report: Report) -> None:
    """Step 3: the table that the engine's promise stands on."""
    lines, alone_or_not = [], []
    for subject in _built(bench, report):
        with report.attempt(subject.name, subject.way_out or REFUSED):
            cells = [_compared(subject, others) for others in OTHERS]
            lines.append((subject.name, *cells))
            alone_or_not.append((subject, cells))
    report.say("a row among so many others, against the same row alone, at three places: bits")
    table(report, ("operation", *map(str, OTHERS)), lines)
    for subject, cells in alone_or_not:
        same = set(cells) == {"same"}
        if subject.serves:
            text = "a row does not depend on its neighbours" if same else "a row depends on its neighbours"
            report.check(same, f"{subject.name}: {text}", subject.remedy)
        else:
            text = "no difference either" if same else "rows depend on their neighbours, so the backend does otherwise"
            report.measured(f"{subject.name}: {text}", same=same)


def _compared(subject: Subject, others: int) -> str:
    """``same``, or how many elements of the row's results differ in at most."""
    differing = 0
    for place in (0, others // 2, others):
        row = (37 * place + 5) % ROWS
        alone = _rows_of(subject.run, tuple(tensor[row : row + 1] for tensor in subject.rows), 0)
        neighbours = [(row + 1 + i) % ROWS for i in range(others)]
        order = [*neighbours[:place], row, *neighbours[place:]]
        among = _rows_of(subject.run, tuple(_picked(tensor, order) for tensor in subject.rows), place)
        differing = max(differing, sum(_different(one, other) for one, other in zip(alone, among, strict=True)))
    return f"{differing} differ" if differing else "same"


def _picked(tensor: Tensor, order: list[int]) -> Tensor:
    """Rows in another order, chosen on the host so that no operation of the device is relied upon."""
    return tensor.cpu()[order].to(tensor.device)


def _rows_of(run: Callable[..., tuple[Tensor, ...]], rows: tuple[Tensor, ...], place: int) -> list[Tensor]:
    return [result.cpu()[place].contiguous() for result in run(*(tensor.contiguous() for tensor in rows))]


def _different(one: Tensor, other: Tensor) -> int:
    if bits(one.reshape(-1)) == bits(other.reshape(-1)):
        return 0
    return max(1, int((f64(one) != f64(other)).sum()))
