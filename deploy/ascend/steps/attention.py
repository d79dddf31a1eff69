"""Step 4: our attention kernel launched, held to NumPy in float64, and to itself in other company."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from deploy.ascend.steps.bench import Bench, Tensor, bits, f64
from deploy.ascend.steps.launches import Lengths, array_of, case_of, launch_of
from deploy.ascend.steps.report import Report
from kernels.ascend.plan import BLOCK_SIZE, SPLIT
from kernels.ascend.variant import Dtype
from tools.ascend.cases import BORDERS, AttentionCase

NOT_LAUNCHED = (
    "Run this step alone with TRITON_DEBUG=1 TRITON_ALWAYS_COMPILE=1: a compiler error names a line of "
    "kernels/ascend/paged_decode.py, one of the launch has a code for `upwell doctor CODE`. Nothing serves without it."
)
INACCURATE = (
    "The kernel computes something else here than in every emulation: do not serve; report the line with the versions "
    "of step 0. If decoding passed and only prompts failed, --prompt-attention fused goes round those."
)
DEPENDS = "A token would depend on its neighbours: do not serve; report the line with the versions of step 0."
INT8_WRONG = "Keys and values are not what was written: leave --kv-cache-dtype out, and report the line."
HALF_STEP_SLACK = 1e-3
"""Of a step: scale, quotient and product are of float32."""
HALF_WRONG = "Serve without --attention-scores float16; report the line with the versions of step 0."
KINDS: dict[Dtype, str] = {"fp32": "", "i32": ", a cache of int8", "fp16": ", scores as float16"}
"""As what scores travel -> what is said of it; float16, of the first kind of heads alone."""
PROMPTS = ((SPLIT + 7, 40), (5, 5), (1, 1), (140, 11))
"""(tokens in the cache, of which queries)."""
ACCURATE: dict[str, tuple[Lengths, dict[str, Any]]] = {
    f"decoding at {', '.join(map(str, BORDERS))} tokens": (BORDERS, {}),
    "decoding in a window of 100 tokens": ([1, 128, 500, SPLIT + 1], {"window": 100}),
    "decoding with loud scores": ([300, SPLIT + 5], {"loud": 4.0}),
    "prompts": (PROMPTS, {}),
    "prompts in a window of 100 tokens": (PROMPTS, {"window": 100}),
    "decoding, a cache of int8": (BORDERS, {"scores": "i32"}),
    "prompts, a cache of int8": (PROMPTS, {"scores": "i32"}),
}
"""What is held to the oracle; slots of the cache that belong to no token hold NaN."""
HALF_SCORES: dict[str, tuple[Lengths, dict[str, Any]]] = {
    "decoding with loud scores, as float16": ([300, SPLIT + 5, 2 * SPLIT + 129], {"scores": "fp16", "loud": 4.0}),
    "prompts, scores as float16": (PROMPTS, {"scores": "fp16"}),
}
"""What is too, of the first kind of heads."""


def kernel(bench: Bench, report: Report) -> None:
    """Step 4: for each kind of heads, which is a kernel of its own to the compiler."""
    for group, dim in bench.sizes.heads:
        heads = f"{group} x {dim}"
        with report.attempt(f"{heads}: first launch", NOT_LAUNCHED):
            _first_launch(bench, report, group, dim)
        for name in ACCURATE:
            with report.attempt(f"{heads}: {name}", NOT_LAUNCHED):
                _accurate(bench, report, group, dim, name)
        with report.attempt(f"{heads}: keys and values as int8", NOT_LAUNCHED):
            _stored(bench, report, dim)
        for scores in ("fp32", "i32"):
            _in_company(bench, report, group, dim, scores)
    group, dim = bench.sizes.heads[0]
    for name in HALF_SCORES:
        with report.attempt(f"{group} x {dim}: {name}", HALF_WRONG):
            _accurate(bench, report, group, dim, name)
    _in_company(bench, report, group, dim, "fp16")
    if not bench.emulated:
        with report.attempt(
            "what was compiled", "This is counted in Triton's own cache, which may have changed: no harm."
        ):
            _compiled(report, len(bench.sizes.heads))


def _accurate(bench: Bench, report: Report, group: int, dim: int, name: str) -> None:
    """One of ``ACCURATE`` or ``HALF_SCORES``, beside the oracle."""
    lengths, more = {**ACCURATE, **HALF_SCORES}[name]
    case = case_of(bench, group, dim, lengths, **more)
    worst = case.worst(array_of(launch_of(bench, case).ours()()))
    remedy = HALF_WRONG if name in HALF_SCORES else INACCURATE
    report.check(worst <= 1, f"{group} x {dim}: {name}: {worst:.3g} times what rounding explains", remedy)


def _in_company(bench: Bench, report: Report, group: int, dim: int, scores: Dtype) -> None:
    what, remedy = f"{group} x {dim}{KINDS[scores]}", HALF_WRONG if scores == "fp16" else NOT_LAUNCHED
    with report.attempt(f"{what}: alone and among others", remedy):
        _among_others(bench, report, group, dim, scores)
    with report.attempt(f"{what}: queries of prompts", remedy):
        _prompts(bench, report, group, dim, scores)


def _compiled(report: Report, kinds: int) -> None:
    """How many kernels Triton made of ours: each costs seconds at the first step that needs it."""
    from kernels.ascend.paged_decode import paged_attention_combine, paged_attention_split  # noqa: PLC0415

    counts = [sum(map(len, kernel.cache.values())) for kernel in (paged_attention_split, paged_attention_combine)]
    text = (
        f"{counts[0]} and {counts[1]} kernels for {kinds} kinds of heads, decoding and prompts, with int8 and without, "
        "and scores as float16 for the first"
    )
    report.measured(f"compiled: {text}; more than {4 * kinds + 2} each are of other alignments", compiled=counts)


def _first_launch(bench: Bench, report: Report, group: int, dim: int) -> None:
    run = launch_of(bench, case_of(bench, group, dim, [1])).ours()
    bench.platform.synchronize()
    times = []
    for _ in range(2):
        began_s = time.perf_counter()
        run()
        bench.platform.synchronize()
        times.append(time.perf_counter() - began_s)
    report.measured(
        f"{group} query heads a head of keys, {dim} elements: first launch {times[0]:.2f} s, compiled unless that had "
        f"been done before; the second {times[1] * 1e3:.3f} ms",
        first_launch_s=times[0], second_launch_s=times[1],
    )  # fmt: skip


def _stored(bench: Bench, report: Report, dim: int) -> None:
    """Keys and values written to a cache of int8, and read again, beside NumPy's rounding of the same numbers.

    Half a step is the rounding; a number that lies between two may go to either where a division is another.
    """
    memory, rng = bench.int8_ops.memory, np.random.default_rng(0)
    cache = memory.alloc_cache(3, BLOCK_SIZE, bench.sizes.kv_heads, dim)
    k, v = (bench.normal(rng, BLOCK_SIZE + 5, bench.sizes.kv_heads, dim) for _ in range(2))
    slots = rng.permutation(3 * BLOCK_SIZE)[: len(k)].astype(np.int32)
    bench.int8_ops.write_kv(cache, k, v, bench.upload(slots))
    off = 0.0
    for given, stored in zip((k, v), memory.read_cache(cache), strict=True):
        numbers = f64(given)
        step = np.abs(numbers).max(-1, keepdims=True) / 127
        off = max(off, float((np.abs(stored.reshape(-1, *numbers.shape[1:])[slots] - numbers) / step).max()))
    text = f"heads of {dim}: {off:.3f} steps off at most, 0.5 is rounding"
    report.check(off <= 0.5 + HALF_STEP_SLACK, text, INT8_WRONG)


def _among_others(bench: Bench, report: Report, group: int, dim: int, scores: Dtype) -> None:
    rng, longest = np.random.default_rng(0), bench.sizes.longest
    lengths = [*rng.integers(1, 500, 200).tolist(), longest, *rng.integers(1, longest // 2, 56).tolist()]
    case = case_of(bench, group, dim, lengths, scores=scores)
    run = launch_of(bench, case).ours()
    together, again = run().cpu(), run().cpu()
    odd = [query for query in (0, 1, 100, 199, 200, 256) if not _same(bench, case, together, query)]
    text = f"sequences {odd} differ" if odd else "the same bits"
    what = f"{group} x {dim}{KINDS[scores]}"
    report.check(not odd, f"{what}: a sequence alone, and among 256 others: {text}", _depends(scores))
    same = bits(again) == bits(together)
    text = "the same bits" if same else "not the same bits"
    report.check(same, f"{what}: 257 sequences twice: {text}", _depends(scores))


def _prompts(bench: Bench, report: Report, group: int, dim: int, scores: Dtype) -> None:
    case = case_of(bench, group, dim, PROMPTS, scores=scores)
    together = launch_of(bench, case).ours()().cpu()
    queries = range(0, len(case.q), 5)
    odd = [query for query in queries if not _same(bench, case, together, query)]
    text = f"queries {odd} differ" if odd else "the same bits"
    what = f"{group} x {dim}{KINDS[scores]}"
    report.check(not odd, f"{what}: {len(queries)} queries of prompts, and decoded alone: {text}", _depends(scores))


def _depends(scores: Dtype) -> str:
    """What to do about a result that is not always the same."""
    return HALF_WRONG if scores == "fp16" else DEPENDS


def _same(bench: Bench, case: AttentionCase, together: Tensor, query: int) -> bool:
    return bits(launch_of(bench, case.only(query)).ours()()[0]) == bits(together[query])
