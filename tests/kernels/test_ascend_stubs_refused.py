"""Stub driver libraries: found wherever they would be loaded from, and refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.ascend import stubs_refused
from kernels.ascend.probe import diagnose
from kernels.ascend.stubs_refused import LIBRARIES, refuse_stubs, stub_library_on_path
from kernels.ops import BackendUnavailable
from tests.support.ascend_machine import stops, stub


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
