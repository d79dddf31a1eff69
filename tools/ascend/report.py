"""The page of the attention kernel's figures, docs/ascend-kernel.md: ``python -m tools.ascend.report``.

Compiles the whole matrix for both chips and runs contexts by the executor of the final HIVM, in about two minutes; what
has been compiled before is taken from build/ascend. ``--check`` writes nothing and exits with 1 if the page is another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from kernels.ascend.attention import HALF_SCALE, PROMPT_ROWS
from kernels.ascend.variant import HEAD_DIMS, MAX_GROUP, Dtype
from tools.ascend.executed import Cost, Executor, cost
from tools.ascend.matrix import CUBE_CORES, KV_HEADS, SCORES, Kernel, compiled, kernels, variant
from tools.ascend.scores import LOUDNESS, CacheCost, ScoreCost, cache_cost, score_cost
from tools.ascend.scores import TOKENS as SCORE_TOKENS
from tools.ascend.tables import Peaks, Place, int8_table, memory_table, places, table
from tools.ascend.traffic import TRAFFIC_GOAL, kv_bytes

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "ascend-kernel.md"
BUILT = REPOSITORY / "build" / "ascend"
PROCESSES = 2
TOKENS = 4096
LONGER, LONGER_TOKENS = (7, 128, 128), 16384
"""Group and sizes of heads of the one longer context, and its tokens."""
COMMAND = "python -m tools.ascend.report"
_PAGE = """\
# The Ascend attention kernel in figures

Written by `{command}`, which compiles the kernel and runs what the compiler makes of it on a model
of the cores; with `--check` it says whether this page still holds. **Nothing here has run on an NPU**: these are
counts, not times. [What they mean](../kernels/ascend/README.md). Sinks and heads of 192 / 128 are in the kernel and
tested, but no model that Upwell serves asks for them, and `Ops.paged_attention` has no argument for a sink.

## On-chip memory

Bytes up to the end of the highest buffer in the final HIVM, for {chips},
f16 and bf16; the second pass with and without a sink. Chip, dtype and sink make no difference. No module has a vector
operand that is not on a multiple of 32 bytes, and the compiler gave up nothing to make one fit. Group: heads of queries
for each head of keys. Queries: of a tile; several are as many as make up to {rows} rows. Scores: i32 with a cache of
int8.

The first pass:

{first}

The second pass:

{second}

The kernels that make int8, which use UB alone; heads are of keys where keys and values are stored, and of queries for
each head of keys where queries are split:

{int8_memory}

## Bytes through global memory

Read and written by both passes for each byte of keys and values, one query that sees {tokens:,} tokens, {kv_heads}
heads of keys: with tables, plans, scores, weights, partial sums and results. **Bold**: more than {goal}. Scores
travel as f32:

{traffic}

With `--attention-scores float16`:

{traffic_half}

With a cache of int8, where a token's key and value take a byte an element, and 8 bytes of steps, for each head of keys;
the kernel that splits queries is counted too:

{traffic_int8}

{longer}, scores as f32: {longer_traffic:.3f}.

## Work for each token

Multiplications that the matrix unit is asked for, over group x (key + value elements) for each token and head of keys,
which is the least: {products[0]:.3f} to {products[1]:.3f} over all heads and groups; with a cache of int8
{products_int8[0]:.3f} to {products_int8[1]:.3f}, of int8, since queries are four addends and weights two planes. The
unit itself works on 16 rows at a time, whatever is asked.

Elements that vector instructions work on for each score, of which one, its exponential, is the least; both passes,
{tokens:,} tokens, scores as f32. With either kind of scores they take {instructions[0]:.0f} to {instructions[1]:.0f}
instructions for each 1,024 tokens and head of keys.

{vector}

With a cache of int8, by {instructions_int8[0]:.0f} to {instructions_int8[1]:.0f} instructions:

{vector_int8}

{longer}: {longer_elements:.1f}, by {longer_instructions:.0f} instructions.

