"""What is found on a host: healthy, without an NPU, incomplete, or full of rubbish; its nodes and chips."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kernels.ascend.chips import chips_of_npu_smi, npu_smi_version
from kernels.ascend.machine import Machine, Ran
from kernels.ascend.probe import Verdict, diagnose
from tests.support.ascend_machine import COMPILED, GIB, NPU_SMI, findings, stops

TORCH_NPU_FAILS = Ran(1, "", "Traceback\nImportError: libhccl.so: cannot open shared object file\n")


def test_a_healthy_host_has_nothing_to_mend(host):
    host.answers["compile_check"] = COMPILED
    diagnosis = diagnose(host.machine())
    assert diagnosis.nodes == ("davinci0", "davinci1")
    assert diagnosis.stops == ()
    odd = {finding.name: finding.verdict for finding in diagnosis.findings if finding.verdict is not Verdict.OK}
    assert odd == {}
    assert [(chip.name, chip.free_hbm_bytes // GIB, chip.total_hbm_bytes // GIB) for chip in diagnosis.chips] == [
        ("Ascend910B3", 60, 64),
        ("Ascend910B3", 61, 64),
    ]


def test_torch_npu_is_asked_in_a_process_without_autoload(host):
    diagnose(host.machine())
    (asked,) = [entry for entry in host.asked if "torch_npu" in entry[0][-1]]
    assert asked[0][0] == sys.executable
    assert asked[1]["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"
    assert asked[1]["ASCEND_HOME_PATH"] == host.environment["ASCEND_HOME_PATH"]
    assert asked[2] > 0


def test_nothing_of_torch_is_imported_here():
    program = "import sys, kernels.ascend.probe as probe; print(sys.modules.keys() & {'torch', 'torch_npu', 'numpy'})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_host_without_npu_asks_no_device(host):
    for node in ("davinci0", "davinci1"):
        host.remove(f"dev/{node}")
    diagnosis = diagnose(host.machine())
    assert diagnosis.nodes == ()
    assert diagnosis.stops == ()
    assert diagnosis.chips == ()
    assert host.asked == []
    found = findings(host)
    assert found["device nodes"].verdict is Verdict.MISSING
    assert found["kernel"].detail == "not tried: there is no NPU here"


def test_an_empty_file_system_is_no_exception(tmp_path):
    machine = Machine({}, tmp_path / "nowhere", lambda *_: Ran(None), lambda _: None, maps="")
    diagnosis = diagnose(machine)
    missing = {finding.name for finding in diagnosis.findings if finding.verdict is Verdict.MISSING}
    assert missing >= {"device nodes", "driver", "firmware", "CANN", "torch", "torch-npu", "triton-ascend", "hivmc"}
    assert all(finding.detail for finding in diagnosis.findings if finding.name in missing - {"chips"})


@pytest.mark.parametrize(
    "rubbish", [b"", b"\x00\xff\xfe" * 99, b"=" * 70_000, b"Version=1." + b"9" * 99, b"Version=[bold]1.0"]
)
def test_rubbish_in_files_is_told(host, rubbish):
    for name in ("driver/version.info", "firmware/version.info", "cann/version.cfg"):
        host.write(f"usr/local/Ascend/{name}", rubbish)
    host.answers = {"torch_npu": Ran(0, "chips {]"), "npu-smi": Ran(0, "|||\n" * 9), "import triton": Ran(0)}
    found = findings(host)
    assert "holds no version" in found["driver"].detail
    assert "holds no version" in found["firmware"].detail
    assert (found["CANN"].verdict, found["CANN"].found) == (Verdict.UNKNOWN, "")
    assert "said nothing about chips" in found["chips"].detail
    assert set(stops(host)) == {"driver", "chips"}


def test_a_folder_in_a_files_place_is_told(host):
    host.remove("usr/local/Ascend/driver/version.info")
    (host.root / "usr/local/Ascend/driver/version.info").mkdir()
    host.answers["npu-smi"] = Ran(1)
    assert "cannot be read: Is a directory" in findings(host)["driver"].detail


def test_a_container_without_the_nodes_beside(host):
    host.remove("dev/devmm_svm")
    finding = findings(host)["device nodes"]
    assert finding.verdict is Verdict.WRONG
    assert finding.remedy == "Give the container --device /dev/devmm_svm."


def test_nodes_that_this_user_may_not_open(host, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("davinci1"))
    finding = findings(host)["device nodes"]
    assert (finding.verdict, finding.detail) == (Verdict.WRONG, "davinci1 may not be opened")


@pytest.mark.parametrize(
    ("ran", "reason"),
    [
        (TORCH_NPU_FAILS, "libhccl.so: cannot open shared object file (ended with exit code 1)"),
        (Ran(-6), "ended by signal 6"),
        (Ran(None, reason="no answer within 90 s"), "no answer within 90 s"),
        (Ran(1, "", "SetDevice, error code is 507033\n[Error]"), "507033: The device could not be opened."),
        (Ran(0, "chips []"), "finds no device"),
    ],
)
def test_torch_npu_that_fails_is_told_in_one_line_and_npu_smi_asked(host, ran, reason):
    host.answers["torch_npu"] = ran
    diagnosis = diagnose(host.machine())
    assert reason in diagnosis.chips_note
    assert "\n" not in diagnosis.chips_note
    assert [(chip.name, chip.free_hbm_bytes // GIB, chip.health) for chip in diagnosis.chips] == [
        ("910B3", 60, "OK"),
        ("910B3", 61, "OK"),
    ]
    assert [finding.name for finding in diagnosis.stops] == ["chips"]


def test_npu_smi_is_read_without_its_processes():
    assert [(chip.index, chip.total_hbm_bytes // GIB) for chip in chips_of_npu_smi(NPU_SMI)] == [(0, 64), (1, 64)]
    assert npu_smi_version(NPU_SMI) == "25.5.0"
    assert chips_of_npu_smi("dcmi module initialize failed. ret is -8005") == ()


def test_a_chip_that_is_not_well(host):
    host.answers |= {"torch_npu": TORCH_NPU_FAILS, "npu-smi": Ran(0, NPU_SMI.replace("OK    ", "Alarm ", 1))}
    assert "number 0 Alarm" in findings(host)["chips"].detail


def test_another_chip_is_unknown(host):
    host.answers["torch_npu"] = Ran(0, 'chips [[0, "Ascend910_9392", 1, 2]]')
    assert findings(host)["chips"].verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"system": "Darwin"}, "host"),
        ({"arch": "riscv64"}, "host"),
        ({"libc": ("glibc", "2.17")}, "host"),
        ({"python": "3.12.1"}, "Python"),
    ],
)
def test_hosts_that_will_not_do(host, fields, name):
    host.fields |= fields
    assert stops(host) == [name]


def test_compilers_that_are_missing(host):
    host.remove("bin/hivmc")
    found = findings(host)
    assert found["hivmc"].verdict is Verdict.MISSING
    assert found["kernel"].detail == "not tried: no hivmc on PATH"
    host.write("elsewhere/hivmc", "").chmod(0o755)
    host.environment["TRITON_NPU_COMPILER_PATH"] = str(host.root / "elsewhere")
    assert findings(host)["hivmc"].verdict is Verdict.OK
