"""Plant defects in a final HIVM module, one at a time, and see whether running it shows them.

A mutant is caught by an error of the run, by results that its case refuses, or since it does not build. One that is
not caught counts as equivalent only if it does what the original does on every case (every byte of every array, every
counter of work, no error), and changed an order or a place, of which the run then shows that nothing depended on it:
``Reason``. Of a fill or a copy that was left out, a run that puts NaN or a huge number there instead
has to show it. A loop's turn that repeats what the one before did may do its work twice. All else has survived, and is
a gap of the model or of the cases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.ascend.hivm.build import UnknownCall
from tools.ascend.hivm.execute import Counters, Program, Report, Value, build
from tools.ascend.hivm.module import SPACES, PointerCast, UnknownConstruct
from tools.ascend.hivm.translate import translate
from tools.ascend.toolchain import ToolFailed

_ORDER = re.compile(r"\s*hivm\.hir\.(set_flag|wait_flag|pipe_barrier|sync_block_set|sync_block_wait)\b(.*)")
_SWAPS = (
    ("vmax_", "vmin_"), ("vmin_", "vmax_"), ("vmaxs_", "vmins_"), ("vmins_", "vmaxs_"), ("vadd_", "vsub_"),
    ("vsub_", "vadd_"), ("vmul_", "vadd_"), ("vdiv_", "vmul_"), ("_reduce_max_", "_reduce_min_"),
    ("_reduce_sum_", "_reduce_max_"), ("vcmp_eq_", "vcmp_ne_"), ("vcmps_eq_", "vcmps_ne_"),
)  # fmt: skip

_POISON = {"f32": "0x7FC00000", "f16": "0x7E00", "i32": "2147483647"}
"""Type -> NaN, or a whole number that leads nowhere."""
_LEFT_OUT = (
    "vexp", "nd2nz", "set_l1", "fixpipe", "load_", "store_", "vcast", "broadcast", "copy_", "vmuls", "vadds", "vabs",
    "vsel", "vnot", "vand", "arange",
)  # fmt: skip
"""Calls of which a mutant has one less."""


class Reason(Enum):
    """Why a mutant that does what the original does need not be caught."""

    ORDERS_NOTHING = "without it no two conflicting accesses are unordered"
    DEAD_MEMORY = "the buffer's new place holds nothing that is read later"
    PADDING = "no result depends on what was filled: if it is NaN, nothing changes"
    EMPTY_TURN = "the turn more does no work"
    REPEATED_TURN = "the turn more does again what the last one did: nothing in it depends on which turn it is"
    ZERO = "what is taken away instead of added, or whose maximum is taken instead of its sum, are products with zero"


@dataclass(frozen=True)
class Mutant:
    """A module with one defect.

    Attributes:
        harmless: the reason that may excuse it.
        poisoned: the module with NaN for what the defect left out; the reason holds only if this works as the original.
    """

    name: str
    text: str
    harmless: Reason | None = None
    poisoned: str | None = None


@dataclass(frozen=True)
class Case:
    """One launch.

    Attributes:
        arguments: makes the arguments anew.
        accepts: whether the arrays hold what they should after the run, as far as a caller would look.
    """

    arguments: Callable[[], list[Value]]
    num_cores: int
    accepts: Callable[[Sequence[Value]], bool]


@dataclass(frozen=True)
class Verdict:
    """``caught_by``: the error, ``results``, or ``build``; None if not caught. ``reason`` is set for an equivalent."""

    name: str
    caught_by: str | None
    reason: Reason | None = None

    @property
    def survived(self) -> bool:
        """Neither caught nor equivalent."""
        return self.caught_by is None and self.reason is None


@dataclass(frozen=True)
class Behaviour:
    """What a program did on every case."""

    reports: tuple[Report, ...]
    arrays: tuple[tuple[bytes, ...], ...]
    accepted: tuple[bool, ...]


def behaviour(program: Program, cases: Sequence[Case]) -> Behaviour:
    """Run a program on every case, up to the first that ends in an error or is refused."""
    reports, arrays, accepted = [], [], []
    for case in cases:
        arguments = case.arguments()
        with np.errstate(all="ignore"):
            reports.append(program.run(arguments, case.num_cores, most_instructions=2_000_000))
            accepted.append(case.accepts(arguments))
        arrays.append(tuple(_bytes(value) for value in arguments if isinstance(value, np.ndarray)))
        if reports[-1].errors or not accepted[-1]:
            break
    return Behaviour(tuple(reports), tuple(arrays), tuple(accepted))


def classify(mutant: Mutant, original: Behaviour, cases: Sequence[Case], folder: Path) -> Verdict:
    """Build and run a mutant; ``original`` is what the original does on the same cases.

    Raises:
        ValueError: the original itself has an error or is refused.
    """
    if len(original.reports) < len(cases) or original.reports[-1].errors or not all(original.accepted):
        raise ValueError("the original does not pass its own cases")
    try:
        program = build(mutant.text, folder)
    except (UnknownConstruct, UnknownCall, ToolFailed):
        return Verdict(mutant.name, "build")
    found = behaviour(program, cases)
    program.library.unlink(missing_ok=True)
    if errors := found.reports[-1].errors:
        return Verdict(mutant.name, _kind(errors[0]))
    if not all(found.accepted):
        return Verdict(mutant.name, "results")
    if mutant.poisoned is None:
        same = _same_results if mutant.harmless is Reason.REPEATED_TURN else _same
        return Verdict(mutant.name, None, mutant.harmless if same(found, original) else None)
    poisoned = build(mutant.poisoned, folder)
    as_well = found.arrays == original.arrays and _same_results(behaviour(poisoned, cases), original)
    poisoned.library.unlink(missing_ok=True)
    return Verdict(mutant.name, None, mutant.harmless if as_well else None)


def _same(found: Behaviour, original: Behaviour) -> bool:
    """Whether both do the same work, with the same results and no error."""
    both = zip(found.reports, original.reports, strict=True)
    return _same_results(found, original) and all(
        _work(mine.counters) == _work(theirs.counters) for mine, theirs in both
    )


def _same_results(found: Behaviour, original: Behaviour) -> bool:
    return found.arrays == original.arrays and not any(report.errors for report in found.reports)


def mutants(text: str) -> Iterator[Mutant]:
    """All mutants of a module, in the order of their lines within each kind."""
    lines = text.splitlines()
    yield from _dropped(lines)
    yield from _dropped_pairs(lines)
    casts = translate(text).casts
    for cast in casts:
        yield from _moved(lines, cast, casts)
    for at, line in enumerate(lines):
        yield from _swapped(lines, at, line)
        yield from _bounded(lines, at, line)


def _dropped(lines: list[str]) -> Iterator[Mutant]:
    """Each flag, barrier and cross-core flag left out."""
    for at, line in enumerate(lines):
        if match := _ORDER.match(line):
            name = f"line {at + 1}: {match[1]}{_short(match[2])} dropped"
            yield Mutant(name, _joined(lines[:at] + lines[at + 1 :]), Reason.ORDERS_NOTHING)


def _dropped_pairs(lines: list[str]) -> Iterator[Mutant]:
    """All sets and waits of a flag left out together, which the balance of flags cannot show."""
    flags: dict[str, list[int]] = {}
    function = ""
    for at, line in enumerate(lines):
        if head := re.match(r"\s*func\.func @(\w+)", line):
            function = head[1]
        if flag := re.match(r"\s*hivm\.hir\.(?:set|wait)_flag\[(.*?)\]", line):
            flags.setdefault(f"{function} {flag[1]}", []).append(at)
        if flag := re.match(r"\s*hivm\.hir\.sync_block_(?:set|wait)\[.*?\] flag = (\d+)", line):
            flags.setdefault(f"cross-core {flag[1]}", []).append(at)
    for name, places in flags.items():
        if len(places) > 1:
            kept = [line for at, line in enumerate(lines) if at not in places]
            yield Mutant(f"flag {name} dropped everywhere", _joined(kept), Reason.ORDERS_NOTHING)


def _moved(lines: list[str], cast: PointerCast, casts: Sequence[PointerCast]) -> Iterator[Mutant]:
    """A buffer moved by 32 bytes, onto another one, and out of its memory."""
    if cast.address is None or not cast.num_bytes:
        return
    space, size, alignment = SPACES[cast.space]
    others = [c.address for c in casts if c.function == cast.function and c.space == cast.space and c.num_bytes]
    onto = next((a for a in others if a is not None and a != cast.address), None)
    targets = {
        "by 32 bytes": cast.address + max(32, alignment),
        "out": size - (cast.num_bytes // 2) // alignment * alignment,
    }
    if onto is not None:
        targets["onto another"] = onto
    at = cast.line - 1
    for how, address in targets.items():
        moved = re.sub(r"pointer_cast\(%[\w-]+\)", "pointer_cast(%moved)", lines[at])
        text = _joined([*lines[:at], f"    %moved = arith.constant {address} : i64", moved, *lines[at + 1 :]])
        name = f"line {cast.line}: {space} buffer at {cast.address} moved {how}"
        yield Mutant(name, text, None if how == "out" else Reason.DEAD_MEMORY)


def _swapped(lines: list[str], at: int, line: str) -> Iterator[Mutant]:
    """A library call made another one, or left out; the matrix unit's first flag turned."""
    call = re.match(r"\s*(?:func\.)?call @(\w+)\(", line)
    if not call:
        return
    name = call[1]
    for old, new in _SWAPS:
        if old in f"_{name}" and (name.startswith(old) or old.startswith("_")):
            other = name.replace(old.lstrip("_") if old.startswith("_") else old, new.lstrip("_"), 1)
            of_zero = old in {"vadd_", "_reduce_sum_"} and _takes_zero(lines, at)
            yield _renamed(lines, at, name, other, Reason.ZERO if of_zero else None)
    if name.startswith("mma_tile"):
        yield _renamed(lines, at, name, name.removesuffix("_tb") if name.endswith("_tb") else name + "_tb")
        for old, new in (("%true", "%false"), ("%false", "%true")):
            if f"{old}, " in line:
                yield Mutant(f"line {at + 1}: {name} with {new}", _replaced(lines, at, line.replace(old, new, 1)))
    if name.startswith(_LEFT_OUT):
        padding = Reason.PADDING if name.startswith(("set_l1", "broadcast_scalar", "copy_ubuf_to_ubuf")) else None
        left_out = _joined(lines[:at] + lines[at + 1 :])
        yield Mutant(f"line {at + 1}: {name} dropped", left_out, padding, _poisoned(lines, at))


