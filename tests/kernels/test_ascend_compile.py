"""Link 3: all kernels of attention for every kind of heads compile to the final HIVM of two chips, and fit.

On a 910B3 the first pass as the backend takes it by itself is compiled for all of them, in each dtype, for decoding and
for prompts; with scores as f16, with a cache of int8, the second pass, and all for a 910B1, by turns. ``-m soak`` has
everything.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from kernels.ascend.variant import HEAD_DIMS, MAX_GROUP, AttentionVariant
from tests.support.ascend_links import BUILT, link
from tools.ascend import bishengir, report, tables
from tools.ascend.bishengir import final_hivm
from tools.ascend.hivm.module import SPACES
from tools.ascend.lower import Lowered, lower
from tools.ascend.matrix import CUBE_CORES, STORED_HEADS, Kernel, Pass, compiled, kernels, variant
from tools.ascend.toolchain import ToolFailed

pytestmark = link(3)

B3, B1 = CUBE_CORES
CAPACITY = {name: size for name, size, _ in SPACES.values()}
CUBE_CALLS = ("mma_tile", "nd2nz", "set_l1", "fixpipe")
OPERANDS = {"split": 26, "combine": 66, "combine, sink": 65}
"""Vector operands in a module's text."""
WITHOUT_PADDING = {"split": 26, "combine": 63, "combine, sink": 61}
"""The same for groups of 8 and 16, where the second pass has no rows to fill."""
INT8_OPERANDS: dict[Pass, set[int]] = {
    "split": {122, 132, 133},
    "combine": {80, 85},
    "combine, sink": {78, 84},
    "queries": {81, 90, 91},
    "store": {74, 91, 93},
}
"""The same with a cache of int8; there are less where no rows are to fill, and where each vector core has one."""
INT8_TURN = {"split": 1, "queries": 1, "combine": 0, "combine, sink": 2}
LOCK = re.compile(r"(?<!arg_type<)sync_block_lock")
"""What a module with a lock has beside the argument that all have room for one by: a launch then waits for the device
to set it, which the capture of a graph refuses."""
ATOMIC = """
import triton
import triton.language as tl

@triton.jit
def added(p_ptr, q_ptr):
    i = tl.arange(0, 64)
    tl.store(q_ptr + i, tl.atomic_add(p_ptr + i, 1))
"""
TOO_LARGE = {
    "ub": ((128, 128), {"SPLIT": 8192}),
    "cc": ((128, 128), {"ROWS": 512}),
    "cbuf": ((256, 256), {"BLOCK": 1024}),
}
"""The compiler's name for a memory -> sizes of heads, and constants with which a tile does not fit."""


def is_in_sample(kernel: Kernel) -> bool:
    """Whether a run that is not soak compiles it."""
    chosen = kernel.variant
    turn = ((chosen.dtype == "bf16") + 2 * (chosen.queries > 1) + chosen.group) % 4
    by_turns = "fp16" if chosen.group // 4 % 2 else "fp32"
    if kernel.which == "store":
        return (STORED_HEADS.index(chosen.kv_heads) % 2 == 0) == (chosen.dtype == "bf16")
    if chosen.planes == 2:
        return turn == INT8_TURN[kernel.which] and (chosen.group <= 4 or (kernel.chip == B3 and chosen.group >= 13))
    if kernel.which == "split":
        return (kernel.chip == B3 and chosen.scores == "fp32") or (turn == 0 and chosen.scores == by_turns)
    return turn == 2 * (kernel.which == "combine, sink") and (kernel.chip == B3 or by_turns == "fp16")


def vector_calls(kernel: Kernel) -> dict[str, int]:
    """All that the first pass asks of its vector cores: nothing compares or selects, since masks are loads that end."""
    names = {"fp32": "float", "fp16": "half", "bf16": "bfloat16_t"}
    dtype, scores = names[kernel.variant.dtype], names[kernel.variant.scores]
    calls = Counter(
        {
            f"broadcast_scalar_{scores}_to_1d": 1,
            f"load_gm_to_ubuf_2d_{scores}": 1,
            "vmuls_vs_1d_float": 1,
            "enablevc_reduce_max_ar_float": 1,
            "vmaxs_vs_1d_float": 1,
            "vsub_2d_float": 1,
            "vexp_1d_float": 1,
            "enablevc_reduce_sum_ar_float": 1,
            f"vcast_float_to_{dtype}_1d_with_mode": 1,
        }
    )
    calls += Counter({f"store_ubuf_to_gm_1d_{dtype}": 1, "store_ubuf_to_gm_1d_float": 2})
    if kernel.variant.group == 2:  # one row for each vector core
        calls -= Counter(["vmaxs_vs_1d_float", "enablevc_reduce_max_ar_float", "enablevc_reduce_sum_ar_float"])
        calls -= Counter(["vsub_2d_float"])
        calls += Counter(["vsub_1d_float", "enablevc_reduce_max_r_float", "enablevc_reduce_sum_r_float"])
    if scores == "half":
        calls["vcast_half_to_float_1d_with_mode"] = 1
    return dict(calls)


@cache
def page() -> dict[tables.Place, tables.Peaks]:
    return tables.read_memory(report.PAGE.read_text(encoding="utf-8"))


