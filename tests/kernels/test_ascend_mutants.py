"""Link 4 can fail: defects planted in the final HIVM of the attention kernel are caught, or shown to change nothing.

A mutant is judged by what link 2 gives, to the bit, for sequences around the borders of blocks and splits, a window,
and more tasks than there are cores. ``-m soak`` tries every mutant of nine kernels, as tools/prove_ascend.sh does;
otherwise the first one of each kind is tried, of four of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest

from kernels.ascend.plan import SPLIT
from kernels.ascend.variant import AttentionVariant
from tests.support.ascend_attention import AttentionCase, attention_case
from tests.support.ascend_executed import EXECUTOR, by_host_code
from tests.support.ascend_links import BUILT, REPOSITORY, link
from tools.ascend.executed import CHIP, CORES
from tools.ascend.hivm.execute import Value
from tools.ascend.hivm.mutate import Behaviour, Case, Mutant, Reason, Verdict, behaviour, classify, mutants
from tools.ascend.host_code import HostKernel
from tools.ascend.int8_cases import QueryCase, StoreCase, query_case, store_case
from tools.ascend.lower import lower_combine
from tools.ascend.matrix import Kernel, Pass, compiled, variant

pytestmark = link(4)

SHORT = [5, 64, 127, 128, 129, 200, 255, 256]
SINGLE = [*SHORT, SPLIT + 300, 2 * SPLIT + 1, *SHORT[::-1], SPLIT, *SHORT]
"""More tiles than there are cores: 50 of them, with two heads of keys."""
PROMPTS = [(SPLIT + 5, 12), (140, 30), (9, 9), (1, 1), *[(130, 2)] * 8]
PARTS = 8


@dataclass(frozen=True)
class Subject:
    """One pass of a specialisation, and the cases that its mutants have to get through."""

    variant: AttentionVariant
    which: Pass
    attended: tuple[AttentionCase | StoreCase | QueryCase, ...]

    @cached_property
    def text(self) -> str:
        return compiled(Kernel(self.variant, self.which, CHIP), BUILT).text

    @cached_property
    def mutants(self) -> list[Mutant]:
        return list(mutants(self.text))

    @cached_property
    def cases(self) -> list[Case]:
        return [self._case(case) for case in self.attended]

    @cached_property
    def original(self) -> Behaviour:
        return behaviour(EXECUTOR.program(self.variant, self.which), self.cases)

    def _case(self, case: AttentionCase | StoreCase | QueryCase) -> Case:
        if isinstance(case, AttentionCase):
            return self._first(case) if self.which == "split" else self._second(case)
        return Case(lambda: list(case.arguments().values()), 2 * CORES, holds(case))

    def _first(self, case: AttentionCase) -> Case:
        right, _ = by_host_code(case)
        accepts = same(right, list(right), "partial_ptr", "stats_ptr")
        return Case(lambda: list(case.split_arguments(CORES).values()), CORES, accepts)

    def _second(self, case: AttentionCase) -> Case:
        sums, _ = by_host_code(case)
        right = case.combine_arguments(sums)
        HostKernel(lower_combine(self.variant, 2, has_sink=case.sink is not None), BUILT).run(right, 2)

        def arguments() -> list[Value]:
            fresh = {**right, "out_ptr": np.full_like(right["out_ptr"], np.nan)}
            return [value.copy() if isinstance(value, np.ndarray) else value for value in fresh.values()]

        return Case(arguments, 2 * CORES, same(right, list(right), "out_ptr"))

    def verdict(self, mutant: Mutant) -> Verdict:
        return classify(mutant, self.original, self.cases, BUILT / "mutants")


def same(right: Mapping[str, Any], names: list[str], *wanted: str) -> Callable[[Sequence[Value]], bool]:
    """Whether these arguments are, to the bit."""

    def accepts(arguments: Sequence[Value]) -> bool:
        given = dict(zip(names, arguments, strict=True))
        return all(np.asarray(given[name]).tobytes() == right[name].tobytes() for name in wanted)

    return accepts


def holds(case: StoreCase | QueryCase) -> Callable[[Sequence[Value]], bool]:
    """Whether arguments are as NumPy has them, to the bit."""

    def accepts(arguments: Sequence[Value]) -> bool:
        try:
            case.check(dict(zip(case.arguments(), arguments, strict=True)))
        except AssertionError:
            return False
        return True

    return accepts


@cache
def subject(name: str) -> Subject:
    if name == "keys and values as int8":
        chosen = replace(variant(1, 64, 64, "fp16", scores="i32"), kv_heads=3)
        return Subject(chosen, "store", (store_case(chosen, 90), store_case(chosen, 45, seed=1, spoilt=True)))
    if name == "queries as int8":
        chosen = variant(7, 64, 64, "fp16", scores="i32")
        return Subject(chosen, "queries", (query_case(chosen, 90), query_case(chosen, 45, seed=1, spoilt=True)))
    of_prompts = name.startswith("prompts")
    chosen = variant(7, 64, 64, "fp16", prompt=of_prompts)
    if "f16 scores" in name:
        chosen = variant(7, 128, 128, "fp16", scores="fp16")
    if "int8" in name:
        chosen = replace(chosen, scores="i32")
    sink = name.endswith("sink")
    lengths = PROMPTS if of_prompts else SINGLE
    which: Pass = "split" if "first pass" in name else "combine, sink" if sink else "combine"
    cases = attention_case(chosen, lengths, sink=sink), attention_case(chosen, lengths[:10], sink=sink, window=100)
    return Subject(chosen, which, cases)


SAMPLED = ("decoding, first pass", "prompts, first pass", "decoding, second pass, sink", "decoding, first pass, int8")
CAUSES = ("race", "results", "out of range", "wait without set", "another")
REASONS = (Reason.DEAD_MEMORY, Reason.ORDERS_NOTHING, Reason.PADDING, Reason.ZERO, Reason.REPEATED_TURN)
EXPECTED = {
    "decoding, first pass, int8": ((103, 79, 66, 39, 63), (50, 14, 10, 1, 2)),  # the longest begins
    "decoding, first pass": ((38, 25, 18, 23, 30), (12, 8, 2, 0, 0)),
    "prompts, first pass": ((42, 25, 18, 23, 31), (12, 6, 2, 0, 0)),
    "decoding, second pass, sink": ((55, 27, 28, 17, 14), (13, 5, 3, 0, 0)),
    "decoding, first pass, f16 scores": ((41, 26, 19, 23, 25), (16, 8, 2, 0, 0)),
    "decoding, second pass": ((53, 27, 28, 11, 14), (12, 4, 2, 0, 0)),
    "decoding, second pass, int8": ((79, 38, 46, 14, 16), (22, 4, 3, 0, 0)),
    "keys and values as int8": ((93, 45, 50, 28, 30), (14, 2, 0, 4, 0)),
    "queries as int8": ((98, 61, 65, 12, 34), (14, 5, 0, 2, 0)),
}
"""Of all mutants of a kernel: how many are caught by each of ``CAUSES``, and equivalent for each of ``REASONS``."""


def kind(mutant: Mutant) -> str:
    """What was done to what, without its place."""
    return re.sub(r"(ID|at |flag = |core )\d+|%\w+", r"\1", mutant.name.partition(": ")[2] or mutant.name)


def sample(all_mutants: Sequence[Mutant]) -> list[Mutant]:
    """The first of each kind."""
    return list({kind(mutant): mutant for mutant in reversed(all_mutants)}.values())


def check(name: str, chosen: Sequence[Mutant]) -> Counter[str | Reason]:
    """Every one of them is caught or equivalent; by which of ``CAUSES`` and ``REASONS``."""
    verdicts = [subject(name).verdict(mutant) for mutant in chosen]
    assert not [verdict for verdict in verdicts if verdict.survived]
    return Counter(
        verdict.reason or (verdict.caught_by if verdict.caught_by in CAUSES else CAUSES[-1]) for verdict in verdicts
    )


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SAMPLED)
def test_of_each_kind_one_is_caught_or_equivalent(name, part):
    assert check(name, sample(subject(name).mutants)[part::PARTS]).keys() & {*CAUSES}


@pytest.mark.soak
@pytest.mark.parametrize("name", EXPECTED)
def test_all_are_caught_or_equivalent(name):
    caught, equivalent = EXPECTED[name]
    assert check(name, subject(name).mutants) == Counter(
        dict(zip((*CAUSES, *REASONS), (*caught, *equivalent), strict=True))
    )


def test_the_readme_has_what_is_expected_of_all():
    readme = (REPOSITORY / "kernels" / "ascend" / "README.md").read_text(encoding="utf-8")
    section = readme.partition("### Defects planted")[2].partition("\n### ")[0]
    rows = {
        name: [*map(int, cells)]
        for name, *cells in re.findall(r"^\| (.+?)" + r" \| (\d+)" * 4 + r" \|$", section, re.M)
    }
    sums = {name: (sum(caught), sum(equivalent)) for name, (caught, equivalent) in EXPECTED.items()}
    assert rows == {name: [caught + equivalent, caught, equivalent, 0] for name, (caught, equivalent) in sums.items()}
    caught, equivalent = ([*map(sum, zip(*column, strict=True))] for column in zip(*EXPECTED.values(), strict=True))
    said = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", section.rpartition(" |\n")[2])]
    assert said == [sum(caught), *caught, sum(equivalent), *equivalent]


def test_each_way_to_order_cores_and_pipes_is_among_them():
    """A kernel that has no more flags and waits would pass all of the above."""
    kinds = {kind(mutant) for name in SAMPLED for mutant in subject(name).mutants}
    for verb in ("set", "wait"):
        assert {each for each in kinds if each.startswith(f"sync_block_{verb}")}
        assert {each for each in kinds if each.startswith(f"{verb}_flag")}
    assert {each for each in kinds if each.startswith("pipe_barrier")}


@pytest.mark.parametrize(
    ("dropped", "caught_by"),
    [("sync_block_wait[VECTOR", "race"), ("sync_block_wait[CUBE", "race"), ("sync_block_set[CUBE", "deadlock")],
)
def test_a_cross_core_flag_that_is_missing_is_seen(dropped, caught_by):
    tried = subject(SAMPLED[0])
    mutant = next(each for each in tried.mutants if dropped in each.name)
    assert tried.verdict(mutant).caught_by == caught_by


@pytest.mark.parametrize("core", ["CUBE", "VECTOR"])
def test_a_flag_that_the_other_core_does_not_wait_for_is_seen(core):
    tried = subject(SAMPLED[0])
    other = re.sub(rf"(sync_block_set\[<{core}>.*?\] flag = )\d", r"\g<1>7", tried.text)
    assert other != tried.text
    assert tried.verdict(Mutant("another flag", other)).caught_by in {"deadlock", "race"}


def test_a_fill_that_results_depend_on_is_not_excused():
    """Scores beyond the end of a context are -inf because a fill says so."""
    tried = subject(SAMPLED[0])
    mutant = next(each for each in tried.mutants if "broadcast_scalar" in each.name)
    assert mutant.poisoned is not None
    assert not tried.verdict(mutant).survived
    assert tried.verdict(Mutant("NaN", mutant.poisoned)).caught_by == "results"
