"""Triton kernels to linalg, by triton-ascend's own passes and ``triton-adapter-opt``, as a launch on a device does it.

Needs neither torch_npu nor CANN: a launch would ask the driver for the chip's name, here it is an argument.
Source: ``triton.backends.ascend.compiler`` of triton-ascend 3.2.0, ``make_ttir`` and ``ttir_to_linalg``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.ascend.crashes import crashes_survived
from kernels.ascend.variant import AttentionVariant

CHIP = "Ascend910B3"


@dataclass(frozen=True)
class Lowered:
    """A kernel in linalg.

    Attributes:
        name: of the function.
        mix: whether it uses matrix and vector cores; else it is for vector cores alone.
        text: the MLIR module.
    """

    name: str
    mix: bool
    text: str


def lower_split(variant: AttentionVariant, cores: int) -> Lowered:
    """The pass over splits, on so many matrix cores and twice as many vector cores."""
    from kernels.ascend.paged_decode import paged_attention_split  # noqa: PLC0415  (imports triton)

    pointers, scalars = variant.split_pointers(), variant.split_scalars()
    return lower(paged_attention_split, pointers, scalars, variant.split_constants(cores))


def lower_combine(variant: AttentionVariant, cores: int, *, has_sink: bool) -> Lowered:
    """The pass that combines splits, on so many vector cores."""
    from kernels.ascend.paged_decode import paged_attention_combine  # noqa: PLC0415

    constants = variant.combine_constants(cores, has_sink=has_sink)
    return lower(paged_attention_combine, variant.combine_pointers(), variant.combine_scalars(), constants)


def lower_store(variant: AttentionVariant, cores: int) -> Lowered:
    """Keys and values into a cache of int8, on so many vector cores."""
    from kernels.ascend.int8_cache import store_keys_values  # noqa: PLC0415

    return lower(store_keys_values, variant.store_pointers(), {"num_tokens": "i32"}, variant.store_constants(cores))


def lower_queries(variant: AttentionVariant, cores: int) -> Lowered:
    """Queries as int8, on so many vector cores."""
    from kernels.ascend.int8_cache import split_queries  # noqa: PLC0415

    return lower(split_queries, variant.query_pointers(), {"num_queries": "i32"}, variant.query_constants(cores))


def lower(
    kernel: Any, pointers: Mapping[str, str], scalars: Mapping[str, str], constants: Mapping[str, Any]
) -> Lowered:
    """One specialisation of a ``triton.jit`` function.

    Args:
        kernel: the function.
        pointers: name of each pointer argument -> Triton's name of its element type, such as ``fp16``.
        scalars: likewise of plain arguments.
        constants: the value of each ``constexpr``.

    Raises:
        triton's own errors: the function is not Triton, or ``triton-adapter-opt`` refuses it.
    """
    os.environ.setdefault("TRITON_ASCEND_ARCH", CHIP)
    from triton._C.libtriton import ir  # noqa: PLC0415  (the backend reads the chip's name as it is imported)
    from triton.backends.ascend.compiler import (  # noqa: PLC0415
        AscendAttrsDescriptor,
        AscendBackend,
        make_ttir,
        ttir_to_linalg,
    )
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler.compiler import ASTSource  # noqa: PLC0415

    backend = AscendBackend(GPUTarget("npu", CHIP, 0))
    options = backend.parse_options({})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    signature = {name: "*" + dtype for name, dtype in pointers.items()} | dict(scalars)
    # What a launch finds out of its arguments: memory that torch allocates begins on multiples of 16 bytes and more.
    attributes = AscendAttrsDescriptor()
    attributes.arg_properties["tt.divisibility"] = [
        index
        for index, parameter in enumerate(kernel.params)
        if parameter.name in pointers and not parameter.do_not_specialize
    ]
    attributes.property_values["tt.divisibility"] = 16
    source = ASTSource(kernel, signature, dict(constants), attributes)
    generated = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    metadata = {"target": backend.target, "hash": kernel.__name__, **options.__dict__}
    ttir = make_ttir(generated, metadata, options)
    text = crashes_survived(lambda: ttir_to_linalg(ttir, metadata, options, named_ops=True))
    mode = re.search(r', mix_mode = "(\w+)"', text)
    if mode is None:
        raise ValueError(f"{kernel.__name__}: triton-adapter-opt does not say which cores it is for")
    return Lowered(kernel.__name__, mode[1] == "mix", text.replace(mode[0], ""))
