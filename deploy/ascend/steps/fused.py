"""Step 5: our attention kernel beside npu_fused_infer_attention_score: differences, times, and what that depends on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from deploy.ascend.steps.attention import INACCURATE, PROMPTS
from deploy.ascend.steps.bench import Bench, bits
from deploy.ascend.steps.launches import Launch, Lengths, array_of, case_of, decoding, launch_of, times_of
from deploy.ascend.steps.report import Report, table
from tools.ascend.cases import AttentionCase, widened

NO_PARTNER = (
    "Upwell calls this operation with --prompt-attention fused alone; without, serving does not depend on it. CANN 8.2 "
    "and 8.3 refuse paging or heads of 128 in TND in some releases: compare on CANN 8.5.0 or newer."
)


def against_fused(bench: Bench, report: Report) -> None:
    """Step 5."""
    rows = []
    for group, dim in bench.sizes.heads:
        for name, lengths in _cases(bench).items():
            with report.attempt(f"{group} x {dim}, {name}", NO_PARTNER):
                case = case_of(bench, group, dim, lengths, empty=0.0)
                rows.append(
                    (f"{group} x {dim}, {name}", *_differences(bench, report, case, f"{group} x {dim}, {name}"))
                )
        with report.attempt(f"{group} x {dim}, what the fused operation depends on", NO_PARTNER):
            _dependence(bench, report, case_of(bench, group, dim, PROMPTS, empty=0.0))
    report.say(
        "ours and npu_fused_infer_attention_score on the same inputs; errors as shares of what rounding explains"
    )
    table(report, ("heads, case", "our error", "fused error", "largest difference"), rows)
    rows = []
    sizes = bench.sizes
    for batch in (sizes.batches[0], sizes.batches[-1]):
        for context in sizes.contexts[::2]:
            with report.attempt(f"times of {batch} x {context}", NO_PARTNER):
                rows.append((f"{batch} x {context}", *_times(bench, report, batch, context)))
    report.say("microseconds of a launch that decodes; the ratio is ours by the fused one's, the faster way of each")
    table(report, ("sequences x tokens", "ours eager", "graph", "fused eager", "graph", "ratio"), rows)


def _cases(bench: Bench) -> dict[str, Lengths]:
    longest, whole = bench.sizes.longest, 60 if bench.emulated else 700
    many = [longest - 100 * i for i in range(8)]
    return {"one decodes": [longest], "eight decode": many, "a prompt": [(whole, whole)], "chunks": PROMPTS}


def _differences(bench: Bench, report: Report, case: AttentionCase, name: str) -> tuple[str, ...]:
    """Cells of the table: both errors and the largest difference."""
    launch = launch_of(bench, case)
    ours, theirs = array_of(launch.ours()()), array_of(launch.fused()())
    own, other = case.worst(ours), case.worst(theirs)
    apart = float(np.abs(widened(ours) - widened(theirs)).max())
    report.check(own <= 1, f"{name}: our error is {own:.3g} of what rounding explains", INACCURATE)
    report.measured(
        f"{name}: at most {apart:.3g} from the fused operation, whose error is {other:.3g} of it",
        our_error=own, fused_error=other, difference=apart,
    )  # fmt: skip
    return f"{own:.3g}", f"{other:.3g}", f"{apart:.2e}"


def _dependence(bench: Bench, report: Report, case: AttentionCase) -> None:
    """Whether a sequence's result by the fused operation changes with its company, or with how it is cut."""
    together = launch_of(bench, case).fused()().cpu()
    group, dim = case.variant.group, case.variant.k_dim
    alone, cut = True, True
    for seq, (first, last) in enumerate(pairwise(case.q_starts.tolist())):
        whole = _queries(bench, case, seq, 0, last - first).fused()().cpu()
        alone &= bits(whole) == bits(together[first:last])
        middle = (last - first) // 2
        if middle:
            part = _queries(bench, case, seq, 0, middle).fused()().cpu()
            cut &= bits(part) == bits(whole[:middle])
    for same, what in ((alone, "the sequences beside it"), (cut, "how its prompt is cut")):
        text = "does not depend" if same else "depends"
        report.measured(f"{group} x {dim}: a sequence by the fused operation {text} on {what}, in bits", same=same)


def _queries(bench: Bench, case: AttentionCase, seq: int, first: int, last: int) -> Launch:
    """Some queries of one sequence, alone."""
    start, end = case.q_starts[seq : seq + 2].tolist()
    length = int(case.kv_lens[seq]) - (end - start) + last
    alone = replace(
        case,
        q=case.q[start + first : start + last],
        block_table=case.block_table[seq : seq + 1],
        q_starts=np.array([0, last - first], dtype=np.int32),
        kv_lens=np.array([length], dtype=np.int32),
    )
    return launch_of(bench, alone)


def _times(bench: Bench, report: Report, batch: int, context: int) -> tuple[str, ...]:
    """Cells of the table: both ways of both, and the ratio."""
    launch, _ = decoding(bench, batch, context)
    ours = times_of(bench, report, f"ours, {batch} x {context}", launch.ours())
    fused = times_of(bench, report, f"fused, {batch} x {context}", launch.fused())
    ratio = ours.best_s / fused.best_s
    report.measured(
        f"{batch} x {context}: our kernel takes {ratio:.2f} of the fused operation's time",
        sequences=batch, context=context, ours_s=ours.best_s, fused_s=fused.best_s, ratio=ratio,
    )  # fmt: skip
    return *ours.cells(), *fused.cells(), f"{ratio:.2f}"