def _poisoned(lines: list[str], at: int) -> str | None:
    """The module with ``_POISON`` where a call puts numbers into UB: a fill, or a copy of floats; None for others."""
    fill = re.match(r"(\s*(?:func\.)?call @broadcast_scalar_\w+_to_1d\()%[\w-]+(, .*: \((f32|f16|i32), .*)$", lines[at])
    if fill is None:
        copy = re.match(
            r"(\s*(?:func\.)?)call @copy_ubuf_to_ubuf_1d_float\(%[\w-]+, (%[\w-]+), .*, (memref.*?), i32", lines[at]
        )
        if copy is None or not any("func private @broadcast_scalar_float_to_1d(" in line for line in lines):
            return None
        call = f"{copy[1]}call @broadcast_scalar_float_to_1d(%poison, {copy[2]}) : (f32, {copy[3]}) -> ()"
        return _joined([*lines[:at], _poison("f32"), call, *lines[at + 1 :]])
    return _joined([*lines[:at], _poison(fill[3]), f"{fill[1]}%poison{fill[2]}", *lines[at + 1 :]])


def _poison(kind: str) -> str:
    return f"    %poison = arith.constant {_POISON[kind]} : {kind}"


_VIEW = re.compile(
    r"(%[\w-]+)(?:, %[\w-]+)* = memref\."
    r"(?:cast|collapse_shape|subview|reinterpret_cast|extract_strided_metadata) (%[\w-]+)"
)
_CALL = re.compile(r"\s*(?:func\.)?call @(\w+)\((.*?)\) :")


