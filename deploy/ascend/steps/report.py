"""What a step finds, line by line: printed as it is found, kept for the summary and for ``--json``."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from kernels.ascend.errors import explain


class Verdict(StrEnum):
    """What a line, or a step, comes to; a measurement is neither good nor bad."""

    PASS = "PASS"  # noqa: S105  (not a password)
    FAIL = "FAIL"
    MEASURED = "MEASURED"


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        text: what was found.
        remedy: what to do next, of a failure.
        figures: what was measured, by name; the name ends in the unit.
    """

    verdict: Verdict
    text: str
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


class Report:
    """The findings of one step.

    Attributes:
        lines: so far.
        seconds: that the step took; 0 until it has ended.
    """

    def __init__(self, number: int, title: str) -> None:
        self.number, self.title = number, title
        self.lines: list[Line] = []
        self.seconds = 0.0

    @property
    def verdict(self) -> Verdict:
        """FAIL if anything failed or nothing was found, else PASS if anything passed, else MEASURED."""
        found = {line.verdict for line in self.lines}
        if not found or Verdict.FAIL in found:
            return Verdict.FAIL
        return Verdict.PASS if Verdict.PASS in found else Verdict.MEASURED

    def passed(self, text: str) -> None:
        """Something is as it should be."""
        self._add(Line(Verdict.PASS, text))

    def failed(self, text: str, remedy: str) -> None:
        """Something is not, and what to do next."""
        self._add(Line(Verdict.FAIL, text, remedy))

    def measured(self, text: str, **figures: Any) -> None:
        """A fact or a figure, for whoever reads it to judge."""
        self._add(Line(Verdict.MEASURED, text, figures=figures))

    def check(self, good: bool, text: str, remedy: str) -> None:
        """PASS or FAIL."""
        if good:
            self.passed(text)
        else:
            self.failed(text, remedy)

    def say(self, text: str) -> None:
        """Print something that is no finding, such as a row of a table."""
        print(f"             {text}", flush=True)

    @contextlib.contextmanager
    def attempt(self, what: str, remedy: str) -> Iterator[None]:
        """Whatever is raised inside is a failure of ``what``, and the step goes on; a known code is explained first."""
        try:
            yield
        except Exception as error:  # noqa: BLE001, RUF100  (anything at all: the next attempt may tell more)
            self.failed(f"{what}: {said(error)}", " ".join(filter(None, (explain(_all_said(error)), remedy))))

    @contextlib.contextmanager
    def timed(self, note: str) -> Iterator[None]:
        """Around the whole step: its seconds, and an end for what nothing else has caught.

        Args:
            note: printed behind the title.
        """
        print(f"\n--- step {self.number}: {self.title}{note}", flush=True)
        began_s = time.perf_counter()
        with self.attempt("the step ended early", "Read the lines above; then run the step alone with --step."):
            yield
        self.seconds = time.perf_counter() - began_s
        print(f"[{self.verdict}] step {self.number} took {self.seconds:.1f} s", flush=True)

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        print(f"  {line.verdict:<9}  {line.text}", flush=True)
        if line.remedy:
            self.say(f"what to do: {line.remedy}")

    def facts(self) -> dict[str, Any]:
        """The step as plain data, as ``--json`` writes it and ``of_facts`` reads it."""
        return {
            "step": self.number,
            "title": self.title,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 3),
            "lines": [asdict(line) for line in self.lines],
        }

    @classmethod
    def of_facts(cls, facts: dict[str, Any]) -> Report:
        """The reverse of ``facts``."""
        report = cls(facts["step"], facts["title"])
        report.seconds = facts["seconds"]
        report.lines = [Line(**{**line, "verdict": Verdict(line["verdict"])}) for line in facts["lines"]]
        return report


def table(report: Report, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns are as wide as they need to be."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = (
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        report.say("  ".join(cells).rstrip())


def said(error: BaseException) -> str:
    """One line: the kind of an error, where it was raised, and the last thing it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    at = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'it says nothing'}{at}"


def _all_said(error: BaseException) -> str:
    """The text of an error and of those it came from, where a code may stand."""
    return "".join(traceback.format_exception(error))
