"""What a run says: tables in the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.bench.figures import objection
from tools.bench.goals import Verdict

VERDICT_COLUMNS = ("measure", "goal", "measured", "against the best peer", "of the limit", "reached")
SYSTEM_COLUMNS = ("system", "load", "tokens/s", "requests/s", "TTFT p50 / p95 ms", "gap p50 / p95 ms", "CPU cores")

MUCH_BESIDE = 0.1
"""Cores that other processes may use before a figure is said to be disturbed."""


def print_report(console: Console, run: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """The tables of a run."""
    console.print(threads_line(run))
    for title, columns, rows in (
        ("Machine", LIMIT_COLUMNS, limit_rows(run)),
        ("All figures", SYSTEM_COLUMNS, system_rows(run)),
        ("Goals", VERDICT_COLUMNS, verdict_rows(verdicts)),
    ):
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in [*limit_notes(run), *notes(run)]:
        console.print(line)


def verdict_rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """One row for each goal."""
    return [(one.what, one.goal, one.value, one.peer, one.share, one.answer) for one in verdicts]


def threads_line(run: dict[str, Any]) -> str:
    """How many threads computed, and Upwell's own words for what it ran on."""
    backends = [f"{system['label']}: {system['backend']}" for system in run["systems"] if system.get("backend")]
    number = run["threads"]
    return "; ".join([f"{number} thread{'s' if number > 1 else ''} for every system", *backends]) + "."


LIMIT_COLUMNS = ("limit, best of the rounds", "at the start", "after the first system")


def limit_notes(run: dict[str, Any]) -> list[str]:
    """What is to be known about the limits; why there are none, if there are none."""
    if run["limits"] is None:
        return [f"The machine's limits were not measured: {run['limits_missing']}"]
    cache_bytes = run["machine"].get("last_level_cache_bytes")
    if cache_bytes is None:
        return []
    holds = "may stay" if run["weights_bytes"] < cache_bytes else "cannot stay whole"
    return [
        f"The last-level cache has {cache_bytes / 2**20:,.0f} MiB, so the weights {holds} in it from token to token, "
        "like the buffer of their size. On a host that is shared, how much of that cache this machine has to itself is "
        "not known, nor whether its processors share one; the buffer of 1 GiB is the other end. Goals are held to the "
        "higher of the two measurements."
    ]


def limit_rows(run: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each limit of the machine."""
    raw = run["limits"]
    if raw is None:
        return []
    weights, large = f"{raw['weights_bytes'] / 1e6:.1f} MB", f"{raw['large_bytes'] / 2**30:.0f} GiB"
    names = {
        "read_weights": (f"read {weights} again and again", "gbs", "GB/s"),
        "read_large": (f"read {large}", "gbs", "GB/s"),
        "int8": (f"int8 dot product ({raw['int8']})", "gops", "GOP/s"),
        "fma": (f"f32 multiply-add ({raw['fma']})", "gflops", "GFLOP/s"),
        "tiles": ("int8 products of tiles (amx tdpbssd), which no operation here uses", "gops", "GOP/s"),
    }
    rows: list[tuple[str, ...]] = []
    for key, (what, suffix, unit) in names.items():
        for threads in ("1", "n"):
            figure = raw.get(f"{key}_{threads}_{suffix}")
            if figure is None:  # a processor without tiles
                continue
            number = raw["threads"] if threads == "n" else 1
            text = f"{what}, {number} thread{'s' if number > 1 else ''}"
            rows.append((text, *(f"{best:,.1f} {unit}" for best in figure["both"])))
    return rows


def system_rows(run: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each system and load."""
    rows: list[tuple[str, ...]] = []
    for system in run["systems"]:
        for key, figures in system["workloads"].items():
            if not figures["requests"]:
                rows.append((system["label"], key, "failed", "", "", "", ""))
                continue
            cores = sum(figures["cpu_s"].values()) / figures["wall_s"]
            tokens = figures["prompt_tokens_s"] if key.startswith("long") else figures["tokens_s"]
            rows.append(
                (
                    system["label"],
                    key,
                    f"{tokens:,.1f}" + (" in" if key.startswith("long") else ""),
                    f"{figures['requests_s']:,.2f}",
                    f"{figures['ttft_p50_ms']:,.0f} / {figures['ttft_p95_ms']:,.0f}",
                    f"{figures.get('gap_p50_ms', 0):,.2f} / {figures.get('gap_p95_ms', 0):,.2f}",
                    f"{cores:.2f}",
                )
            )
    return rows


def notes(run: dict[str, Any]) -> list[str]:
    """What does not fit a table."""
    lines = []
    for system in run["systems"]:
        if system["missing"]:
            lines.append(f"{system['label']}: not found ({system['missing']}).")
        if system["error"]:
            lines.append(f"{system['label']}: failed: {system['error'][-300:]}")
        lines += _many_streams_notes(system)
        lines += [
            f"{system['label']}: {key} counts for nothing: {objection(figures)}."
            for key, figures in system["workloads"].items()
            if objection(figures)
        ]
    shares = [figures["client_share"] for system in run["systems"] for figures in system["workloads"].values()]
    if shares:
        lines.append(f"The load generator used {max(shares):.1%} of one core at most.")
    disturbed = [
        f"{system['label']} {key} ({figures['other_share']:.2f})"
        for system in run["systems"]
        for key, figures in system["workloads"].items()
        if figures["other_share"] > MUCH_BESIDE
    ]
    if disturbed:
        lines.append(f"Disturbed by other processes, whose cores are in brackets: {', '.join(disturbed)}.")
    return lines


def _many_streams_notes(system: dict[str, Any]) -> list[str]:
    notes = []
    probed = system["workloads"].get("d16") or {}
    if "probe_p50_ms" in probed:
        p50, p99, most = (probed[f"probe_{name}_ms"] for name in ("p50", "p99", "max"))
        spread = f"{p50:.1f} ms (p50), {p99:.1f} ms (p99), {most:.1f} ms at most"
        notes.append(f"with 16 streams, a sign of life took {spread}")
    loaded = system["workloads"].get("d64") or {}
    if loaded.get("tokens"):
        cpu = ", ".join(f"{used / loaded['tokens'] * 1e6:,.0f} us {role}" for role, used in loaded["cpu_s"].items())
        notes.append(f"with 64 streams, CPU a token: {cpu}")
    return [f"{system['label']}: {'; '.join(notes)}."] if notes else []


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, with what Markdown would take for a border escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
