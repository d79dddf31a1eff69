"""Stub driver libraries are for tests: whoever is about to serve looks for them here and goes no further.

Tests of torch_npu on a machine without an NPU load libraries that define the driver's symbols and do nothing. Each of
them holds ``MARKER``. A server that found one would answer with whatever lay in memory, so it ends before it starts.

Looked at are the files of ``LD_PRELOAD``, the folders of ``LD_LIBRARY_PATH`` and what is already mapped into the
process, but not the linker's own cache and default folders. No NumPy here: the API process asks too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

MARKER = b"upwell_stub_library"
"""The name of a symbol that every stub library exports."""
LIBRARIES = (
    "libascendcl.so",
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
    "libatb.so",
)
"""The libraries that torch_npu is linked with, by the names it asks for."""
_MAPS = Path("/proc/self/maps")


def stub_library_on_path(environment: Mapping[str, str], loaded: str | None = None) -> Path | None:
    """A stub library that this process has loaded, or would find when it loads torch_npu.

    Args:
        environment: of which ``LD_PRELOAD`` and ``LD_LIBRARY_PATH`` are read.
        loaded: the text of /proc/self/maps; None reads it, and takes an unreadable one for empty.

    Returns:
        The first one's path; None if there is none. What cannot be read is passed over.
    """
    if loaded is None:
        loaded = _own_maps()
        if _is_exported_here():  # the file of a library that is loaded may be gone
            return next(_mapped(loaded), Path(LIBRARIES[0]))
    folders = [Path(part or ".") for part in re.split("[:;]", environment.get("LD_LIBRARY_PATH") or "/nowhere")]
    for path in (*_preloaded(environment, folders), *_named(folders), *_mapped(loaded)):
        if _is_marked(path):
            return path
    return None


def refusal(path: Path) -> str:
    """One line for whoever wanted to serve: the file, and what to do."""
    return (
        f"{path} is a stub of the Ascend driver for tests, and would compute nothing. Take it out of LD_LIBRARY_PATH "
        "and LD_PRELOAD (source CANN's set_env.sh in a fresh shell), and start again."
    )


def refuse_stubs(environment: Mapping[str, str] | None = None) -> None:
    """Raise if this process has stub libraries or would find some; None takes its own environment.

    Call it before anything of the device is loaded, and once more when it is.

    Raises:
        BackendUnavailable: naming the file and the way out.
    """
    path = stub_library_on_path(os.environ if environment is None else environment)
    if path is not None:
        from kernels.ops import BackendUnavailable  # noqa: PLC0415  (it loads NumPy)

        raise BackendUnavailable(refusal(path))


def _is_exported_here() -> bool:
    """Whether a stub is among the libraries whose symbols all of this process sees."""
    return hasattr(ctypes.CDLL(None), MARKER.decode())


def _own_maps() -> str:
    with suppress(OSError):
        return _MAPS.read_text(errors="surrogateescape")
    return ""


def _preloaded(environment: Mapping[str, str], folders: list[Path]) -> Iterator[Path]:
    """Files of any name: a preloaded one comes before all others, whatever it is called."""
    for name in re.split("[ :]+", environment.get("LD_PRELOAD", "")):
        if "/" in name:
            yield Path(name)
        elif name:
            yield from (folder / name for folder in folders)


def _named(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        for name in LIBRARIES:
            yield folder / name


def _mapped(maps: str) -> Iterator[Path]:
    """Mapped files of a library's name, with or without a version behind it."""
    for line in dict.fromkeys(line.partition("/")[2] for line in maps.splitlines()):
        path = Path("/" + line.removesuffix(" (deleted)"))
        if any(path.name == name or path.name.startswith(name + ".") for name in LIBRARIES):
            yield path


def _is_marked(path: Path) -> bool:
    with suppress(OSError, ValueError):  # ValueError: an empty file cannot be mapped, nor a name with a zero byte
        if path.is_file():
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(MARKER) >= 0
    return False
