"""torch_npu on stub driver libraries: imported, marked, cached, and refused where it cannot or should not be."""

import ctypes
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.ascend_links import link
from tools.ascend import stubs

pytestmark = link(5, attention=False)

IMPORT = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("error")
from tools.ascend.stubs import import_torch_npu, stubs_loaded
assert not stubs_loaded()
torch_npu = import_torch_npu(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
assert import_torch_npu() is torch_npu
assert stubs_loaded()
import torch
schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("npu::")]
assert torch.npu.is_available() is False
print(len(schemas))
"""


ON_DEMAND = """
import sys
from pathlib import Path
from tools.ascend.stubs import LoadedOnDemand, stubs_loaded
sys.meta_path.insert(0, LoadedOnDemand(Path(sys.argv[1])))
import torch
assert not stubs_loaded()
import torch_npu
assert stubs_loaded()
"""


def start(*arguments: Path, code: str = IMPORT) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    if code == IMPORT:
        environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def packages() -> tuple[Path, Path]:
    return tuple(Path(find_spec(name).origin).parent for name in ("torch", "torch_npu"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return stubs.build(tmp_path_factory.mktemp("stubs"), *packages())


def test_two_processes_at_once_build_one_folder_and_import_from_it(tmp_path):
    running = [start(tmp_path), start(tmp_path)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert int(out) > 200
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted(stubs.SONAMES)


def test_without_a_cache_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert not list(tmp_path.glob("upwell-npu-stubs-*"))


def test_whoever_imports_torch_npu_may_get_the_stubs(tmp_path):
    process = start(tmp_path, code=ON_DEMAND)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert list(tmp_path.iterdir())


def test_what_is_cached_needs_no_compiler(built, monkeypatch):
    monkeypatch.setattr(stubs.shutil, "which", lambda program: None)
    assert stubs.build(built.parent, *packages()) == built


@pytest.mark.parametrize("soname", stubs.SONAMES)
def test_every_stub_carries_the_marker(built, soname):
    assert stubs.MARKER == "upwell_stub_library"
    path = built / soname
    assert path.read_bytes().count(stubs.MARKER.encode()) >= 2  # the symbol's name and the string
    marker = (ctypes.c_char * len(stubs.MARKER)).in_dll(ctypes.CDLL(str(path)), stubs.MARKER)
    assert marker.value == stubs.MARKER.encode()


def test_the_driver_stub_answers_for_what_torch_npu_needs(built):
    symbols = stubs.undefined_symbols(*packages())
    assert {"aclInit", "aclrtMalloc"} <= set(symbols)
    assert not any("@" in symbol or symbol.startswith("Py") for symbol in symbols)
    driver = ctypes.CDLL(str(built / stubs.DRIVER))
    assert all(getattr(driver, symbol)() == 0 for symbol in ("aclInit", "aclrtMalloc"))


@pytest.mark.parametrize("missing", ["nm", "gcc"])
def test_a_missing_compiler_tool_is_named(tmp_path, monkeypatch, missing):
    which = stubs.shutil.which
    monkeypatch.setattr(stubs.shutil, "which", lambda program: None if program == missing else which(program))
    with pytest.raises(stubs.StubsUnavailable, match=rf"{missing} is needed .* install gcc and binutils"):
        stubs.build(tmp_path, *packages())
    assert not list(tmp_path.iterdir())


def test_a_failing_compiler_tool_is_quoted(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libbroken.so").write_text("no library")
    with pytest.raises(stubs.StubsUnavailable, match=r"nm failed on .*libbroken\.so: .*not recognized"):
        stubs.undefined_symbols(packages()[0], tmp_path)


@pytest.mark.parametrize("missing", ["torch", "torch_npu"])
def test_a_missing_package_is_named(monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    found = stubs.importlib.util.find_spec
    monkeypatch.setattr(stubs.importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(stubs.StubsUnavailable, match=rf"^{missing} is not installed"):
        stubs.import_torch_npu()


def test_a_real_driver_is_not_overlaid(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.setattr(stubs, "DRIVER", "libm.so.6")
    monkeypatch.setattr(stubs, "stubs_loaded", lambda: False)
    with pytest.raises(stubs.StubsUnavailable, match=r"libm\.so\.6 of a real driver is on this machine's library path"):
        stubs.import_torch_npu()
