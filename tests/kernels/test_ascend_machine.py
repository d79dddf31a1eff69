"""What a host is asked by: commands that end, hang or cannot begin, and installed distributions."""

from __future__ import annotations

import os
import time

import pytest

from kernels.ascend.machine import Ran, installed_version, run_command
from tests.support.processes import are_gone


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    began_s = time.monotonic()
    ran = run_command(("/bin/sh", "-c", f"/bin/sleep 300 & echo $! > {tmp_path}/child; wait"), os.environ, 0.5)
    assert (ran.code, ran.reason) == (None, "no answer within 0.5 s")
    assert time.monotonic() - began_s < 4, "the child keeps the pipes open: its end was waited for"
    assert are_gone([int((tmp_path / "child").read_text())], 5)


def test_commands_that_end_and_that_cannot_begin():
    assert run_command(("/bin/sh", "-c", "echo so far; exec /bin/sleep 300"), os.environ, 0.5).stdout == "so far\n"
    assert run_command(("/bin/sh", "-c", "echo out; echo err >&2; exit 3"), os.environ, 9) == Ran(3, "out\n", "err\n")
    ran = run_command(("/nowhere/npu-smi", "info"), {}, 9)
    assert ran.code is None
    assert "cannot be run" in ran.reason
    assert run_command(("/bin/sh", "-c", r"printf '\377'"), os.environ, 9).stdout == "\ufffd"


def test_installed_versions():
    assert installed_version("pytest") == pytest.__version__
    assert installed_version("no-such-distribution") is None
