"""Step 6: how fast decoding reads keys and values, beside a copy on the same chip. No figure here is a vendor's."""

from __future__ import annotations

from deploy.ascend.steps.bench import GIB, Bench
from deploy.ascend.steps.launches import Launch, decoding, times_of
from deploy.ascend.steps.report import Report, table
from kernels.ascend.variant import Dtype

NOT_TIMED = "Read the error; with too little free memory end other processes (npu-smi info), then run this step alone."
KINDS: dict[Dtype, str] = {"fp32": "", "i32": ", i8", "fp16": ", scores f16"}
"""As what scores travel -> what is said of it; float16, of the longest context alone."""


def bandwidth(bench: Bench, report: Report) -> None:
    """Step 6."""
    rate = copy_rate(bench)
    size = bench.sizes.copy_bytes / GIB
    report.measured(f"copy of {size:g} GiB: {rate / 1e9:.1f} GB/s, read and written", copy_gb_per_s=rate / 1e9)
    rows = []
    for batch in bench.sizes.batches:
        for context in bench.sizes.contexts:
            for scores, said in KINDS.items():
                if scores == "fp16" and context != max(bench.sizes.contexts):
                    continue
                what = f"{batch} x {context}{said}"
                with report.attempt(what, NOT_TIMED):
                    decode = decoding(bench, batch, context, scores=scores)
                    rows.append((what, *_timed(bench, report, what, decode, rate)))
    report.say(
        "one launch that decodes; GB/s of keys and values, by the faster way; small ones are launches, not reads"
    )
    table(report, ("sequences x tokens", "eager us", "graph us", "KV MB", "GB/s", "of the copy"), rows)


def copy_rate(bench: Bench) -> float:
    """Bytes that a copy reads and writes a second, by the median of some."""
    torch = bench.torch
    source = torch.ones(bench.sizes.copy_bytes // 4, dtype=torch.float32, device=bench.platform.device)
    target = torch.empty_like(source)
    return 2 * bench.sizes.copy_bytes / bench.seconds(lambda: target.copy_(source))


def _timed(bench: Bench, report: Report, what: str, decode: tuple[Launch, int], rate: float) -> tuple[str, ...]:
    """Cells of the table."""
    launch, kv_bytes = decode
    times = times_of(bench, report, what, launch.ours())
    got = kv_bytes / times.best_s
    report.measured(
        f"{what}: {got / 1e9:.2f} GB/s, {got / rate:.1%} of the copy",
        sequences=len(launch.kv_lens), context=int(launch.kv_lens[0]), int8=launch.k_scale is not None,
        scores=launch.scores, eager_s=times.eager_s, graph_s=times.graph_s, kv_bytes=kv_bytes,
        gb_per_s=got / 1e9, of_copy=got / rate,
    )  # fmt: skip
    return *times.cells(), f"{kv_bytes / 1e6:.1f}", f"{got / 1e9:.2f}", f"{got / rate:.1%}"