def _takes_zero(lines: list[str], at: int) -> bool:
    """Whether what a sum is of, or the second number that is added, is a product with 0 or a sum of such."""
    before = "\n".join(lines[:at])
    view_of = dict(_VIEW.findall(before))
    zeros = set(re.findall(r"(%[\w-]+) = arith\.constant 0\.0+e\+00 : f32", before))
    for number, line in enumerate(lines[: at + 1]):
        if not (call := _CALL.match(line)):
            continue
        operands = [_viewed(operand, view_of) for operand in call[2].split(", ")]
        of_zero = operands[1] in zeros if call[1].startswith(("vmuls_vs", "vadd_")) else operands[0] in zeros
        if number == at:
            return of_zero
        if of_zero and call[1].startswith("vmuls_vs"):
            zeros.add(operands[2])
        if of_zero and "reduce_sum" in call[1]:
            zeros.add(operands[1])
    return False


def _viewed(name: str, view_of: Mapping[str, str]) -> str:
    return _viewed(view_of[name], view_of) if name in view_of else name


def _renamed(lines: list[str], at: int, old: str, new: str, harmless: Reason | None = None) -> Mutant:
    text = _replaced(lines, at, lines[at].replace(f"@{old}(", f"@{new}("))
    if f"private @{new}(" not in text:
        declared = next(line for line in lines if f"func.func private @{old}(" in line)
        text = text.replace(declared, declared + "\n" + declared.replace(f"@{old}(", f"@{new}("), 1)
    return Mutant(f"line {at + 1}: {old} made {new}", text, harmless)


