"""The attention kernels under the Triton interpreter: link 1 of the proof, the kernels' text run as NumPy.

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
_OF_INT8_CACHE = {
    "store_keys_values": ("k_cache_ptr", "v_cache_ptr", "k_scale_ptr", "v_scale_ptr"),
    "split_queries": ("addends_ptr", "scale_ptr"),
}
WRITTEN = {
    "paged_attention_split": ("scores_ptr", "weights_ptr", "partial_ptr", "stats_ptr"),
    "paged_attention_combine": ("out_ptr",),
    **_OF_INT8_CACHE,
}
"""Kernel -> the arguments that it writes."""


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
        self._launch("paged_attention_split", split, variant.split_constants(cores), cores)
        self._launch("paged_attention_combine", combine, variant.combine_constants(cores, has_sink=sink), cores)

    def store(self, variant: AttentionVariant, arguments: Arguments, cores: int) -> None:
        """Keys and values into a cache of int8, likewise.

        Raises:
            triton's InterpreterError: the kernel fails.
        """
        self._launch("store_keys_values", arguments, variant.store_constants(cores), cores)

    def split_queries(self, variant: AttentionVariant, arguments: Arguments, cores: int) -> None:
        """Queries as int8, likewise.

        Raises:
            triton's InterpreterError: the kernel fails.
        """
        self._launch("split_queries", arguments, variant.query_constants(cores), cores)

    def _launch(self, kernel: str, arguments: Arguments, constants: Arguments, cores: int) -> None:
        results = self._process.submit(_run, kernel, dict(arguments), dict(constants), cores).result()
        for name, array in results.items():
            arguments[name][...] = array


def _interpret_triton() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"


def _run(
    kernel: str, arguments: dict[str, Any], constants: dict[str, Any], cores: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays that the kernel writes."""
    import torch  # noqa: PLC0415  (in the interpreter's process alone)

    from kernels.ascend import int8_cache, paged_decode  # noqa: PLC0415

    _prepare()
    torch.set_num_threads(1)
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    tensors: dict[str, Any] = {
        name: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == np.uint16
        else torch.from_numpy(array)
        for name, array in arrays.items()
    }
    function = getattr(int8_cache if kernel in _OF_INT8_CACHE else paged_decode, kernel)
    with np.errstate(all="ignore"):  # rows of padding hold no numbers
        function[(cores,)](*(tensors.get(name, value) for name, value in arguments.items()), **constants)
    return {name: arrays[name] for name in WRITTEN[kernel]}


@functools.cache
def _prepare() -> None:
    """Make the interpreter do what triton-ascend's compiler does."""
    from triton.language import standard  # noqa: PLC0415
    from triton.runtime import interpreter  # noqa: PLC0415
    from triton.triton_patch.language import semantic  # noqa: PLC0415
    from triton.triton_patch.language import standard as patched  # noqa: PLC0415

    builder = interpreter.interpreter_builder
    # The interpreter has the smallest tiles of another maker's chips; these are of triton-ascend's compiler.
    builder.codegen_fns["min_dot_size"] = lambda _lhs, _rhs: (1, 1, 1)
    # It knows a maximum by the name that this had before triton-ascend, else it goes element by element.
    standard._elementwise_max = patched._elementwise_max_default
    semantic.compile_hint = lambda *_: None  # of conversions to int8, whose numbers all fit
    builder.create_dot = _dot
    builder.create_custom_op_for_inter_core_sync = lambda *_: None  # one core after the other: nothing to wait for
    builder.create_fp_trunc = functools.partial(_fp_trunc, builder)


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
