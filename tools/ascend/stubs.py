"""torch_npu imported on a machine without CANN: stub driver libraries, made by gcc and loaded into this process alone.

torch_npu links against Huawei's driver libraries, which no package registry has. What it needs of them to be imported
is that their names resolve: its schemas, its meta kernels and its Python then work as they do anywhere. So the symbols
that torch_npu leaves undefined are listed by nm, and a library that answers 0 to each of them is built.

The stubs are loaded by path with RTLD_GLOBAL before torch_npu is; the loader then finds them by soname. They are on no
search path, so no other process can pick them up by accident. Each carries the symbol and the string ``MARKER``: a
server that finds it in its process must refuse to start.

Tests and tools call this; nothing that serves requests does.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

MARKER = "upwell_stub_library"
"""The name of a symbol and the text of a string in every stub."""

DRIVER = "libascendcl.so"
SONAMES = (
    DRIVER,
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
    "libatb.so",
)
"""All driver libraries that torch_npu names, in the order in which they are loaded; the first one has the symbols."""

LAYOUT = 1
"""Part of a cache folder's name: to be raised when the stubs are built otherwise."""


class StubsUnavailable(RuntimeError):
    """The stubs cannot be made or used here; the message says what to do."""


def import_torch_npu(cache: Path | None = None) -> ModuleType:
    """Import torch_npu with stub driver libraries, and return it.

    Does nothing but return the module when torch_npu has been imported already. Sets TORCH_DEVICE_BACKEND_AUTOLOAD=0
    for this process and its children, as torch would otherwise import torch_npu by itself, and fail.

    Args:
        cache: a folder that keeps the stubs from one process to the next, safe for many at once; without it they are
            built in a temporary folder that is gone when this returns.

    Raises:
        StubsUnavailable: gcc, nm, torch or torch_npu is missing, a real driver is installed, or torch_npu needs more
            than the stubs have.
    """
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    if "torch_npu" in sys.modules:
        return sys.modules["torch_npu"]
    load(cache)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # prints that ASCEND_HOME_PATH is not set
            return importlib.import_module("torch_npu")
    except ImportError as error:
        raise StubsUnavailable(f"torch_npu cannot be imported with stub driver libraries: {error}") from error


def load(cache: Path | None = None) -> None:
    """Load the stubs into this process, unless they are in it. Arguments and errors: as ``import_torch_npu``."""
    packages = _package("torch"), _package("torch_npu")
    if stubs_loaded():
        return
    _refuse_real_driver()
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="upwell-npu-stubs-") as folder:
            _load(build(Path(folder), *packages))
    else:
        _load(build(cache, *packages))


class LoadedOnDemand(importlib.abc.MetaPathFinder):
    """Loads the stubs when anything asks for torch_npu: for libraries that import it wherever it is installed.

    Put one at the start of ``sys.meta_path``. Where there is a real driver, or no torch_npu, it does nothing.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._asked = False

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Load the stubs if this is torch_npu; finding it is left to others."""
        if fullname == "torch_npu" and not self._asked:
            self._asked = True  # and looking for the package asks again
            with contextlib.suppress(StubsUnavailable):
                load(self._cache)


def stubs_loaded() -> bool:
    """Whether a stub library is in this process."""
    try:
        ctypes.c_char.in_dll(ctypes.CDLL(None), MARKER)
    except ValueError:
        return False
    return True


def build(cache: Path, torch: Path, torch_npu: Path) -> Path:
    """Folder with the stubs for these installed packages below ``cache``, where they are built unless they are there.

    The folder appears complete or not at all, so processes may build at once: the first one to finish wins.

    Raises:
        StubsUnavailable: gcc or nm is missing or fails.
    """
    versions = (f"{name}-{importlib.metadata.version(name)}" for name in ("torch", "torch-npu"))
    folder = cache / "_".join((*versions, platform.machine(), f"layout{LAYOUT}"))
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=cache) as building:
        ready = Path(building) / "stubs"
        ready.mkdir()
        for soname in SONAMES:
            symbols = undefined_symbols(torch, torch_npu) if soname == DRIVER else ()
            _compile(ready / soname, symbols)
        with contextlib.suppress(OSError):  # another process was first
            ready.rename(folder)
    if not folder.is_dir():
        raise StubsUnavailable(f"stub libraries cannot be put into {folder}.")
    return folder


def undefined_symbols(torch: Path, torch_npu: Path) -> tuple[str, ...]:
    """Names that torch_npu's libraries need and neither they nor torch's define, sorted.

    Weak names, names of Python's and names with a version (those of the C and C++ run-time libraries) are left out.

    Raises:
        StubsUnavailable: nm is missing or fails.
    """
    own = [*sorted((torch_npu / "lib").glob("*.so")), *sorted(torch_npu.glob("_C*.so"))]
    others = sorted((torch / "lib").glob("*.so*"))
    needed: set[str] = set()
    for library in own:
        for line in _run("nm", "-D", "--undefined-only", str(library)).splitlines():
            kind, name = line.split()[-2:]
            if kind == "U" and "@" not in name and not name.startswith(("Py", "_Py")):
                needed.add(name)
    for library in (*own, *others):
        lines = _run("nm", "-D", "--defined-only", str(library)).splitlines()
        needed.difference_update(line.split()[-1].partition("@")[0] for line in lines)
    return tuple(sorted(needed))


def _compile(library: Path, symbols: tuple[str, ...]) -> None:
    """Build one stub: a function that returns 0 for each symbol, under its very name, and the marker."""
    lines = [f'const char {MARKER}[] = "{MARKER}";']
    for index, symbol in enumerate(symbols):
        lines.append(f'long stub_{index}(void) __asm__("{symbol}"); long stub_{index}(void) {{ return 0; }}')
    source = library.with_suffix(".c")
    source.write_text("\n".join(lines) + "\n")
    _run("gcc", "-shared", "-fPIC", "-w", "-o", str(library), f"-Wl,-soname,{library.name}", str(source))
    source.unlink()


def _load(folder: Path) -> None:
    """Load the stubs so that libraries loaded later find them by soname."""
    for soname in SONAMES:
        ctypes.CDLL(str(folder / soname), ctypes.RTLD_GLOBAL)


def _refuse_real_driver() -> None:
    """Raise if the machine has the driver: its libraries and the stubs must not meet in one process."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(DRIVER)
        raise StubsUnavailable(f"{DRIVER} of a real driver is on this machine's library path: stubs are not for it.")


def _package(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise StubsUnavailable(f"{name} is not installed; torch and torch-npu of one version are needed.")
    return Path(spec.origin).parent


def _run(program: str, *arguments: str) -> str:
    """What a program of the compiler tools prints."""
    path = shutil.which(program)
    if path is None:
        raise StubsUnavailable(f"{program} is needed to build stub driver libraries; install gcc and binutils.")
    done = subprocess.run([path, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise StubsUnavailable(f"{program} failed on {arguments[-1]}: {done.stderr.strip()[-300:]}")
    return done.stdout
