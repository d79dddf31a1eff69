"""How long calls take: each chain many times in one program, in several rounds that go through all chains in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.cpu.abi import MAX_PROGRAM
from kernels.cpu.recorded import Runner
from tools.bench_kernels.operands import Chain, Label
from tools.bench_kernels.work import Work

PROGRAM_NS = 2_000_000
"""What a program should take: long beside waking the threads, short beside a round."""
MAX_REPEATS = 1000
SLOW_NS = 20_000_000
SLOW_ROUNDS = 3
"""At most so many for a chain that takes so long: it is as steady as many short ones."""


@dataclass(frozen=True)
class Figure:
    """What a call does, and how long it takes: seconds, the median of the rounds, by number of threads."""

    label: Label
    work: Work
    seconds: Mapping[int, float]


class _Timed:
    """A chain on one runner; how often it is repeated in a program depends on how long it takes."""

    def __init__(self, chain: Chain, runner: Runner, rounds: int) -> None:
        self._chain = chain
        self._runner = runner
        self._instructions = np.concatenate([call.instruction for call in chain.calls])
        self._repeats, self._warm_ups = 1, 0
        self.rounds: list[dict[Label, float]] = []
        times = self._run()
        once = times.sum()
        self._wanted = rounds
        if once > SLOW_NS:
            self._wanted = min(rounds, SLOW_ROUNDS)
            self._note(times)
        if chain.restore is None and once < PROGRAM_NS:
            room = (MAX_PROGRAM - 1) // len(chain.calls) - 1
            self._repeats, self._warm_ups = int(min(PROGRAM_NS // max(once, 1), MAX_REPEATS, room)), 1

    def measure(self) -> None:
        """One more round, if any is wanted."""
        if len(self.rounds) < self._wanted:
            self._note(self._run())

    def _note(self, of_calls: npt.NDArray[np.int64]) -> None:
        """Keep the mean time of each labelled call in one program."""
        times, labels = of_calls.mean(axis=0), [call.label for call in self._chain.calls]
        means = {label: times[[label == each for each in labels]].mean() for label in dict.fromkeys(labels) if label}
        self.rounds.append(means)

    def _run(self) -> npt.NDArray[np.int64]:
        """Nanoseconds [repeats, calls]; the threads wake during what comes before."""
        if self._chain.restore is not None:
            self._chain.restore()
        program = np.concatenate([self._instructions] * (self._warm_ups + self._repeats))
        times = np.zeros(len(program), dtype=np.int64)
        self._runner.profile(program, self._chain.batch, times)
        return times.reshape(-1, len(self._instructions))[self._warm_ups :]


def measure(chains: Sequence[Chain], runners: Sequence[Runner], rounds: int) -> list[Figure]:
    """The figures of all labelled calls, in order."""
    timed = [[_Timed(chain, runner, rounds) for runner in runners] for chain in chains]
    for _ in range(rounds):
        for row in timed:
            for each in row:
                each.measure()
    figures = {}
    for chain, row in zip(chains, timed, strict=True):
        for call in chain.calls:
            if call.label is None or call.work is None or call.label in figures:
                continue
            seconds = {
                runner.threads: float(np.median([means[call.label] for means in each.rounds])) / 1e9
                for runner, each in zip(runners, row, strict=True)
            }
            figures[call.label] = Figure(call.label, call.work, seconds)
    return list(figures.values())
