"""What is found on a host: healthy, mismatched, incomplete, or full of rubbish; and stub libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernels.ascend import stubs_refused, versions
from kernels.ascend.chips import chips_of_npu_smi, npu_smi_version
from kernels.ascend.machine import Machine, Ran, installed_version, run_command
from kernels.ascend.probe import COMPILE_S, Verdict, diagnose
from kernels.ascend.stubs_refused import LIBRARIES, MARKER, refuse_stubs, stub_library_on_path
from kernels.ops import BackendUnavailable
from tests.support.ascend_machine import DRIVER, GIB, NPU_SMI, FakeHost

COMPILED = Ran(0, "[WARNING] of triton\ncompiled bf16, 32 heads on 8 of 128: decoding in 31.2 s, prompts in 40.0 s\n")
TORCH_NPU_FAILS = Ran(1, "", "Traceback\nImportError: libhccl.so: cannot open shared object file\n")


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


def findings(host):
    return {finding.name: finding for finding in diagnose(host.machine()).findings}


def stops(host):
    return [finding.name for finding in diagnose(host.machine()).stops]


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


def test_versions_are_those_of_the_files(host):
    found = findings(host)
    assert found["driver"].found == "25.5.0"
    assert found["firmware"].found == "7.8.0.5.216"
    assert found["CANN"].found == "8.5.0"
    assert found["bishengir-compile"].found == str(host.root / "bin" / "bishengir-compile")


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


def test_a_later_triton_takes_a_later_python(host):
    host.fields["python"] = "3.13.0"
    host.packages["triton-ascend"] = "3.2.1"
    assert findings(host)["Python"].verdict is Verdict.OK


def test_compilers_that_are_missing(host):
    host.remove("bin/hivmc")
    found = findings(host)
    assert found["hivmc"].verdict is Verdict.MISSING
    assert found["kernel"].detail == "not tried: no hivmc on PATH"
    host.write("elsewhere/hivmc", "").chmod(0o755)
    host.environment["TRITON_NPU_COMPILER_PATH"] = str(host.root / "elsewhere")
    assert findings(host)["hivmc"].verdict is Verdict.OK


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


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    began_s = time.monotonic()
    ran = run_command(("/bin/sh", "-c", f"/bin/sleep 300 & echo $! > {tmp_path}/child; wait"), os.environ, 0.5)
    assert (ran.code, ran.reason) == (None, "no answer within 0.5 s")
    assert time.monotonic() - began_s < 4, "the child keeps the pipes open: its end was waited for"
    assert is_gone(int((tmp_path / "child").read_text()))


def is_gone(pid):
    """Whether a process ends, or is a zombie, within some seconds."""
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_commands_that_end_and_that_cannot_begin():
    assert run_command(("/bin/sh", "-c", "echo out; echo err >&2; exit 3"), os.environ, 9) == Ran(3, "out\n", "err\n")
    ran = run_command(("/nowhere/npu-smi", "info"), {}, 9)
    assert ran.code is None
    assert "cannot be run" in ran.reason
    assert run_command(("/bin/sh", "-c", r"printf '\377'"), os.environ, 9).stdout == "\ufffd"


def test_installed_versions():
    assert installed_version("pytest") == pytest.__version__
    assert installed_version("no-such-distribution") is None


def stub(path, marker=MARKER):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF" + bytes(5000) + marker + bytes(10))
    return path


@pytest.mark.parametrize("name", LIBRARIES)
def test_stubs_in_ld_library_path_are_found(tmp_path, name):
    path = stub(tmp_path / "b" / name)
    stub(tmp_path / "a" / name, b"the real one")
    assert stub_library_on_path({"LD_LIBRARY_PATH": f"{tmp_path}/none:{tmp_path}/a;{tmp_path}/b"}, "") == path


def test_stubs_that_are_preloaded_or_mapped_are_found(tmp_path):
    path = stub(tmp_path / "any name.so")
    assert (
        stub_library_on_path({"LD_PRELOAD": "/nowhere.so " + str(stub(tmp_path / "pre.so"))}, "") == tmp_path / "pre.so"
    )
    by_name = {"LD_PRELOAD": "pre.so", "LD_LIBRARY_PATH": str(tmp_path)}
    assert stub_library_on_path(by_name, "") == tmp_path / "pre.so"
    line = "7f00-7f01 r-xp 00000000 08:01 42                         "
    mapped = stub(tmp_path / "with space" / "libascendcl.so.1")
    assert stub_library_on_path({}, f"{line}{path}\n{line}{mapped}\n{line}[heap]\n{line}\n") == mapped
    assert stub_library_on_path({}, f"{line}{path}\n") is None


def test_what_is_no_stub_is_passed_over(tmp_path, monkeypatch):
    stub(tmp_path / "libother.so")
    stub(tmp_path / "libhccl.so", b"upwell_stub")
    (tmp_path / "libgraph.so").write_bytes(b"")
    (tmp_path / "libatb.so").mkdir()
    (tmp_path / "libge_runner.so").symlink_to("nowhere")
    os.mkfifo(tmp_path / "libacl_op_compiler.so")
    assert stub_library_on_path({"LD_LIBRARY_PATH": str(tmp_path), "LD_PRELOAD": "\0 libx.so /nowhere/x"}, "") is None
    monkeypatch.chdir(tmp_path)
    assert stub_library_on_path({"LD_LIBRARY_PATH": ""}, "") is None
    path = stub(tmp_path / "libascendcl.so")
    assert stub_library_on_path({"LD_LIBRARY_PATH": ":/nowhere"}, "").resolve() == path
    assert stub_library_on_path({}, "") is None


def in_a_fresh_process(check, folder):
    """Other tests load stubs into theirs for good."""
    name = check.__name__
    program = f"from pathlib import Path; from {__name__} import {name}; {name}(Path({str(folder)!r}))"
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_process_is_free_of_stubs_and_says_so_by_its_maps(tmp_path):
    in_a_fresh_process(free_of_stubs, tmp_path)


def free_of_stubs(folder):
    refuse_stubs({})
    path = stub(folder / "libascendcl.so")
    maps = folder / "maps"
    maps.write_text(f"7f00-7f01 r-xp 00000000 08:01 42 {path}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stubs_refused, "_MAPS", maps)
        with pytest.raises(BackendUnavailable, match=r"libascendcl\.so is a stub .* LD_LIBRARY_PATH"):
            refuse_stubs({})
        patch.setattr(stubs_refused, "_MAPS", folder / "nowhere")
        refuse_stubs({})
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        with pytest.raises(BackendUnavailable):
            refuse_stubs()


def test_a_stub_that_is_loaded_is_known_by_its_symbol_when_its_file_is_gone(tmp_path):
    in_a_fresh_process(known_by_its_symbol, tmp_path)


def known_by_its_symbol(folder):
    maps = folder / "maps"
    maps.write_text("7f00-7f01 r-xp 00000000 08:01 42 /gone/libhccl.so (deleted)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stubs_refused, "_MAPS", maps)
        assert stub_library_on_path({}) is None
        patch.setattr(stubs_refused, "MARKER", b"Py_IsInitialized")
        assert stub_library_on_path({}) == Path("/gone/libhccl.so")
        maps.write_text("")
        assert stub_library_on_path({}) == Path("libascendcl.so")


def test_stubs_are_a_finding_and_torch_npu_is_not_asked(host):
    path = stub(host.root / "stubs" / "libascendcl.so")
    host.environment["LD_LIBRARY_PATH"] = str(path.parent)
    diagnosis = diagnose(host.machine())
    assert [finding.name for finding in diagnosis.stops] == ["driver libraries", "chips"]
    assert not any("torch_npu" in command[-1] for command, _, _ in host.asked)
    for node in ("davinci0", "davinci1"):
        host.remove(f"dev/{node}")
    assert stops(host) == ["driver libraries"]
