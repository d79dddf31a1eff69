"""Compile the model of the cores, once, and each translated module against it.

Both are kept in a folder by a hash of what they are made of; a file appears there whole or not at all, so that several
processes may share the folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tools.ascend.hivm.module import Module
from tools.ascend.toolchain import LLVM, run

SOURCES = Path(__file__).with_name("csrc")
_CXX_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-fvisibility=default", "-w")
_PASSES = (
    "--expand-strided-metadata", "--memref-expand", "--lower-affine", "--convert-scf-to-cf", "--arith-expand",
    "--convert-arith-to-llvm", "--convert-index-to-llvm", "--finalize-memref-to-llvm", "--convert-func-to-llvm",
    "--convert-cf-to-llvm", "--reconcile-unrealized-casts",
)  # fmt: skip


class UnknownCall(Exception):
    """A module calls a library function that the model does not have, or has with other types; the message names it."""


def model_library(folder: Path) -> Path:
    """The shared library of the model, compiled where that has not been done yet.

    Raises:
        ToolFailed: it does not compile.
    """
    files = sorted(SOURCES.glob("*.[ch]pp"))
    name = f"model-{_hash(*(file.read_bytes() for file in files), *map(str.encode, _CXX_FLAGS))}.so"
    return _made(folder / name, lambda target: _compile_model(files, target))


def module_library(module: Module, folder: Path) -> Path:
    """The shared library of a module, with its entries, linked against the model.

    Raises:
        UnknownCall: the module calls what the model does not have.
        ToolFailed: it does not compile.
    """
    model = model_library(folder)
    check_calls(module, catalogue(model))
    name = f"kernel-{_hash(module.text.encode(), model.name.encode(), *map(str.encode, _PASSES))}.so"
    return _made(folder / name, lambda target: _compile_module(module, model, target))


def check_calls(module: Module, known: Mapping[str, str]) -> None:
    """Compare the module's calls with the model's.

    Raises:
        UnknownCall: a call, or its types, are not known.
    """
    for name, signature in module.signatures.items():
        if name not in known:
            raise UnknownCall(f"{module.kernel} calls {name}({signature.strip()}), which is not modelled")
        if known[name] != signature:
            raise UnknownCall(f"{module.kernel} calls {name}({signature.strip()}); modelled is {known[name].strip()}")


@cache
def catalogue(model: Path) -> dict[str, str]:
    """Library calls that the model has -> their types."""
    function = ctypes.CDLL(str(model)).hivm_catalogue
    function.restype = ctypes.c_char_p
    lines = (line.partition("\t") for line in function().decode().splitlines())
    return {name: signature for name, _, signature in lines}


def _compile_model(files: list[Path], target: Path) -> None:
    objects = [(file, target.with_name(f"{file.stem}.o")) for file in files if file.suffix == ".cpp"]
    objects.sort(key=lambda pair: -pair[0].stat().st_size)
    with ThreadPoolExecutor(min(len(objects), os.cpu_count() or 1)) as pool:
        list(pool.map(lambda pair: run([LLVM / "clang++", *_CXX_FLAGS, "-c", pair[0], "-o", pair[1]]), objects))
    run([LLVM / "clang++", "-shared", *(compiled for _, compiled in objects), "-o", target, "-lm"])


def _compile_module(module: Module, model: Path, target: Path) -> None:
    source, lowered, translated = (target.with_name(f"kernel.{ending}") for ending in ("mlir", "llvm.mlir", "ll"))
    source.write_text(module.text, encoding="utf-8")
    run([LLVM / "mlir-opt", source, *_PASSES, "-o", lowered])
    run([LLVM / "mlir-translate", "--mlir-to-llvmir", lowered, "-o", translated])
    run(
        [
            LLVM / "clang++", "-w", "-O1", "-fPIC", "-shared", "-x", "ir", translated, "-x", "none", model,
            f"-Wl,-rpath,{model.parent}", "-o", target,
        ]
    )  # fmt: skip


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """The file at this path, made beside it and moved there where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            target = Path(folder) / path.name
            make(target)
            target.replace(path)
    return path


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:20]
