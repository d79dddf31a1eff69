"""Whether the attention kernel compiles on a host: what is tried for that, and what is said of how it ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kernels.ascend.machine import Ran
from kernels.ascend.probe import COMPILE_S, Verdict
from tests.support.ascend_machine import COMPILED, findings, stops, stub


def test_a_triton_that_cannot_be_imported(host):
    host.answers["import triton"] = Ran(1, "", "ImportError: no libtriton")
    finding = findings(host)["kernel"]
    assert (finding.verdict, finding.detail) == (
        Verdict.WRONG,
        "import triton: ImportError: no libtriton (ended with exit code 1)",
    )
    assert stops(host) == ["kernel"]


def test_the_kernel_is_compiled_in_a_process_of_its_own_and_not_taken_from_a_cache(host):
    host.answers["compile_check"] = COMPILED
    finding = findings(host)["kernel"]
    assert finding.verdict is Verdict.OK
    assert finding.found == "bf16, 32 heads on 8 of 128: decoding in 31.2 s, prompts in 40.0 s"
    (asked,) = [entry for entry in host.asked if "compile_check" in entry[0][-1]]
    assert asked[0][:2] == (sys.executable, "-P")
    assert asked[1]["TRITON_ALWAYS_COMPILE"] == "1"
    assert asked[1]["PATH"] == host.environment["PATH"]
    assert asked[2] == COMPILE_S


@pytest.mark.parametrize(
    ("ran", "verdict", "detail"),
    [
        (
            Ran(1, "", "a.mlir:3:1: error: ub overflow, requires 4730880 bits\nINFO: the cache is in /root"),
            Verdict.WRONG,
            "ub overflow, requires 4730880 bits",
        ),
        (
            Ran(1, "", "[ConvertLinalgRToBinary] encounters error:\nASCEND_HOME_PATH is not set\n\n[INFO]: /root"),
            Verdict.WRONG,
            "ASCEND_HOME_PATH is not set",
        ),
        (Ran(1, "", "call failed, error code is 507033\n"), Verdict.WRONG, "507033: The device could not be opened."),
        (Ran(-11), Verdict.WRONG, "ended by signal 11"),
        (Ran(0, "nothing\n"), Verdict.WRONG, "nothing (ended with exit code 0)"),
        (Ran(None, reason="no answer within 600 s"), Verdict.UNKNOWN, "not known: no answer within 600 s"),
    ],
)
def test_a_kernel_that_does_not_compile(host, ran, verdict, detail):
    host.answers["compile_check"] = ran
    finding = findings(host)["kernel"]
    assert finding.verdict is verdict
    assert finding.detail.startswith(detail)
    assert ("kernel" in stops(host)) == (verdict is Verdict.WRONG)


def test_nothing_is_compiled_without_torch_npu_or_past_stubs(host):
    host.packages["torch-npu"] = None
    assert findings(host)["kernel"].detail == "not tried: torch-npu is not installed"
    host.packages["torch-npu"] = "2.7.1"
    host.environment["LD_LIBRARY_PATH"] = str(stub(host.root / "stubs" / "libascendcl.so").parent)
    assert findings(host)["kernel"].detail == "not tried: stub libraries are in the way"
    assert not any("compile_check" in command[-1] for command, _, _ in host.asked)


def test_this_machine_has_no_chip_to_compile_for():
    program = "from kernels.ascend.launch import compile_check; compile_check()"
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BackendUnavailable: torch_npu" in done.stderr