def check(kernel: Kernel) -> None:
    final = compiled(kernel, BUILT)
    peaks = final.peaks
    assert all(0 <= peaks[name] <= size for name, size in CAPACITY.items())
    assert tuple(peaks.values()) == page()[tables.Place.of(kernel)], kernel
    assert final.module.unaligned == ()
    assert final.module.workspace_bytes == 0
    assert not LOCK.search(final.text)
    if kernel.variant.planes == 2:
        assert final.module.vector_operands in INT8_OPERANDS[kernel.which]
        masks = [n for name, n in final.module.calls.items() if name.startswith(("vcmp", "vsel"))]
        assert sum(masks) == (4 if kernel.which == "split" else 0)
        return
    operands = WITHOUT_PADDING if kernel.variant.group in {8, 16} else OPERANDS
    halves = kernel.which == "split" and kernel.variant.scores == "fp16"
    single_rows = kernel.which == "split" and kernel.variant.group == 2
    assert final.module.vector_operands == operands[kernel.which] + 2 * halves - 3 * single_rows
    if kernel.which == "split":
        by_vector = {name: n for name, n in final.module.calls.items() if not name.startswith(CUBE_CALLS)}
        assert by_vector == vector_calls(kernel)


@pytest.mark.parametrize("chip", CUBE_CORES)
@pytest.mark.parametrize(("k_dim", "v_dim"), HEAD_DIMS)
@pytest.mark.parametrize("group", range(1, MAX_GROUP + 1))
def test_compiles_and_fits(group, k_dim, v_dim, chip):
    mine = [kernel for kernel in kernels(chip) if is_of(kernel, group, k_dim, v_dim) and is_in_sample(kernel)]
    assert any(kernel.which == "split" for kernel in mine)
    for kernel in mine:
        check(kernel)


@pytest.mark.soak
@pytest.mark.parametrize("chip", CUBE_CORES)
@pytest.mark.parametrize(("k_dim", "v_dim"), HEAD_DIMS)
@pytest.mark.parametrize("group", range(1, MAX_GROUP + 1))
def test_all_of_it_compiles_and_fits(group, k_dim, v_dim, chip):
    for kernel in kernels(chip):
        if is_of(kernel, group, k_dim, v_dim):
            check(kernel)


def is_of(kernel: Kernel, group: int, k_dim: int, v_dim: int) -> bool:
    chosen = kernel.variant
    return (chosen.group, chosen.k_dim, chosen.v_dim) == (group, k_dim, v_dim)


def test_the_sample_has_every_kind_of_kernel_for_both_chips():
    for chip in CUBE_CORES:
        sample = {kind(kernel) for kernel in kernels(chip) if is_in_sample(kernel)}
        assert sample == {kind(kernel) for kernel in kernels(chip)}


def kind(kernel: Kernel) -> tuple[object, ...]:
    chosen = kernel.variant
    return kernel.which, chosen.dtype, chosen.queries > 1, chosen.k_dim, chosen.scores


def test_the_page_has_no_other_rows():
    assert set(page()) == {tables.Place.of(kernel) for kernel in kernels(B3)}


@pytest.mark.parametrize("memory", TOO_LARGE)
@pytest.mark.parametrize("chip", CUBE_CORES)
def test_a_tile_that_is_too_large_does_not_compile(memory, chip):
    dims, constants = TOO_LARGE[memory]
    large = variant(7, *dims, "fp16")
    with pytest.raises(ToolFailed, match=rf"{memory} overflow, requires \d+ bits while \d+ bits available"):
        final_hivm(lowered_with(large, chip, constants), chip)


def test_a_lock_is_seen(tmp_path):
    """The compiler takes one to give back what an atomic addition found."""
    text = final_hivm(lower(kernel_of(tmp_path), {"p_ptr": "i32", "q_ptr": "i32"}, {}, {}), B3)
    assert LOCK.search(text)


def kernel_of(folder: Path) -> Any:
    """Triton reads a kernel's text where it was defined."""
    file = folder / "atomic.py"
    file.write_text(ATOMIC, encoding="utf-8")
    spec = spec_from_file_location("atomic", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.added


def lowered_with(chosen: AttentionVariant, chip: str, constants: dict[str, int]) -> Lowered:
    from kernels.ascend.paged_decode import paged_attention_split

    changed = chosen.split_constants(CUBE_CORES[chip]) | constants
    return lower(paged_attention_split, chosen.split_pointers(), chosen.split_scalars(), changed)


def test_what_the_compiler_says_of_a_module_is_an_error(monkeypatch):
    note = "[NOTE] Ub overflow detected; automatically set enable-auto-multi-buffer to false and retrying compilation."
    monkeypatch.setattr(bishengir, "run", lambda *_, **__: note)
    with pytest.raises(ToolFailed, match=r"not as it was asked for: \[NOTE\] Ub overflow"):
        final_hivm(Lowered("kernel", True, ""), B3)


def test_every_flag_of_the_compiler_is_one_that_it_has():
    kernel = lowered_with(variant(1, 64, 64, "fp16"), B3, {})
    with pytest.raises(ToolFailed, match="no-such-flag"):
        final_hivm(kernel, B3, "--no-such-flag")


def test_figures_that_differ_between_chips_or_dtypes_are_not_written():
    one, other = Kernel(variant(1, 64, 64, "fp16"), "split", B3), Kernel(variant(1, 64, 64, "bf16"), "split", B1)
    assert tables.places([(one, (1, 2, 3)), (other, (1, 2, 3))]) == {tables.Place.of(one): (1, 2, 3)}
    with pytest.raises(ValueError, match=r"takes \(1, 2, 4\), but another"):
        tables.places([(one, (1, 2, 3)), (other, (1, 2, 4))])


def test_tables_of_memory_are_read_as_they_are_written():
    text = report.PAGE.read_text(encoding="utf-8")
    for lines in (*(tables.memory_table(page(), first=first) for first in (True, False)), tables.int8_table(page())):
        assert "\n".join(lines) in text


def test_check_tells_a_page_that_no_longer_holds(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "measured_page", lambda: "figures")
    assert report.main(["--check"]) == 1
    assert "not what would be written" in capsys.readouterr().err
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    (tmp_path / "page.md").write_text("other figures", encoding="utf-8")
    assert report.main(["--check"]) == 1
