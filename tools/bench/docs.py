"""docs/benchmarks.md, written from a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tools.bench.goals import judge
from tools.bench.plots import draw_plots
from tools.bench.report import (
    SYSTEM_COLUMNS,
    VERDICT_COLUMNS,
    limit_rows,
    markdown_table,
    notes,
    system_rows,
    verdict_rows,
)

PAGE = Path("docs/benchmarks.md")
PLOTS = Path("docs/benchmarks")


def write_docs(run: dict[str, Any], results: Path) -> None:
    """Write the page, and the plots beside it."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    plots = [Path(shutil.copy(path, PLOTS)) for path in draw_plots(run, results)]
    machine = run["machine"]
    page = [
        "# Benchmarks",
        "Written by `make bench ARGS=--write-docs` from one run of `make bench`: all systems one after the other on "
        f"one machine, on {run['when'][:10]}. [How to run it](benchmarking.md).",
        f"Machine: {machine['cpu']}, {machine['cores']} cores; {run['threads']} threads for every system. "
        f"Model: `{run['model']}`, {run['weights_bytes'] / 1e6:.1f} MB of weights."
        + ("" if run["scale"] == 1 else f" **A short run: {run['scale']:g} of the usual requests.**"),
        "## Goals",
        markdown_table(VERDICT_COLUMNS, verdict_rows(judge(run))),
        "A factor is against the best peer of this run: the most tokens/s, or the shortest time, that any of them had.",
        *(f"![{path.stem}]({path.relative_to(PAGE.parent)})" for path in plots),
        "## The machine's limits",
        markdown_table(("limit", "best of the rounds", "median"), limit_rows(run)),
        "## All figures",
        markdown_table(SYSTEM_COLUMNS, system_rows(run)),
        markdown_table(("load", "what it is"), run["workloads"].items()),
        "\n".join(f"- {line}" for line in notes(run)),
    ]
    PAGE.write_text("\n\n".join(page) + "\n")
