"""docs/benchmarks.md, written from a run, but for one section that is kept by hand: why goals were not reached."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.goals import Verdict, judge
from tools.bench.report import (
    LIMIT_COLUMNS,
    SYSTEM_COLUMNS,
    VERDICT_COLUMNS,
    limit_notes,
    limit_rows,
    markdown_table,
    notes,
    system_rows,
    threads_line,
    verdict_rows,
)

PAGE = Path("docs/benchmarks.md")
PLOTS = Path("docs/benchmarks")
KEPT_BEGIN = "<!-- Kept by hand: a line `- **MEASURE**: why` for each goal that was not reached, or not told. -->"
KEPT_END = "<!-- End of what is kept by hand. -->"


class Unexplained(Exception):
    """Goals were missed or not told, and the page does not say why; the message says what to write, and where."""


def write_docs(run: dict[str, Any], drawn: Sequence[Path]) -> list[str]:
    """Write the page, and what was drawn beside it; returns what the page explains that was not missed.

    Raises:
        Unexplained: a goal was missed or not told for no reason that the page gives; nothing was written.
    """
    verdicts = judge(run)
    kept = kept_by_hand(PAGE.read_text() if PAGE.exists() else "")
    missing, stale = unexplained(kept, verdicts)
    if missing:
        lines = "\n".join(f"- **{name}**: " for name in missing)
        raise Unexplained(
            f"{PAGE} is not written: it does not say why these goals were not reached, or could not be told. Complete "
            f"them in it, between these two lines:\n\n{KEPT_BEGIN}\n{lines}\n{KEPT_END}"
        )
    PLOTS.mkdir(parents=True, exist_ok=True)
    plots = [Path(shutil.copy(path, PLOTS)) for path in drawn]
    PAGE.write_text(page_of(run, verdicts, kept, [path.relative_to(PAGE.parent) for path in plots]))
    return stale


def kept_by_hand(page: str) -> str:
    """What stands between the markers."""
    found = re.search(f"{re.escape(KEPT_BEGIN)}(.*?){re.escape(KEPT_END)}", page, re.DOTALL)
    return found[1].strip() if found else ""


def unexplained(kept: str, verdicts: Sequence[Verdict]) -> tuple[list[str], list[str]]:
    """Names of goals not reached, or not told, that have no reason, and names that have one although reached."""
    explained = set(re.findall(r"^- \*\*(.+?)\*\*: *\S", kept, re.MULTILINE))
    missed = [verdict.what for verdict in verdicts if verdict.goals and not verdict.reached]
    return [name for name in missed if name not in explained], sorted(explained.difference(missed))


def page_of(run: dict[str, Any], verdicts: Sequence[Verdict], kept: str, plots: Sequence[Path]) -> str:
    """The whole page."""
    machine = run["machine"]
    limits = [markdown_table(LIMIT_COLUMNS, limit_rows(run))] if run["limits"] else []
    parts = [
        "# Benchmarks",
        "Written by `make bench ARGS=--write-docs` from one run of `make bench`: all systems one after the other on "
        f"one machine, on {run['when'][:10]} at {run['commit']}. [How to run it](benchmarking.md).",
        f"Machine: {machine['cpu']}, {machine['cores']} cores; {threads_line(run)} "
        f"Model: `{run['model']}`, {run['weights_bytes'] / 1e6:.1f} MB of weights."
        + ("" if run["scale"] == 1 else f" **A short run: {run['scale']:g} of the usual requests.**"),
        "## Goals",
        markdown_table(VERDICT_COLUMNS, verdict_rows(verdicts)),
        "A factor is against the best peer of this run: the most tokens/s, or the shortest time, that any of them had "
        "in a load that it answered in full and as asked.",
        "### Why what was not reached was not",
        f"{KEPT_BEGIN}\n\n{kept}\n\n{KEPT_END}" if kept else f"{KEPT_BEGIN}\n{KEPT_END}",
        *(f"![{path.stem}]({path})" for path in plots),
        "## The machine's limits",
        *limits,
        *limit_notes(run),
        "## All figures",
        markdown_table(SYSTEM_COLUMNS, system_rows(run)),
        markdown_table(("load", "what it is"), run["workloads"].items()),
        "\n".join(f"- {line}" for line in notes(run)),
    ]
    return "\n\n".join(parts) + "\n"
