"""What a run says: a table in the terminal, and docs/kernels.md."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.bench.report import markdown_table
from tools.bench_kernels.measure import Figure
from tools.bench_kernels.roofs import Roofs

PAGE = Path("docs/kernels.md")
PLOTS = Path("docs/kernels")


def lines_of(figures: Sequence[Figure], roofs: Sequence[Roofs]) -> list[dict[str, Any]]:
    """One line for each call: what it is, does and takes, and, for each number of threads, the bound and its share."""
    lines = []
    for figure in figures:
        work, label = figure.work, figure.label
        line: dict[str, Any] = {
            "op": label.op, "variant": label.variant, "shape": label.shape, "rows": label.rows, "cold": label.cold,
            "bytes": work.num_bytes, "ops": work.num_ops, "unit": work.unit, "threads": {},
        }  # fmt: skip
        for roof in roofs:
            seconds = figure.seconds[roof.threads]
            bound, least = roof.bound(work, cold=label.cold)
            line["threads"][str(roof.threads)] = {
                "us": seconds * 1e6,
                "gbs": work.num_bytes / seconds / 1e9,
                "gops": work.num_ops / seconds / 1e9,
                "bound": bound,
                "share": least / seconds,
            }
        lines.append(line)
    return lines


def columns_of(run: dict[str, Any]) -> list[str]:
    """The head of the table."""
    columns = ["op", "variant", "shape", "rows"]
    for threads in thread_counts(run):
        columns += [f"us, {threads} thr.", "GB/s", "GOP/s", "bound", "of it"]
    return columns


def thread_counts(run: dict[str, Any]) -> list[str]:
    """The numbers of threads that were measured."""
    return list(run["lines"][0]["threads"]) if run["lines"] else []


def row_of(line: dict[str, Any]) -> list[str]:
    """A line as text."""
    cells = [line["op"], line["variant"] + (" cold" if line["cold"] else ""), line["shape"], f"{line['rows']:,}"]
    for timed in line["threads"].values():
        cells += [
            f"{timed['us']:,.1f}" if timed["us"] < 100 else f"{timed['us']:,.0f}",
            f"{timed['gbs']:,.1f}",
            f"{timed['gops']:,.1f}",
            timed["bound"],
            f"{timed['share']:.0%}",
        ]
    return cells


def roof_rows(run: dict[str, Any]) -> list[list[str]]:
    """The limits, one row each."""
    raw = run["limits"]
    named = {"int8": ("int8", "gops", "int8 dot product"), "i16": ("i16", "gops", "int16 dot product")}
    named["f32"] = ("fma", "gflops", "float32 multiply-add")
    rows = [
        [f"{unit}: {what} ({raw[key]}), GOP/s", *(f"{raw[f'{key}_{n}_{suffix}']['best']:,.0f}" for n in "1n")]
        for unit, (key, suffix, what) in named.items()
    ]
    for read in raw["reads"]:
        size = f"{read['bytes'] >> 10} KiB" if read["bytes"] < 1 << 20 else f"{read['bytes'] >> 20} MiB"
        rows.append([f"read: {size} again and again, GB/s", *(f"{read[f'{n}_gbs']:,.1f}" for n in "1n")])
    return rows


def roof_columns(run: dict[str, Any]) -> list[str]:
    """The head of the table of limits."""
    return ["limit, best of the rounds", "1 thread", f"all threads ({run['limits']['threads']})"]


def print_report(console: Console, run: dict[str, Any]) -> None:
    """The tables of a run."""
    for title, columns, rows in (
        ("Limits", roof_columns(run), roof_rows(run)),
        ("Operations", columns_of(run), [row_of(line) for line in run["lines"]]),
    ):
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index > (2 if title == "Operations" else 0) else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(overhead_of(run))


def overhead_of(run: dict[str, Any]) -> str:
    """What a call costs that does nothing."""
    costs = [f"{us:.2f} us on {threads} thread{'s' * (threads != '1')}" for threads, us in run["overhead_us"].items()]
    return f"A call that does nothing takes {' and '.join(costs)}: the clock, and the wait for the other threads."


def write_docs(run: dict[str, Any], plot: Path) -> None:
    """Write the page, and the plot beside it."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    shown = Path(shutil.copy(plot, PLOTS))
    page = [
        "# Kernels",
        "Written by `make bench-kernels ARGS=--write-docs` from one run of `make bench-kernels`, on "
        f"{run['when'][:10]} at {run['commit']}. [What is measured, and how to read it](benchmarking.md#kernels).",
        f"Machine: {run['machine']['cpu']}, {run['machine']['cores']} cores. Library: {run['isa']}. "
        f"{run['rounds']} rounds, of which the median counts.",
        f"![roofline]({shown.relative_to(PAGE.parent)})",
        overhead_of(run),
        "## Limits",
        markdown_table(roof_columns(run), roof_rows(run)),
    ]
    for op in dict.fromkeys(line["op"] for line in run["lines"]):
        columns, lines = columns_of(run)[1:], [line for line in run["lines"] if line["op"] == op]
        page += [f"## {op}", markdown_table(columns, [row_of(line)[1:] for line in lines])]
    PAGE.write_text("\n\n".join(page) + "\n")
