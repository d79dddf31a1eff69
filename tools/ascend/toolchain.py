"""Where the tools lie that stand in for an Ascend machine, and which of them a link of the chain is missing.

Lowering and compiling need triton-ascend and ascendnpu-ir from PyPI; running what comes out on this machine needs
Debian's LLVM 19, MLIR 19 and clang 19 (``make ascend-toolchain``).
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

LLVM = Path("/usr/lib/llvm-19/bin")
"""Where Debian's packages llvm-19, mlir-19-tools and clang-19 put their programs."""
LLVM_PROGRAMS = ("mlir-opt", "mlir-translate", "clang", "clang++")
HOST_PROGRAMS = ("gcc", "nm")
"""What stub libraries are made with."""


class _Needs(NamedTuple):
    """Of one link.

    Attributes:
        packages: from PyPI.
        llvm: programs of LLVM.
        programs: on PATH.
    """

    packages: tuple[str, ...]
    llvm: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


_MODULES = {
    "torch": "torch",
    "triton-ascend": "triton.backends.ascend",
    "ascendnpu-ir": "ascendnpuir",
    "torch-npu": "torch_npu",
}
"""Package -> a module that it alone has."""
_DEBIAN = {"gcc": "build-essential", "nm": "binutils", "ld": "binutils"}
"""Program -> the package that has it; clang links by ld."""
_HOST_CODE = _Needs(("triton-ascend",), LLVM_PROGRAMS[:3], ("ld",))
_NEEDS = {
    1: _Needs(("torch", "triton-ascend")),
    2: _HOST_CODE,
    3: _Needs(("triton-ascend", "ascendnpu-ir")),
    4: _Needs(("triton-ascend", "ascendnpu-ir"), LLVM_PROGRAMS, ("ld",)),  # results are compared with link 2's
    5: _Needs(("torch", "torch-npu"), (), HOST_PROGRAMS),
}


class ToolFailed(Exception):
    """A tool ended with an error; the message is its command and what it said."""


def missing(link: int, *, attention: bool = True) -> list[str]:
    """What has to be installed before a link can be tried, and how; none if all of it is here.

    Args:
        link: 1 to 5.
        attention: whether link 5 computes attention, for which it has the host code of link 2; others do not ask.
    """
    packages, llvm, programs = _NEEDS[link]
    if link == 5 and attention:
        packages, llvm, programs = (mine + host for mine, host in zip(_NEEDS[5], _HOST_CODE, strict=True))
    lines = []
    if absent := [name for name in llvm if not (LLVM / name).exists()]:
        lines.append(f"{', '.join(absent)} in {LLVM} (make ascend-toolchain)")
    lines += [f"{name} (the Debian package {_DEBIAN[name]})" for name in programs if shutil.which(name) is None]
    return lines + [f"{name} (make .venv/.test)" for name in packages if not _is_installed(_MODULES[name])]


def run(command: Sequence[str | Path], *, env: dict[str, str] | None = None, timeout_s: float = 300) -> str:
    """Standard output and error of a command.

    Raises:
        ToolFailed: it ends with an error, or takes too long.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailed(f"{' '.join(words)}: {error}") from error
    if done.returncode:
        raise ToolFailed(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def _is_installed(module: str) -> bool:
    if module in sys.modules and sys.modules[module] is None:  # tests hide torch_npu where no stubs can be made
        return PathFinder.find_spec(module) is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
