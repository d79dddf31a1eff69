"""``upwell doctor``: the command as a process on this machine, and what it shows of machines made up of files."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.types import EngineFailed, Outbound
from engine.wire import FrameReader, encode_frame
from kernels.ascend.errors import ERRORS
from kernels.ascend.machine import Ran
from kernels.ascend.probe import diagnose
from kernels.ascend.stubs_refused import MARKER
from server.doctor import exit_code, facts, headline, named_error, show
from tests.support.ascend_machine import FakeHost

UPWELL = str(Path(sys.executable).parent / "upwell")
NO_NPU_HERE = not any(re.fullmatch(r"davinci\d+", name) for name in os.listdir("/dev"))


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


def upwell(*arguments, **environment):
    done = subprocess.run(
        [UPWELL, *arguments],
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


def shown(host, width=80):
    out = io.StringIO()
    diagnosis = diagnose(host.machine())
    show(diagnosis, Console(file=out, width=width, highlight=False))
    return out.getvalue(), exit_code(diagnosis)


@pytest.fixture(scope="module")
def output():
    assert NO_NPU_HERE, "these tests are of a machine without an NPU"
    done = upwell("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_without_an_npu_it_says_so_in_the_first_line_and_exits_0(output):
    assert output.startswith("No Ascend NPU here: ")
    assert "serves on the CPU" in output.splitlines()[-1]


def test_all_that_is_asked_for_is_there(output):
    names = ("host", "driver", "firmware", "CANN", "torch", "torch-npu", "triton-ascend", "chips", "kernel")
    for name in names:
        assert re.search(rf"^  {name} ", output, re.MULTILINE), name
    assert "not tried" in output
    for versions in (("3.2.0", "8.5.0"), ("2.10.0", "2.10.0.post4", "3.2.2", "9.1.0"), ("2.13.0", "2.13.0", "3.2.0")):
        assert re.search(r"^  \S.*" + r"\s+".join(map(re.escape, versions)), output, re.MULTILINE), versions
    for error in ERRORS:
        assert f"\n  {error.code} " in output


def test_lines_fit_80_columns_and_end_where_they_end(output):
    assert max(map(len, output.splitlines())) <= 80
    assert not re.search(r" $", output, re.MULTILINE)
    assert "\x1b" not in output


def test_a_word_is_broken_nowhere(output):
    """Whatever is wrapped is wrapped between words: each word of the table of codes stands in the output."""
    words = set(output.split())
    for error in ERRORS:
        assert set(error.cause.split()) <= words, error


def test_wide_terminals_get_wide_tables():
    assert max(map(len, upwell("doctor", COLUMNS="160").stdout.splitlines())) > 90


def test_json_says_the_same():
    said = json.loads(upwell("doctor", "--json").stdout)
    assert said["npu"] is False
    assert said["stops"] == said["chips"] == said["device_nodes"] == []
    findings = {finding["name"]: finding for finding in said["findings"]}
    assert findings["driver"]["verdict"] == "missing"
    assert len(said["version_sets"]) == 3


@pytest.mark.parametrize("words", [["507015"], ["RuntimeError:", "error code is 507015 [Error]"]])
def test_one_code_is_explained(words):
    done = upwell("doctor", *words)
    assert done.returncode == 0
    assert done.stdout.startswith("507015  ACL_ERROR_RT_AICORE_EXCEPTION\n")
    assert "A kernel faulted" in done.stdout
    assert "ASCEND_LAUNCH_BLOCKING" in done.stdout


def test_one_code_as_json():
    said = json.loads(upwell("doctor", "ei0006", "--json").stdout)
    assert (said["code"], said["tells"]) == ("EI0006", "cause")
    assert json.loads(upwell("doctor", "--json", "--", "-8005").stdout)["code"] == "-8005"


def test_what_is_no_code_is_an_error_in_one_line():
    done = upwell("doctor", "[bold]nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: there is no Ascend error code known here in '[bold]nonsense'; `upwell doctor` lists them.\n"
    )


def test_an_unknown_code_of_a_known_kind():
    with pytest.raises(ConfigError, match=r"507999 is not in the table; .* inside the software or on the device"):
        named_error(" 507999 ")


def test_a_reader_that_leaves_is_no_trouble():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        done = subprocess.run([UPWELL, "doctor"], stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_healthy_machine(host):
    text, code = shown(host)
    assert text.startswith("2 Ascend NPUs here: Ascend910B3.\n")
    assert "60.0 GiB" in text
    assert "Nothing that was looked at stops serving on the NPU." in text.splitlines()[-1]
    assert code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda host: host.packages.update({"torch": "2.13.0"}), ("torch-npu", "wrong", "pip install torch==2.7.1")),
        (
            lambda host: host.environment.update(ASCEND_HOME_PATH="/nowhere"),
            ("CANN", "missing", "/nowhere, which is not"),
        ),
        (
            lambda host: host.write("usr/local/Ascend/cann/version.cfg", "toolkit_running_version=[1:8.1.RC1]"),
            ("CANN", "wrong", "older than triton-ascend's kernels need"),
        ),
        (
            lambda host: host.write("usr/local/Ascend/driver/version.info", b"\xff[red]\0"),
            ("driver", "missing", "no version"),
        ),
        (
            lambda host: host.packages.pop("triton-ascend"),
            ("triton-ascend", "missing", "pip install triton-ascend==3.2.0"),
        ),
    ],
    ids=["mismatched torch pair", "missing CANN", "old CANN", "garbage in a file", "no triton"],
)
def test_an_npu_that_cannot_be_served_on(host, change, words):
    host.answers["npu-smi"] = Ran(1)
    change(host)
    text, code = shown(host)
    name, verdict, remark = words
    assert re.search(rf"^  {re.escape(name)} .*{verdict}", text, re.MULTILINE)
    assert remark in " ".join(text.split())
    assert text.splitlines()[-1].startswith("Not ready to serve on the NPU: ")
    assert name in text.splitlines()[-1]
    assert code == 1


def test_text_of_the_machine_is_no_markup(host):
    host.answers["torch_npu"] = Ran(1, "", "[/red] [bold]ImportError")
    assert "[/red] [bold]ImportError" in shown(host, width=200)[0]
    folder = host.write("[dim]/libascendcl.so", MARKER).parent
    host.environment["LD_LIBRARY_PATH"] = str(folder)
    assert shown(host, width=500)[0].count(f"{folder}/libascendcl.so") == 2


def test_facts_are_plain_data(host):
    said = json.loads(json.dumps(facts(diagnose(host.machine()))))
    assert said["npu"] is True
    assert said["stops"] == []
    assert said["chips"][0]["free_hbm_bytes"] == 60 << 30
    assert said["findings"][0] | {"found": ""} == {
        "name": "host",
        "verdict": "ok",
        "found": "",
        "wanted": "Linux aarch64 or x86_64, glibc 2.28+",
        "detail": "",
        "remedy": "",
        "required": True,
        "everywhere": False,
    }


def test_one_npu_that_tells_nothing(host):
    host.remove("dev/davinci1")
    host.answers = {}
    assert headline(diagnose(host.machine())) == "1 Ascend NPU here."


@pytest.fixture
def stubs(tmp_path):
    path = tmp_path / "stubs" / "libascendcl.so"
    path.parent.mkdir()
    path.write_bytes(b"\x7fELF" + MARKER)
    return path


@pytest.mark.parametrize("device", ["auto", "cpu", "reference", "ascend"])
def test_serve_refuses_stubs_by_name_on_any_device(stubs, device):
    done = upwell("serve", "--device", device, "--port", "0", LD_LIBRARY_PATH=str(stubs.parent))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {stubs} is a stub of the Ascend driver for tests")
    assert done.stderr.count("\n") == 1


def test_the_doctor_reports_stubs(stubs):
    done = upwell("doctor", LD_LIBRARY_PATH=str(stubs.parent))
    assert done.returncode == 1
    assert "Not ready to serve on any device: driver libraries" in done.stdout


def test_other_commands_do_not_mind_stubs(stubs):
    assert upwell("--version", LD_LIBRARY_PATH=str(stubs.parent)).returncode == 0


def test_an_engine_refuses_stubs_too(stubs):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode_frame(EngineConfig(model_path="/nowhere")))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.process", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "LD_LIBRARY_PATH": str(stubs.parent)},
        )
        theirs.close()
        data = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        assert process.wait(60) == 2
    (frame,) = FrameReader().feed(data)
    failure = msgspec.msgpack.decode(frame, type=Outbound)
    assert isinstance(failure, EngineFailed)
    assert failure.expected
    assert failure.message.startswith(f"{stubs} is a stub")