## Scores as f16

Errors of executed results against float64, f16, heads of 64, a group of 7, one query that sees {score_tokens:,} tokens;
queries, keys and values are random, and keys are multiplied by the first column. Where scores travel as f16, queries
are multiplied with {half_scale} first, so that scores saturate later. Divergence: of the weights that such scores give,
the most of all heads, by NumPy.

{scores}

## A cache of int8

Bytes through global memory with a cache of int8 for each that the same heads take with one of 16 bits and scores as
f32, as counted above:

{share}

Errors of executed results, f16, heads of 128, a group of 7, one query that sees {score_tokens:,} tokens, keys
multiplied by the first column: roots of the mean square, against float64 of the keys and values that a cache of f16
holds. The kernel's own is against float64 of those that the cache of int8 holds: all else is the cache's rounding.
Divergence: of the weights that such keys give, the most of all heads, by NumPy.

{caches}
"""


def peaks_of(kernel: Kernel) -> Peaks:
    """Of a kernel's final HIVM.

    Raises:
        ToolFailed: it does not compile.
        ValueError: a vector operand is not aligned.
    """
    final = compiled(kernel, BUILT)
    if final.module.unaligned:
        raise ValueError(f"{kernel}: {final.module.unaligned}")
    peaks = final.peaks
    return peaks["UB"], peaks["L1"], peaks["L0C"]


Costs = Mapping[tuple[int, int, int, Dtype], Cost]
"""By group, sizes of heads, and scores."""


def traffic_table(costs: Costs, scores: Dtype) -> Iterator[str]:
    """Lines: bytes through global memory for each byte of keys and values."""
    lines = [_heads()]
    for group in range(1, MAX_GROUP + 1):
        figures = [costs[group, *dims, scores].traffic for dims in HEAD_DIMS]
        cells = (f"**{figure:.3f}**" if figure > TRAFFIC_GOAL else f"{figure:.3f}" for figure in figures)
        lines.append([str(group), *cells])
    return table(lines)


def share_table(costs: Costs) -> Iterator[str]:
    """Lines: bytes through global memory with a cache of int8 for each with one of 16 bits."""
    lines = [_heads()]
    for group in range(1, MAX_GROUP + 1):
        cells = []
        for dims in HEAD_DIMS:
            small, wide = (costs[group, *dims, kind].traffic * kv_bytes(*dims, kind) for kind in ("i32", "fp32"))
            cells.append(f"{small / wide:.3f}")
        lines.append([str(group), *cells])
    return table(lines)


def vector_table(costs: Costs, scores: Dtype) -> Iterator[str]:
    """Lines: elements that vector instructions worked on for each score."""
    lines = [_heads()]
    for group in range(1, MAX_GROUP + 1):
        lines.append([str(group), *(f"{costs[group, *dims, scores].elements:.1f}" for dims in HEAD_DIMS)])
    return table(lines)


def _heads() -> list[str]:
    return ["group", *(f"{k_dim} / {v_dim}" for k_dim, v_dim in HEAD_DIMS)]


def score_table(found: Sequence[ScoreCost]) -> Iterator[str]:
    """Lines: what scores as f16 cost."""
    head = ["keys times", "largest Q K^T", "f32: rms error", "largest error", "f16: rms error", "largest error"]
    lines = [[*head, "divergence, nats", "saturated"]]
    for loudness, each in zip(LOUDNESS, found, strict=True):
        errors = (*each.f32, *each.f16, each.divergence)
        lines.append(
            [str(loudness), f"{each.largest:,.0f}", *(f"{error:.1e}" for error in errors), str(each.saturated)]
        )
    return table(lines)


def cache_table(found: Sequence[CacheCost]) -> Iterator[str]:
    """Lines: what a cache of int8 costs."""
    names = ["result", "error with f16", "error with int8", "the kernel's own", "divergence, nats"]
    lines = [["keys times", *names]]
    for loudness, each in zip(LOUDNESS, found, strict=True):
        figures = (each.result, each.wide, each.int8, each.added, each.divergence)
        lines.append([str(loudness), *(f"{figure:.1e}" for figure in figures)])
    return table(lines)


def page(
    memory: Mapping[Place, Peaks], costs: Costs, longer: Cost, scores: Sequence[ScoreCost], caches: Sequence[CacheCost]
) -> str:
    """The whole page."""
    group, k_dim, v_dim = LONGER
    return _PAGE.format(
        command=COMMAND,
        chips=" and ".join(f"{chip} ({cores} matrix cores)" for chip, cores in CUBE_CORES.items()),
        rows=PROMPT_ROWS,
        first="\n".join(memory_table(memory, first=True)),
        second="\n".join(memory_table(memory, first=False)),
        int8_memory="\n".join(int8_table(memory)),
        kv_heads=KV_HEADS,
        tokens=TOKENS,
        goal=TRAFFIC_GOAL,
        traffic="\n".join(traffic_table(costs, "fp32")),
        traffic_half="\n".join(traffic_table(costs, "fp16")),
        traffic_int8="\n".join(traffic_table(costs, "i32")),
        share="\n".join(share_table(costs)),
        longer=f"At {LONGER_TOKENS:,} tokens, heads of {k_dim} / {v_dim} and a group of {group}",
        longer_traffic=longer.traffic,
        longer_elements=longer.elements,
        longer_instructions=longer.instructions,
        products=_range(each.products for each in _of(costs, "fp32", "fp16")),
        products_int8=_range(each.products for each in _of(costs, "i32")),
        instructions=_range(each.instructions for each in _of(costs, "fp32", "fp16")),
        instructions_int8=_range(each.instructions for each in _of(costs, "i32")),
        vector="\n".join(vector_table(costs, "fp32")),
        vector_int8="\n".join(vector_table(costs, "i32")),
        half_scale=HALF_SCALE,
        score_tokens=SCORE_TOKENS,
        scores="\n".join(score_table(scores)),
        caches="\n".join(cache_table(caches)),
    )


def _of(costs: Costs, *scores: Dtype) -> Iterator[Cost]:
    return (each for (*_, kind), each in costs.items() if kind in scores)


def _range(figures: Iterator[float]) -> tuple[float, float]:
    ordered = sorted(figures)
    return ordered[0], ordered[-1]


def _cost(asked: tuple[int, int, int, Dtype], tokens: int = TOKENS) -> Cost:
    group, k_dim, v_dim, scores = asked
    return cost(Executor(BUILT), variant(group, k_dim, v_dim, "fp16", scores=scores), tokens)


def _score_cost(loudness: float) -> ScoreCost:
    return score_cost(Executor(BUILT), loudness)


def _cache_cost(loudness: float) -> CacheCost:
    return cache_cost(Executor(BUILT), loudness)


def measured_page() -> str:
    """The page, with everything compiled and run.

    Raises:
        ToolFailed: a kernel does not compile.
        ValueError: a run has errors, or an operand is not aligned.
    """
    everything = [kernel for chip in CUBE_CORES for kernel in kernels(chip)]
    asked = [(group, *dims, scores) for dims in HEAD_DIMS for group in range(1, MAX_GROUP + 1) for scores in SCORES]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        peaks = pool.map(peaks_of, everything, chunksize=8)
        memory = places(zip(everything, peaks, strict=True))
        costs = dict(zip(asked, pool.map(_cost, asked, chunksize=4), strict=True))
        longer = pool.submit(_cost, (*LONGER, "fp32"), LONGER_TOKENS).result()
        scores, caches = pool.map(_score_cost, LOUDNESS), pool.map(_cache_cost, LOUDNESS)
        return page(memory, costs, longer, list(scores), list(caches))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare it; the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is another")
    check = parser.parse_args(arguments).check
    text = measured_page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written: {PAGE}")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not what would be written now: {COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
