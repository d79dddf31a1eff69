"""The documentation says what the code does: the table of files, the flags, the commands and examples of the README."""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import add_serve_flags

ROOT = Path(__file__).parents[2]
PROOF = ROOT / "tools" / "prove_ascend.sh"
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| `([^`]+\.py)` \| `(\w+)` \|$", ARCHITECTURE, re.MULTILINE)


def defined_in(path):
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif hasattr(node, "name"):
            names.add(node.name)
    return names


@pytest.mark.parametrize(("behaviour", "file", "name"), ROWS, ids=[row[1] for row in ROWS])
def test_each_behaviour_is_where_the_table_says(behaviour, file, name):
    assert name in defined_in(ROOT / file)


def test_every_module_is_in_the_table():
    modules = {
        str(path.relative_to(ROOT))
        for package in ("server", "engine", "kernels")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules == {file for _, file, _ in ROWS}


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_flags_is_the_command_lines():
    serve = argparse.ArgumentParser(add_help=False)
    add_serve_flags(serve)
    options = {action.option_strings[0]: action for action in serve._actions if action.option_strings}
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| (.+?) \|", README, re.MULTILINE))
    assert set(rows) == set(options)
    for flag, shown in rows.items():
        default = options[flag].default
        if isinstance(default, bool):
            assert shown == ("on" if default else "off")
        elif isinstance(default, (str, int, float)):
            assert shown == f"`{default:g}`" if isinstance(default, float) else shown == f"`{default}`"


def test_ci_runs_the_readmes_test_command():
    commands = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in commands
    assert "make test" in ci
    assert ci.index("make lint") < ci.index("make test")


def test_ci_tries_every_kernel_and_every_mutant():
    """All that is left out of ``make test`` under tests/kernels."""
    assert "bash tools/prove_ascend.sh --if-changed" in (ROOT / ".ci" / "run").read_text().splitlines()
    (soak,) = (line for line in PROOF.read_text().splitlines() if " -m soak " in line)
    names = re.search(r"tests/kernels/test_ascend_\{([\w,]+)\}\.py$", soak)[1].split(",")
    marked = [path for path in (ROOT / "tests" / "kernels").glob("*.py") if "@pytest.mark.soak" in path.read_text()]
    assert sorted(f"test_ascend_{name}.py" for name in names) == sorted(path.name for path in marked)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git: .ci/run has it")
def test_a_proof_is_taken_again_where_anything_that_it_runs_has_changed():
    """All modules of ours that it imports are among the files that it knows a proof by."""
    listed = re.search(r"git ls-files -z ((?:.|\\\n)*?) \| xargs", PROOF.read_text())[1].replace("\\\n", "")
    command = ["bash", "-c", f"git ls-files {listed}"]
    known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"kernels/ops.py", "docs/ascend-kernel.md", "tools/prove_ascend.sh"} <= set(known.stdout.split())
    imported = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(imported.stdout.split())
    assert "tools/ascend/hivm/mutate.py" in modules
    assert {path for path in modules if not path.endswith("__init__.py")} <= set(known.stdout.split())


IMPORTS = """
import pathlib, sys
import tests.kernels.test_ascend_mutants, tests.kernels.test_ascend_compile, tools.ascend.report
for module in list(sys.modules.values()):
    path = pathlib.Path(getattr(module, "__file__", None) or "/")
    if path.is_relative_to(pathlib.Path.cwd()) and ".venv" not in path.parts:
        print(path.relative_to(pathlib.Path.cwd()))
"""


def test_make_says_what_is_wrong_with_an_old_python(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "serve", f"PYTHON={fake}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11" in done.stdout + done.stderr
