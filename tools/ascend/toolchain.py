"""Where the tools lie that stand in for an Ascend machine, and what is missing of them.

Lowering and compiling need triton-ascend and ascendnpu-ir from PyPI; running what comes out on this machine needs
Debian's LLVM 19, MLIR 19 and clang 19 (``make ascend-toolchain``).
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

LLVM = Path("/usr/lib/llvm-19/bin")
"""Where Debian's packages llvm-19, mlir-19-tools and clang-19 put their programs."""
LLVM_PROGRAMS = ("mlir-opt", "mlir-translate", "clang", "clang++")
HOST_PROGRAMS = ("gcc", "nm")
"""What stub libraries are made with."""


class ToolFailed(Exception):
    """A tool ended with an error; the message is its command and what it said."""


def missing() -> list[str]:
    """What has to be installed first, one line each; none if all of it is here."""
    lines = [f"{LLVM / name}: make ascend-toolchain" for name in LLVM_PROGRAMS if not (LLVM / name).exists()]
    lines += [f"{name}: the Debian package build-essential" for name in HOST_PROGRAMS if shutil.which(name) is None]
    wanted = {"triton.backends.ascend": "triton-ascend", "ascendnpuir": "ascendnpu-ir", "torch_npu": "torch-npu"}
    return lines + [f"{package}: make .venv/.test" for module, package in wanted.items() if not _is_installed(module)]


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
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
