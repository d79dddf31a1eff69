"""Tables of Markdown for docs/ascend-kernel.md, and those of on-chip memory, which tests read back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tools.ascend.hivm.module import SPACES
from tools.ascend.matrix import Kernel

Part = Literal["first", "second", "store_keys_values", "split_queries"]
_PARTS: Mapping[str, Part] = {
    "split": "first", "combine": "second", "combine, sink": "second",
    "store": "store_keys_values", "queries": "split_queries",
}  # fmt: skip
_NAMES = {"fp32": "f32", "fp16": "f16", "i32": "i32"}


@dataclass(frozen=True, order=True)
class Place:
    """A row of the tables of on-chip memory.

    Attributes:
        part: a pass of attention, of which the second does not ask how large keys are, or a kernel that makes int8.
        queries: ``1``, or ``several`` for tiles of prompts.
        scores: with the second pass, whether a cache is of int8: ``i32``, else ``-``.
        heads: of queries for each head of keys; of keys where they are stored.
    """

    part: Part
    k_dim: int
    v_dim: int
    queries: str
    scores: str
    heads: int

    @classmethod
    def of(cls, kernel: Kernel) -> Place:
        """A kernel's."""
        variant, part = kernel.variant, _PARTS[kernel.which]
        queries = "several" if variant.queries > 1 else "1"
        scores = "-" if part == "second" and variant.planes == 1 else _NAMES[variant.scores]
        heads = variant.kv_heads if part == "store_keys_values" else variant.group
        return cls(part, variant.k_dim, variant.v_dim, queries, scores, heads)


_PASS_ROW = re.compile(
    r"\| (\d+|any) / (\d+) \| (1|several) \| (\d+)(?: to (\d+))? \| (f32|f16|i32|-) \|"
    r" ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|"
)
_INT8_ROW = re.compile(r"\| (store_keys_values|split_queries) \| (\d+) / (\d+) \| ([\d, ]+) \| ([\d,]+) \|")

Peaks = tuple[int, int, int]
"""Bytes of UB, L1 and L0C."""


def places(measured: Iterable[tuple[Kernel, Peaks]]) -> dict[Place, Peaks]:
    """The memory of each row.

    Raises:
        ValueError: chips, dtypes or a sink make a difference, which the page has no room for.
    """
    rows: dict[Place, Peaks] = {}
    for kernel, peaks in measured:
        if rows.setdefault(Place.of(kernel), peaks) != peaks:
            raise ValueError(f"{kernel} takes {peaks}, but another chip or dtype {rows[Place.of(kernel)]}")
    return rows


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table of Markdown; the first row is its head, and all but its first column are numbers."""
    yield "| " + " | ".join(rows[0]) + " |"
    yield "|---|" + "---:|" * (len(rows[0]) - 1)
    yield from ("| " + " | ".join(row) + " |" for row in rows[1:])


def memory_table(rows: Mapping[Place, Peaks], *, first: bool) -> Iterator[str]:
    """Lines for a pass of attention; adjacent groups that need the same share one."""
    names = ["keys / values", "queries", "group", "scores"]
    lines = [[*names, *(f"{name} of {size:,}" for name, size, _ in SPACES.values())]]
    for place, groups, peaks in _shared(rows, "first" if first else "second"):
        keys = f"{place.k_dim} / {place.v_dim}" if first else f"any / {place.v_dim}"
        span = str(groups[0]) if len(groups) == 1 else f"{groups[0]} to {groups[-1]}"
        lines.append([keys, place.queries, span, place.scores, *(f"{size:,}" for size in peaks)])
    return table(lines)


def int8_table(rows: Mapping[Place, Peaks]) -> Iterator[str]:
    """Lines for the kernels that make int8, which use UB alone."""
    lines = [["kernel", "keys / values", "heads", f"UB of {SPACES['ub'][1]:,}"]]
    parts: tuple[Part, ...] = ("store_keys_values", "split_queries")
    for part in parts:
        for place, heads, peaks in _shared(rows, part):
            lines.append([part, f"{place.k_dim} / {place.v_dim}", ", ".join(map(str, heads)), f"{peaks[0]:,}"])
    return table(lines)


def _shared(rows: Mapping[Place, Peaks], part: Part) -> Iterator[tuple[Place, list[int], Peaks]]:
    """A part's rows: for heads that need the same the first place, all of them, and what they need."""
    chosen = sorted((place, peaks) for place, peaks in rows.items() if place.part == part)
    for (*_, peaks), same in groupby(chosen, key=_without_heads):
        of_it = [place for place, _ in same]
        yield of_it[0], [place.heads for place in of_it], peaks


def _without_heads(row: tuple[Place, Peaks]) -> tuple[int, int, str, str, Peaks]:
    place, peaks = row
    return place.k_dim, place.v_dim, place.queries, place.scores, peaks


def read_memory(text: str) -> dict[Place, Peaks]:
    """The tables of on-chip memory of a page, a row for each number of heads."""
    rows: dict[Place, Peaks] = {}
    for keys, values, queries, low, high, scores, *sizes in _PASS_ROW.findall(text):
        ub, l1, l0c = map(_number, sizes)
        for group in range(int(low), int(high or low) + 1):
            k_dim = int(values if keys == "any" else keys)
            part: Part = "second" if keys == "any" else "first"
            rows[Place(part, k_dim, int(values), queries, scores, group)] = ub, l1, l0c
    for part, keys, values, heads, size in _INT8_ROW.findall(text):
        for count in heads.split(", "):
            rows[Place(part, int(keys), int(values), "1", "i32", int(count))] = _number(size), 0, 0
    return rows


def _number(text: str) -> int:
    return int(text.replace(",", ""))
