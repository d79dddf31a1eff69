"""``upwell doctor``: what of the Ascend stack is here, what it would need to be, and what error codes mean.

Written to standard output, for 80 columns and for pipes; ``--json`` writes the same facts for programs. On a machine
without an NPU it says so in the first line, and that is no failure.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from functools import partial
from textwrap import fill

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.errors import ConfigError
from kernels.ascend.chips import Chip
from kernels.ascend.errors import COMMON, ERRORS, AscendError, family, find
from kernels.ascend.machine import Machine
from kernels.ascend.probe import Diagnosis, Verdict, diagnose
from kernels.ascend.versions import SETS

STYLES = {Verdict.OK: "green", Verdict.WRONG: "bold red", Verdict.MISSING: "red", Verdict.UNKNOWN: "yellow"}
NO_NPU = "No Ascend NPU here: there is no /dev/davinci0, nor one of another number."


def doctor(words: list[str], environment: Mapping[str, str], *, as_json: bool) -> int:
    """Explain the error code in ``words``, or look at the machine if there are none; returns the exit code.

    Args:
        words: a code, or a message that holds one.
        environment: the one that an engine would have.
        as_json: write JSON.

    Raises:
        ConfigError: there is no known code in the words.
    """
    console = Console(highlight=False)
    code = 0
    with console.capture() as shown:
        if words:
            error = named_error(" ".join(words))
            found = error_facts(error)
            show_error(error, console)
        else:
            diagnosis = diagnose(Machine(environment))
            code, found = exit_code(diagnosis), facts(diagnosis)
            show(diagnosis, console)
    text = "\n".join(line.rstrip() for line in shown.get().splitlines())
    _write(json.dumps(found, indent=2) if as_json else text)
    return code


def _write(text: str) -> None:
    """Print, to a reader who may stop reading."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it ends


def exit_code(diagnosis: Diagnosis) -> int:
    """1 where there is an NPU that could not be served on, or where no device could be."""
    return 1 if diagnosis.stops else 0


def named_error(text: str) -> AscendError:
    """The error whose code stands in a text.

    Raises:
        ConfigError: none is known; says what kind a six-digit code is all the same.
    """
    error = find(text)
    if error is not None:
        return error
    kind = family(text.strip())
    if kind:
        raise ConfigError(f"{text.strip()} is not in the table; by its first digit it is of {kind}.")
    raise ConfigError(f"there is no Ascend error code known here in '{text}'; `upwell doctor` lists them.")


def error_facts(error: AscendError) -> dict[str, object]:
    """One code, as plain data."""
    return {**dataclasses.asdict(error), "tells": error.tells.name.lower()}


def show_error(error: AscendError, console: Console) -> None:
    """One code, on a few lines."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in ((error.code, error.name), ("cause", error.cause), ("to do", error.remedy)):
        table.add_row(name, escape(text))
    table.add_row("source", escape(error.source))
    console.print(table)


def facts(diagnosis: Diagnosis) -> dict[str, object]:
    """All that was found, as plain data."""
    return {
        "npu": bool(diagnosis.nodes),
        "device_nodes": list(diagnosis.nodes),
        "stops": [finding.name for finding in diagnosis.stops],
        "findings": [dataclasses.asdict(finding) for finding in diagnosis.findings],
        "chips": [dataclasses.asdict(chip) for chip in diagnosis.chips],
        "chips_note": diagnosis.chips_note,
        "version_sets": [dataclasses.asdict(entry) for entry in SETS],
    }


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Everything, for a terminal."""
    console.print(headline(diagnosis), soft_wrap=True)
    console.print(_versions(diagnosis))
    console.print(_sets())
    console.print(_chips(diagnosis.chips) if diagnosis.chips else f"No chips: {escape(diagnosis.chips_note)}.\n")
    for line in _remarks(diagnosis, console.width):
        console.print(line, soft_wrap=True)
    console.print(_errors())
    console.print("\n" + _conclusion(diagnosis), soft_wrap=True)


def headline(diagnosis: Diagnosis) -> str:
    """The first line."""
    if not diagnosis.nodes:
        return NO_NPU
    kinds = ", ".join(dict.fromkeys(chip.name for chip in diagnosis.chips))
    count = len(diagnosis.chips) or len(diagnosis.nodes)
    return f"{count} Ascend NPU{'' if count == 1 else 's'} here{': ' if kinds else ''}{escape(kinds)}."


def _table(title: str, *names: str) -> Table:
    table = Table(*names, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    return table


def _versions(diagnosis: Diagnosis) -> Table:
    table = _table("\nWhat is here, and what it needs to be", "what", "found", "needs", "verdict")
    table.columns[3].no_wrap = True
    for finding in diagnosis.findings:
        verdict = f"[{STYLES[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(finding.name, escape(finding.found or "-"), escape(finding.wanted), verdict)
    return table


def _sets() -> Table:
    table = _table("Versions that go together", "by", "torch", "torch-npu", "triton-ascend", "CANN")
    for entry in SETS:
        table.add_row(entry.name, entry.torch, entry.torch_npu, entry.triton_ascend, entry.cann or "-")
    return table


def _chips(chips: tuple[Chip, ...]) -> Table:
    table = _table("Chips", "number", "chip", "free HBM", "HBM", "health")
    for chip in chips:
        free, total = (f"{size / 2**30:.1f} GiB" for size in (chip.free_hbm_bytes, chip.total_hbm_bytes))
        table.add_row(str(chip.index), escape(chip.name), free, total, escape(chip.health or "-"))
    return table


def _remarks(diagnosis: Diagnosis, width: int) -> list[str]:
    """Why a verdict is what it is, and what mends it; commands are broken as little as the width allows."""
    wrap = partial(fill, width=width, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)
    lines = []
    for finding in diagnosis.findings:
        if finding.verdict is not Verdict.OK and (finding.detail or finding.remedy):
            name = f"  [bold]{finding.name}[/]"
            lines.append(f"{name}: {escape(wrap(finding.detail, width=max(width - len(name), 40)))}")
            lines += [escape(wrap(finding.remedy, initial_indent="      "))] if finding.remedy else []
    return ["[bold]Why, and what to do[/]\n", *lines, ""] if lines else []


def _errors() -> Table:
    table = _table("Ascend error codes (upwell doctor CODE tells more)", "code", "cause", "what to do")
    for error in ERRORS:
        remedy = error.remedy
        for number, common in enumerate(COMMON, 1):
            remedy = remedy.replace(common, f"({number})")
        table.add_row(error.code, escape(error.cause), escape(remedy))
    table.caption = "\n".join(f"({number}) {escape(common)}" for number, common in enumerate(COMMON, 1))
    table.caption_justify, table.caption_style = "left", ""
    return table


def _conclusion(diagnosis: Diagnosis) -> str:
    names = escape(", ".join(finding.name for finding in diagnosis.stops))
    if diagnosis.stops:
        where = "on the NPU" if diagnosis.nodes else "on any device"
        return f"[bold red]Not ready[/] to serve {where}: {names}; see above what mends it."
    if not diagnosis.nodes:
        return "Upwell serves on the CPU here; nothing above stops that."
    return "[bold green]Nothing[/] that was looked at stops serving on the NPU."