def _bounded(lines: list[str], at: int, line: str) -> Iterator[Mutant]:
    """A loop's first and last turn left out, and one turn too many."""
    loop = re.match(r"(.*scf\.for %\w+ = )(%[\w-]+) to (%[\w-]+) step (%[\w-]+)(.*\{)$", line)
    if not loop:
        return
    head, low, high, step, tail = loop.groups()
    kind = found[1] if (found := re.search(r" : (i\d+) \{$", line)) else "index"
    for name, operation, bounds in (
        ("without its first turn", f"arith.addi {low}, {step}", f"%bound to {high}"),
        ("without its last turn", f"arith.subi {high}, {step}", f"{low} to %bound"),
        ("with a turn more", f"arith.addi {high}, {step}", f"{low} to %bound"),
    ):
        new = [f"    %bound = {operation} : {kind}", f"{head}{bounds} step {step}{tail}"]
        more = Reason.REPEATED_TURN if _turns_are_alike(lines, at) else Reason.EMPTY_TURN
        empty = more if name == "with a turn more" else None
        yield Mutant(f"line {at + 1}: loop {name}", _joined(lines[:at] + new + lines[at + 1 :]), empty)


def _turns_are_alike(lines: list[str], at: int) -> bool:
    """Whether a loop that carries something on reads neither that nor the number of its turn."""
    head = re.match(r"(\s*).*scf\.for (%\w+) = .* iter_args\((%\w+) = %\w+\)", lines[at])
    if head is None:
        return False
    end = next(n for n in range(at + 1, len(lines)) if lines[n].startswith(head[1] + "}"))
    return not any(re.search(rf"{name}\b", line) for name in head.groups()[1:] for line in lines[at + 1 : end])


def _replaced(lines: list[str], at: int, line: str) -> str:
    return _joined([*lines[:at], line, *lines[at + 1 :]])


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    return re.sub(r"[<>]|PIPE_|EVENT_| ffts_base_addr.*", "", text)


_KINDS = {
    "race": "race", "deadlock": "deadlock", "nothing has been written": "uninitialised", "another type": "another type",
    "which ends at": "out of range", "leads out": "out of range", "misaligned": "misaligned",
    "not a multiple": "misaligned", "nothing sets it": "wait without set", "still set": "flag left set",
    "has been since": "flag set twice", "more than 15": "counter",
}  # fmt: skip


def _kind(error: str) -> str:
    """What an error is about, without its place."""
    return next((kind for words, kind in _KINDS.items() if words in error), error.partition(": ")[2])


def _work(counters: Counters) -> Counters:
    return replace(counters, instructions=0, saturated=0)


def _bytes(array: npt.NDArray[Any]) -> bytes:
    return array.tobytes()
