"""linalg to code for this machine, by Debian's MLIR and LLVM 19: link 2 of the proof, what triton-ascend lowered, run.

Arithmetic is that of the lowered module: float32 sums in the order of its loops, one conversion where it says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tools.ascend.lower import Lowered
from tools.ascend.toolchain import LLVM, run

PASSES = (
    "--convert-elementwise-to-linalg", "--canonicalize", "--cse",
    "--one-shot-bufferize=allow-return-allocs-from-loops=true bufferize-function-boundaries=true",
    "--buffer-deallocation-pipeline", "--convert-linalg-to-loops", "--convert-bufferization-to-memref",
    "--expand-strided-metadata", "--memref-expand", "--lower-affine", "--convert-scf-to-cf", "--convert-math-to-libm",
    "--convert-math-to-llvm", "--arith-expand", "--convert-arith-to-llvm", "--convert-index-to-llvm",
    "--finalize-memref-to-llvm", "--convert-func-to-llvm", "--convert-cf-to-llvm", "--reconcile-unrealized-casts",
)  # fmt: skip
_RUNTIME = Path(__file__).with_name("host_runtime.c")
_SYNC = re.compile(r"^ *hivm\.hir\.sync_block_(set|wait)\[.*\n", re.MULTILINE)
"""How matrix and vector cores wait for each other, which is nothing where one thread does the work of both in turn."""
_SATURATE = re.compile(r"^ *annotation\.mark .*overflow_mode.*\n", re.MULTILINE)
"""What is to become of numbers that int8 has not: our kernels convert none but those within it, and NaN."""
_SCALARS = {"f32": ctypes.c_float, "i32": ctypes.c_int32, "i64": ctypes.c_int64}


class HostKernel:
    """A lowered kernel as a function of this machine."""

    def __init__(self, kernel: Lowered, folder: Path) -> None:
        """Build it, unless the folder has it from before.

        Raises:
            ToolFailed: it does not compile.
            ValueError: an argument of a type that no kernel of ours has.
        """
        signature = re.search(rf"func\.func @{kernel.name}\((.*)\)", kernel.text)
        if signature is None:
            raise ValueError(f"there is no function {kernel.name} in its module")
        self._types = [words.split()[0] for words in re.findall(r"%\w+: ([^,{]*)", signature[1])]
        self._function: Any = ctypes.CDLL(str(_built(kernel, folder)))[kernel.name]
        self._function.restype = None

    def run(self, arguments: Mapping[str, Any], cores: int) -> None:
        """Run it for each core in turn; arrays are written in place.

        Raises:
            ValueError: not as many arguments as it has.
        """
        scratch = np.zeros(1, dtype=np.int8)  # for locks and the compiler's workspace, which linalg does not use
        values = [scratch, scratch, *arguments.values()]
        for core in range(cores):
            call = [*values, cores, 1, 1, core, 0, 0]
            if len(call) != len(self._types):
                raise ValueError(f"{len(self._types) - 8} arguments are needed, but there are {len(arguments)}")
            words: list[Any] = []
            for kind, value in zip(self._types, call, strict=True):
                words += _memref(value) if kind.startswith("memref") else [_SCALARS[kind](value)]
            self._function(*words)


def _memref(array: np.ndarray[Any, Any]) -> list[Any]:
    """A one-dimensional memref of an array's memory, as MLIR passes it: two addresses, offset, size, stride."""
    at = ctypes.c_void_p(array.ctypes.data)
    return [at, at, ctypes.c_int64(0), ctypes.c_int64(array.size), ctypes.c_int64(1)]


def _processor() -> list[str]:
    """Flags for conversions of float16 by one instruction, where this machine has it: dozens of times as fast."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return ["-march=x86-64-v3"] if {"avx2", "bmi2", "f16c", "fma", "movbe"} <= set(flags) else []


def _built(kernel: Lowered, folder: Path) -> Path:
    processor = _processor()
    text = kernel.text + "\n".join([*PASSES, *processor]) + _RUNTIME.read_text(encoding="utf-8")
    library = folder / f"{kernel.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        at = Path(name)
        (at / "kernel.mlir").write_text(_SATURATE.sub("", _SYNC.sub("", kernel.text)), encoding="utf-8")
        run([LLVM / "mlir-opt", "--allow-unregistered-dialect", *PASSES, at / "kernel.mlir", "-o", at / "llvm.mlir"])
        run([LLVM / "mlir-translate", "--mlir-to-llvmir", at / "llvm.mlir", "-o", at / "kernel.ll"])
        clang: list[str | Path] = [LLVM / "clang", "-w", "-O2", "-fPIC"]
        run([*clang, *processor, "-c", "-x", "ir", at / "kernel.ll", "-o", at / "kernel.o"])
        run([*clang, "-shared", at / "kernel.o", _RUNTIME, "-lm", "-o", at / "kernel.so"])
        (at / "kernel.so").rename(library)
    return library
