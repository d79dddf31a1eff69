"""linalg to the final HIVM of a chip, by Huawei's ``bishengir-compile``: what CANN's closed code generator is given.

The compiler of the package ascendnpu-ir ends where ``hivmc`` begins, which is part of CANN alone. It only asks for its
version, so a script stands in for it that knows that. A device runs the compiler of its own CANN, so it may be given
another module than the one that is checked here.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

from tools.ascend.lower import Lowered
from tools.ascend.toolchain import ToolFailed, run

CHIPS = ("Ascend910B3", "Ascend910B1")
HIVMC_VERSION = "1.2.0"
_HIVMC = f"""#!/bin/sh
[ "$1" = --version ] && {{ echo "hivmc {HIVMC_VERSION} (version only)"; echo "llvm 19.1.7"; }}
exit 0
"""
FLAGS = (
    "--enable-auto-multi-buffer=True",
    "--enable-auto-bind-sub-block=True",
    "--enable-hfusion-compile=true",
    "--enable-hivm-compile=true",
    "--enable-triton-kernel-compile=true",
    "--disable-auto-inject-block-sync=True",
)
"""Those of a launch by triton-ascend 3.2.0 with its options as they come, and the one that ``OPTIONS`` asks for."""


def final_hivm(kernel: Lowered, chip: str, *extra_flags: str) -> str:
    """The module that the code generator would be given.

    On-chip memory that overflows is an error, and so is whatever the compiler says of a module that it compiles: so it
    tells that it gave up double buffers to make one fit.

    Raises:
        ToolFailed: it does not compile as written; the message has the compiler's reason.
    """
    spec = importlib.util.find_spec("ascendnpuir")
    if spec is None or spec.origin is None:
        raise ToolFailed("ascendnpu-ir is not installed: make .venv/.test")
    programs = Path(spec.origin).parent / "bin"
    for program in programs.iterdir():
        program.chmod(program.stat().st_mode | 0o111)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "hivmc").write_text(_HIVMC, encoding="utf-8")
        (at / "hivmc").chmod(0o755)
        (at / "kernel.mlir").write_text(kernel.text, encoding="utf-8")
        env = {**os.environ, "PATH": f"{at}:{programs}:{os.environ['PATH']}"}
        said = run(
            [
                programs / "bishengir-compile", at / "kernel.mlir", f"--target={chip}", *FLAGS, *extra_flags,
                f"--save-temps={at / 'temps'}", "-o", at / "kernel.o",
            ],
            env=env,
        )  # fmt: skip
        if said.strip():
            raise ToolFailed(f"{kernel.name} for {chip} compiles, but not as it was asked for: {said}")
        return (at / "temps" / "module.hivm.opt.mlir").read_text(encoding="utf-8")
