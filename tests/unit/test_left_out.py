"""What a run of the tests leaves out: links of the Ascend chain by what each needs; nothing where all must run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.support import ascend_links
from tests.support.ascend_links import REPOSITORY, link
from tools.ascend import toolchain

LINKS = [(1, True), (2, True), (3, True), (4, True), (5, True), (5, False)]
"""Each link, and whether it computes attention."""
SKIPS = {
    "mark": "@pytest.mark.skip(reason='not today')\ndef test_it():\n    pass\n",
    "call": "def test_it():\n    pytest.skip('not today')\n",
    "fixture": "@pytest.fixture\ndef it():\n    pytest.skip('not today')\n\n\ndef test_it(it):\n    pass\n",
    "module": "pytest.skip('not today', allow_module_level=True)\n",
    "import": "pytest.importorskip('no_such_module', reason='not today')\n",
}
GOOD = """def test_good():
    pass


@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One that has everything; a test takes names of LLVM's programs, other programs and modules out of its set."""
    has = {*toolchain.LLVM_PROGRAMS, "gcc", "nm", "ld", "c++", "torch", "triton.backends.ascend", "ascendnpuir"}
    has.add("torch_npu")

    class Folder:
        def __truediv__(self, name):
            path = tmp_path / name
            path.touch() if name in has else path.unlink(missing_ok=True)
            return path

        def __str__(self):
            return "LLVM"

    monkeypatch.delenv("UPWELL_REQUIRE_ASCEND", raising=False)
    monkeypatch.setattr(toolchain, "LLVM", Folder())
    monkeypatch.setattr(toolchain, "_is_installed", has.__contains__)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in has else None)
    return has


def left_out():
    """Link and whether it computes attention -> why it is left out, of those that are."""
    marks = {which: link(which[0], attention=which[1]) for which in LINKS}
    return {which: mark.kwargs["reason"] for which, mark in marks.items() if mark.name == "skip"}


def test_nothing_is_left_out_where_everything_is(machine):
    assert left_out() == {}


@pytest.mark.parametrize(
    ("absent", "links", "reason"),
    [
        ("mlir-opt", [(2, True), (4, True), (5, True)], "mlir-opt in LLVM (make ascend-toolchain)"),
        ("mlir-translate", [(2, True), (4, True), (5, True)], "mlir-translate in LLVM (make ascend-toolchain)"),
        ("clang", [(2, True), (4, True), (5, True)], "clang in LLVM (make ascend-toolchain)"),
        ("clang++", [(4, True)], "clang++ in LLVM (make ascend-toolchain)"),
        ("ld", [(2, True), (4, True), (5, True)], "ld (the Debian package binutils)"),
        ("gcc", [(5, True), (5, False)], "gcc (the Debian package build-essential)"),
        ("nm", [(5, True), (5, False)], "nm (the Debian package binutils)"),
        ("torch", [(1, True), (5, True), (5, False)], "torch (make .venv/.test)"),
        ("triton.backends.ascend", LINKS[:5], "triton-ascend (make .venv/.test)"),
        ("ascendnpuir", [(3, True), (4, True)], "ascendnpu-ir (make .venv/.test)"),
        ("torch_npu", [(5, True), (5, False)], "torch-npu (make .venv/.test)"),
    ],
)
def test_one_thing_that_is_missing_leaves_out_the_links_that_need_it(machine, absent, links, reason):
    machine.remove(absent)
    assert left_out() == {which: f"link {which[0]} of the Ascend chain needs {reason}" for which in links}


def test_programs_of_llvm_are_named_together(machine):
    machine.difference_update(toolchain.LLVM_PROGRAMS)
    needs = "link 2 of the Ascend chain needs mlir-opt, mlir-translate, clang in LLVM (make ascend-toolchain)"
    assert left_out()[2, True] == needs
    assert left_out().keys() == {(2, True), (4, True), (5, True)}


def test_a_torch_npu_that_tests_hide_is_not_missing(monkeypatch):
    """As without gcc, which is what is missing then. Of modules that are on every machine."""
    monkeypatch.setitem(sys.modules, "json", None)
    monkeypatch.setitem(sys.modules, "no_such_module", None)
    monkeypatch.setattr(toolchain, "_MODULES", {"torch": "json", "torch-npu": "no_such_module"})
    assert toolchain.missing(5, attention=False)[-1:] == ["torch-npu (make .venv/.test)"]
    assert "torch (make .venv/.test)" not in toolchain.missing(5, attention=False)


def test_all_links_are_left_out_where_there_is_no_compiler(machine):
    machine.difference_update(ascend_links.COMPILERS)
    assert list(left_out()) == LINKS
    assert all("needs a C++ compiler" in reason for reason in left_out().values())


def test_no_link_is_left_out_where_all_are_required(machine, monkeypatch):
    machine.clear()
    assert list(left_out()) == LINKS
    monkeypatch.setenv("UPWELL_REQUIRE_ASCEND", "1")
    assert left_out() == {}


def run(folder, modules, **environment):
    """What pytest says of modules, name -> source, with this suite's hooks."""
    for name, source in modules.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n\n\n{source}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UPWELL_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider", "-ra",
         "--continue-on-collection-errors", "-p", "tests.conftest", folder],
        cwd=REPOSITORY, env=kept | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_skips_are_failures_where_everything_is_required(tmp_path):
    modules = {**SKIPS, "good": GOOD}
    done = run(tmp_path, modules, UPWELL_REQUIRE_ASCEND="1", UPWELL_REQUIRE_NATIVE="1")
    assert done.returncode == 1, done.stdout
    assert "= 1 failed, 1 passed, 1 xfailed, 4 errors in " in done.stdout
    assert done.stdout.count("\nnothing may be skipped here, but this was: ") == len(SKIPS)
    assert done.stdout.count("not today\n") >= len(SKIPS)


@pytest.mark.parametrize("required", ["UPWELL_REQUIRE_ASCEND", "UPWELL_REQUIRE_NATIVE"])
def test_skips_are_skips_elsewhere(tmp_path, required):
    done = run(tmp_path, {**SKIPS, "good": GOOD}, **{required: "1"})
    assert done.returncode == 0, done.stdout
    assert "= 1 passed, 5 skipped, 1 xfailed in " in done.stdout
