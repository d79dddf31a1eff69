"""Versions that are found on a host: which files tell them, and which of them go together."""

from __future__ import annotations

import pytest

from kernels.ascend import versions
from kernels.ascend.probe import Verdict
from tests.support.ascend_machine import DRIVER, findings, stops


def test_versions_are_those_of_the_files(host):
    found = findings(host)
    assert found["driver"].found == "25.5.0"
    assert found["firmware"].found == "7.8.0.5.216"
    assert found["CANN"].found == "8.5.0"
    assert found["bishengir-compile"].found == str(host.root / "bin" / "bishengir-compile")


@pytest.mark.parametrize(
    ("torch", "npu", "verdict"),
    [
        ("2.7.1", "2.7.1.post2", Verdict.OK),
        ("2.13.0+cpu", "2.13.0", Verdict.OK),
        ("2.13.0", "2.10.0.post4", Verdict.WRONG),
        ("2.13.1", "2.13.0", Verdict.WRONG),
        ("2.13.0", None, Verdict.MISSING),
        (None, "2.13.0", Verdict.OK),
    ],
)
def test_torch_and_torch_npu_must_agree(host, torch, npu, verdict):
    host.packages |= {"torch": torch, "torch-npu": npu}
    finding = findings(host)["torch-npu"]
    assert finding.verdict is verdict
    assert ("torch-npu" in stops(host)) == (verdict in {Verdict.WRONG, Verdict.MISSING})
    if verdict is Verdict.WRONG:
        assert finding.remedy.startswith(f"pip install torch=={versions.release(npu)}")


def test_a_pair_of_no_known_set_is_not_called_wrong(host):
    host.packages |= {"torch": "2.9.0", "torch-npu": "2.9.0"}
    found = findings(host)
    assert found["torch"].verdict is Verdict.UNKNOWN
    assert found["torch-npu"].verdict is Verdict.OK
    assert stops(host) == []


def test_missing_cann(host):
    host.remove("usr/local/Ascend/cann/version.cfg")
    (host.root / "usr/local/Ascend/cann").rmdir()
    finding = findings(host)["CANN"]
    assert finding.verdict is Verdict.MISSING
    assert "/usr/local/Ascend/cann, which is not there" in finding.detail
    assert "8.5.0" in finding.remedy
    del host.environment["ASCEND_HOME_PATH"]
    assert "ASCEND_HOME_PATH is not set" in findings(host)["CANN"].detail
    assert "CANN" in stops(host)


def test_old_cann(host):
    host.write("usr/local/Ascend/cann/version.cfg", "toolkit_installed_version=[7.7.T20.0.B210:8.1.RC1]\n")
    finding = findings(host)["CANN"]
    assert (finding.found, finding.verdict, finding.wanted) == ("8.1.RC1", Verdict.WRONG, "8.5.0 (triton-ascend 3.2.0)")
    assert stops(host) == ["CANN"]


def test_newer_cann_is_unknown_and_wants_a_newer_triton(host):
    host.write("usr/local/Ascend/cann/version.cfg", "toolkit_running_version=[9.1.0.1:9.1.0]\n")
    found = findings(host)
    assert found["CANN"].verdict is found["triton-ascend"].verdict is Verdict.UNKNOWN
    assert found["triton-ascend"].wanted == "3.2.2"
    assert found["torch"].wanted == "2.10.0 or 2.13.0"


def test_cann_whose_environment_is_not_set(host):
    del host.environment["ASCEND_HOME_PATH"]
    finding = findings(host)["CANN"]
    assert (finding.found, finding.verdict) == ("8.5.0", Verdict.WRONG)
    assert finding.remedy == "source /usr/local/Ascend/cann/set_env.sh"


def test_cann_before_its_new_folder(host):
    host.environment["ASCEND_HOME_PATH"] = "/usr/local/Ascend/ascend-toolkit/latest"
    info = "package_name=Ascend-cann-toolkit\nversion=8.3.RC1\ninnerversion=V100R001C25SPC001B212\n"
    host.write("usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info", info)
    assert findings(host)["CANN"].found == "8.3.RC1"
    host.remove("bin/hivmc")
    assert findings(host)["hivmc"].remedy == "source /usr/local/Ascend/ascend-toolkit/set_env.sh"


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("version.cfg", "toolkit_installed_version=[7.0.0.5.242:7.0.RC1][7.3.0.1.231:8.0.RC2]", "8.0.RC2"),
        ("version.cfg", "toolkit_installed_version=none", None),
        ("x86_64-linux/ascend_toolkit_install.info", "version=8.5.0.alpha002", "8.5.0.alpha002"),
        ("compiler/version.info", "Version=8.2.0.0.201\nversion_dir=8.2.RC1", "8.2.RC1"),
        ("runtime/version.info", 'Version="9.0.0"', "9.0.0"),
        ("opp/version.info", "Version=7.6.0.1.220", None),
        ("opp/version.info", "Version=[red]", None),
    ],
)
def test_files_that_tell_canns_version(file, text, version):
    assert versions.cann_version(file, text) == version


@pytest.mark.parametrize(
    ("driver", "cann", "verdict"),
    [
        ("25.0.rc1.1", "8.5.0", Verdict.OK),
        ("24.1.rc3", "8.5.0", Verdict.WRONG),
        ("26.0.rc1", "8.5.0", Verdict.UNKNOWN),
        ("26.0.rc1", "8.5.2", Verdict.OK),
        ("25.0.rc1", "9.1.0", Verdict.WRONG),
        ("25.2.3", "9.1.0", Verdict.OK),
        ("25.5.0", "7.0.0", Verdict.UNKNOWN),
    ],
)
def test_the_driver_is_held_against_cann(host, driver, cann, verdict):
    host.write("usr/local/Ascend/driver/version.info", f"Version={driver}\n")
    host.write("usr/local/Ascend/cann/version.cfg", f"toolkit_running_version=[1:{cann}]\n")
    finding = findings(host)["driver"]
    assert (finding.found, finding.verdict) == (driver, verdict)
    assert ("driver" in stops(host)) == (verdict is Verdict.WRONG)


def test_a_container_learns_the_driver_from_npu_smi(host):
    host.remove("usr/local/Ascend/driver/version.info")
    host.remove("usr/local/Ascend/firmware/version.info")
    found = findings(host)
    assert (found["driver"].found, found["driver"].verdict) == ("25.5.0", Verdict.OK)
    assert found["firmware"].verdict is Verdict.MISSING
    assert stops(host) == []


def test_firmware_that_the_driver_does_not_take(host):
    host.write("usr/local/Ascend/driver/version.info", DRIVER.replace("[7.0.0,8.9.9]", "[7.0.0,7.2.99]"))
    finding = findings(host)["firmware"]
    assert (finding.verdict, finding.wanted) == (Verdict.WRONG, "7.0.0 to 7.2.99")
    assert "firmware" not in stops(host)


def test_a_later_triton_takes_a_later_python(host):
    host.fields["python"] = "3.13.0"
    host.packages["triton-ascend"] = "3.2.1"
    assert findings(host)["Python"].verdict is Verdict.OK
