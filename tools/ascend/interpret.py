"""The attention kernels under the Triton interpreter: link 1 of the proof, the kernel's text run as NumPy.

Whether Triton compiles or interprets, its own library included, is decided as it is imported, by the environment. So
the interpreter has a process of its own.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from kernels.ascend.variant import AttentionVariant

Arguments = Mapping[str, Any]
"""What a kernel is called with, in order: arrays (bfloat16 as uint16) and plain numbers."""


class Interpreter:
    """A context manager: a process in which the kernels are interpreted."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _interpret_triton)

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.shutdown(cancel_futures=True)

    def run(self, variant: AttentionVariant, split: Arguments, combine: Arguments, cores: int, sink: bool) -> None:
        """Both passes on so many cores; the arrays of the arguments are written as a device would write them.

        Raises:
            triton's InterpreterError: the kernel fails.
        """
        results = self._process.submit(_run, variant, dict(split), dict(combine), cores, sink).result()
        for name, array in results.items():
            (combine if name in combine else split)[name][...] = array


def _interpret_triton() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"


def _run(
    variant: AttentionVariant, split: dict[str, Any], combine: dict[str, Any], cores: int, sink: bool
) -> dict[str, np.ndarray[Any, Any]]:
    import torch  # noqa: PLC0415  (in the interpreter's process alone)
    from triton.language import standard  # noqa: PLC0415
    from triton.runtime import interpreter  # noqa: PLC0415
    from triton.triton_patch.language import standard as patched  # noqa: PLC0415

    from kernels.ascend import paged_decode  # noqa: PLC0415

    builder = interpreter.interpreter_builder
    # The interpreter has the smallest tiles of another maker's chips; these are of triton-ascend's compiler.
    builder.codegen_fns["min_dot_size"] = lambda _lhs, _rhs: (1, 1, 1)
    # It knows a maximum by the name that this had before triton-ascend, else it goes element by element.
    standard._elementwise_max = patched._elementwise_max_default
    builder.create_dot = _dot
    builder.create_custom_op_for_inter_core_sync = lambda *_: None  # one core after the other: nothing to wait for
    builder.create_fp_trunc = functools.partial(_fp_trunc, builder)
    torch.set_num_threads(1)
    arrays = {name: value for name, value in {**split, **combine}.items() if isinstance(value, np.ndarray)}
    tensors: dict[str, Any] = {
        name: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == np.uint16
        else torch.from_numpy(array)
        for name, array in arrays.items()
    }
    given = {**split, **combine, **tensors}
    with np.errstate(all="ignore"):  # rows of padding hold no numbers
        constants = variant.split_constants(cores)
        paged_decode.paged_attention_split[(cores,)](*(given[name] for name in split), **constants)
        constants = variant.combine_constants(cores, has_sink=sink)
        paged_decode.paged_attention_combine[(cores,)](*(given[name] for name in combine), **constants)
    return {name: arrays[name] for name in ("scores_ptr", "weights_ptr", "partial_ptr", "stats_ptr", "out_ptr")}


def _dot(a: Any, b: Any, acc: Any, _input_precision: Any, _max_imprecise: Any) -> Any:
    """A product, added up in float64 and rounded to float32, so that the order does not show in which a BLAS adds.

    The interpreter's own multiplies bfloat16, which it keeps as uint16, as whole numbers.
    """
    from triton.runtime.interpreter import TensorHandle  # noqa: PLC0415

    product = (_wide(a.data) @ _wide(b.data)).astype(np.float32) + acc.data
    return TensorHandle(product.astype(acc.data.dtype), acc.dtype.scalar)


def _wide(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return ((x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x).astype(np.float64)


def _fp_trunc(builder: Any, x: Any, dtype: Any) -> Any:
    """A conversion to a smaller float, to nearest as a device rounds; to bfloat16 the interpreter's own cuts off."""
    from triton.runtime.interpreter import TensorHandle  # noqa: PLC0415

    if dtype.scalar.name != "bf16" or x.data.dtype != np.float32:
        return builder.cast_impl(x, dtype)
    bits = np.ascontiguousarray(x.data).view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return TensorHandle(np.where(np.isnan(x.data), np.uint16(0x7FC0), nearest), dtype.scalar)
