"""Whether the attention kernel compiles on a host: what is tried for that, and what is said of how it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.ascend.machine import Ran
from kernels.ascend.probe import COMPILE_PROGRAM, COMPILE_S, Verdict
from tests.support.ascend_links import link
from tests.support.ascend_machine import BF16, COMPILED, INT8, findings, stops, stub
from tools.ascend.bishengir import FLAGS


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
    assert finding.found == f"{BF16}; {INT8}"
    (asked,) = [entry for entry in host.asked if "compile_check" in entry[0][-1]]
    assert asked[0][:2] == (sys.executable, "-P")
    assert asked[1]["TRITON_ALWAYS_COMPILE"] == "1"
    assert asked[1]["PATH"] == host.environment["PATH"]
    assert asked[2] == COMPILE_S
    assert stops(host) == []


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


@pytest.mark.parametrize(
    ("ran", "verdict", "detail"),
    [
        (Ran(1, f"compiled {BF16}\n", "a.mlir:9:1: error: ub overflow"), Verdict.WRONG, "ub overflow"),
        (Ran(-11, f"compiled {BF16}\n"), Verdict.WRONG, "ended by signal 11"),
        (Ran(None, f"compiled {BF16}\n", reason="no answer within 600 s"), Verdict.UNKNOWN, "not known: no answer"),
    ],
)
def test_a_cache_of_int8_that_does_not_compile_stops_no_server(host, ran, verdict, detail):
    host.answers["compile_check"] = ran
    finding = findings(host)["kernel"]
    assert (finding.verdict, finding.found) == (verdict, BF16)
    assert finding.detail.startswith(detail)
    assert ("leave --kv-cache-dtype out" in finding.remedy) == (verdict is Verdict.WRONG)
    assert stops(host) == []


def test_nothing_is_compiled_without_torch_npu_or_past_stubs(host):
    host.packages["torch-npu"] = None
    assert findings(host)["kernel"].detail == "not tried: torch-npu is not installed"
    host.packages["torch-npu"] = "2.7.1"
    host.environment["LD_LIBRARY_PATH"] = str(stub(host.root / "stubs" / "libascendcl.so").parent)
    assert findings(host)["kernel"].detail == "not tried: stub libraries are in the way"
    assert not any("compile_check" in command[-1] for command, _, _ in host.asked)


def test_this_machine_has_no_chip_to_compile_for():
    program = "from kernels.ascend.launch import compile_check; compile_check(print)"
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "BackendUnavailable: torch_npu" in done.stderr


COMPILER = """#!/bin/sh
echo "$@" >> "$FAKE_LOG"
case "$*" in *--help*) exit 0;; esac
cat "$1" >> "$FAKE_LOG.mlir"
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
echo binary > "$out.o"
echo binary > "${out}_reloc.o"
"""
COMPILE = (
    """
import sys
from types import SimpleNamespace
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from kernels.ascend import launch

backends["ascend"].compiler.add_stages.__globals__["NPUUtils"] = lambda: SimpleNamespace(get_arch=lambda: "Ascend910B3")
driver.set_active(SimpleNamespace(
    get_current_device=lambda: 0, get_current_stream=lambda device: 0,
    get_current_target=lambda: GPUTarget("npu", "Ascend910B3", 0),
))
launch.npu_platform = lambda: SimpleNamespace(cube_cores=20, vector_cores=40)
"""
    + COMPILE_PROGRAM
)
"""What ``upwell doctor`` does on a chip, with a driver that only tells the chip's name."""
PASSES = ("paged_attention_split", "paged_attention_combine")
SECONDS = r"\d+\.\d s"


def compiled_by_a_fake(tmp_path, compiler=COMPILER):
    """How the doctor's program ended with a compiler in the place of CANN's, and the kernels that this was given."""
    program = tmp_path / "bin" / "bishengir-compile"
    program.parent.mkdir()
    program.write_text(compiler)
    program.chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "FAKE_LOG": str(log), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "TRITON_ALWAYS_COMPILE": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache"), "ASCEND_HOME_PATH": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILE], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    calls = [line.split() for line in log.read_text().splitlines() if "kernel" in line and "--target" in line]
    return done, calls, Path(f"{log}.mlir").read_text()


@link(5)
def test_the_doctor_compiles_as_a_launch_would(tmp_path):
    done, calls, modules = compiled_by_a_fake(tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^compiled (.*)$", re.sub(SECONDS, "1 s", done.stdout), re.MULTILINE) == [
        "bf16, 32 heads on 8 of 128: decoding in 1 s, prompts in 1 s",
        "a cache of int8: writing in 1 s, decoding in 1 s, prompts in 1 s",
    ]
    kernels = re.findall(r"func\.func @(\w+)", modules)
    assert kernels == [*PASSES * 2, "store_keys_values", "split_queries", *PASSES * 2]
    assert len(calls) == len(kernels)
    assert all("--target=Ascend910B3" in words for words in calls)
    assert [set(FLAGS) <= set(words) for words in calls] == [name == PASSES[0] for name in kernels]
    assert "hivm.hir.sync_block_set" in modules


@link(5)
def test_what_compiles_is_told_before_what_does_not(tmp_path):
    refusing = COMPILER.replace(
        "cat ", "grep -q @split_queries \"$1\" && { echo 'error: ub overflow' >&2; exit 1; }\ncat "
    )
    done, _, _ = compiled_by_a_fake(tmp_path, refusing)
    assert done.returncode == 1
    assert "ub overflow" in done.stderr
    (line,) = re.findall(r"^compiled (.*)$", done.stdout, re.MULTILINE)
    assert line.startswith("bf16, 32 heads on 8 of 128: decoding in ")
