"""Link 5, operation by operation: the Ascend table over emulations, against every specification.

Inputs and results are rounded to the backend's dtype, so what a specification allows is counted in its unit roundoff.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kernels.ascend.backend import ops_on
from kernels.formats import RawTensor, WeightFormat
from kernels.ops import Arithmetic, BackendOptions, BackendUnavailable, NoKernel
from kernels.quantise import quantise_rows
from kernels.reference.dequant import codes_and_scales, dequantise
from kernels.reference.w8a8 import integer_product
from kernels.spec import deviation, random_tensor
from kernels.specs import ALL_SPECS
from tests.support.ascend_links import link
from tools.ascend.cases import to_addends
from tools.ascend.emulation.platform import emulated_platform

pytestmark = link(5, attention=False)
ATTENTION = link(5)
"""Of tests that run our own kernels."""

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
ROUNDINGS = 6
"""Of inputs, weights, what is between two operations of torch_npu, and the result: a share of the result each."""
INT8_STEP = 2.0**-7
"""A token that is rounded to the dtype first may get another int8 code: a step is 1/127 of its largest element."""
LARGEST = {"float16": 32.0, "bfloat16": np.inf}
"""Numbers whose sums and products of sums float16 holds; larger ones are tried in bfloat16 alone."""


def numbers(inputs):
    """The largest magnitude among a case's numbers and weights."""
    flat = [x for value in inputs.values() for x in (value if isinstance(value, (list, tuple)) else [value])]
    arrays = [dequantise(x) if isinstance(x, RawTensor) else x for x in flat]
    floats = [x for x in arrays if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
    return max((float(np.abs(x).max(initial=0)) for x in floats), default=0.0)


SPECS = {spec.name: spec for spec in ALL_SPECS}
CASES = [
    pytest.param(
        dtype,
        spec,
        case,
        id=f"{dtype}-{spec.name}-{case.name}",
        marks=[ATTENTION] if spec.name == "paged_attention" else [],
    )
    for dtype in UNIT
    for spec in ALL_SPECS
    for case in spec.cases(np.random.default_rng(20))
    if case.inputs.get("block_size", 128) == 128
    if spec.name == "draw" or numbers(case.inputs) < LARGEST[dtype]
    if (spec.name, case.name) != ("embed", "w8a8")
]


@pytest.fixture(scope="module")
def tables():
    return {dtype: ops_on(emulated_platform(), BackendOptions(dtype=dtype)) for dtype in UNIT}


def limit(spec, case, ops, dtype):
    share = spec.tolerance.limit(case.inputs, ops.info.arithmetic) + ROUNDINGS * UNIT[dtype]
    return share + (INT8_STEP if "w8a8" in case.name.lower() else 0)


def is_off(ops, spec, case):
    return deviation(spec.run(ops, case.inputs).astype(np.float64), spec.oracle(case.inputs, ops.info.arithmetic))


@pytest.mark.parametrize(("dtype", "spec", "case"), CASES)
def test_parity(tables, dtype, spec, case):
    assert is_off(tables[dtype], spec, case) <= limit(spec, case, tables[dtype], dtype)


@pytest.mark.parametrize(("dtype", "spec", "case"), [p for p in CASES if p.values[1].token_inputs])
def test_a_row_does_not_depend_on_its_neighbours(tables, dtype, spec, case):
    ops = tables[dtype]
    whole = spec.run(ops, case.inputs)
    num_rows = len(case.inputs[spec.token_inputs[0]])
    order = np.random.default_rng(3).permutation(num_rows)
    for rows in (order, order[:1], order[-2:]):
        some = {**case.inputs, **{name: case.inputs[name][rows] for name in spec.token_inputs}}
        np.testing.assert_array_equal(spec.run(ops, some), whole[rows])


def test_an_embedding_in_w8a8_is_refused(tables):
    case = next(case for case in SPECS["embed"].cases(np.random.default_rng(20)) if case.name == "w8a8")
    with pytest.raises(NoKernel, match="W8A8"):
        SPECS["embed"].run(tables["float16"], case.inputs)


@ATTENTION
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("name", ["write_kv", "paged_attention"])
def test_a_cache_of_int8_is_off_by_its_own_rounding_alone(dtype, name):
    """Of numbers that the dtype holds, and queries of whole steps, so that the oracle rounds as the device does."""
    ops, spec = ops_on(emulated_platform(), BackendOptions(dtype=dtype, kv_cache_dtype="i8")), SPECS[name]
    cases = [p.values[2] for p in CASES if p.values[:2] == (dtype, spec)]
    assert cases
    for case in cases:
        inputs = dict(case.inputs)
        if "q" in inputs:
            addends, step = to_addends(inputs["q"])
            inputs["q"] = (addends.sum(0) * step[..., None]).astype(np.float32)
        inputs |= {key: ops.memory.download(ops.memory.upload(inputs[key])) for key in "qkv" if key in inputs}
        held = dataclasses.replace(case, inputs=inputs)
        allowed = limit(spec, held, ops, dtype)
        assert is_off(ops, spec, held) <= allowed
        exact = dataclasses.replace(ops, info=dataclasses.replace(ops.info, arithmetic=Arithmetic()))
        assert dtype == "bfloat16" or is_off(exact, spec, held) > allowed  # the rounding shows


@ATTENTION
def test_blocks_of_int8_are_copied_with_their_scales():
    ops = ops_on(emulated_platform(), BackendOptions(dtype="float16", kv_cache_dtype="i8"))
    assert ops.memory.cache_token_bytes(3, 40) == 2 * 3 * (64 + 4)
    cache = ops.memory.alloc_cache(3, 128, 2, 40)
    rng = np.random.default_rng(0)
    k, v = (ops.memory.upload(rng.standard_normal((9, 2, 40)).astype(np.float32)) for _ in range(2))
    ops.write_kv(cache, k, v, ops.memory.upload(np.arange(130, 139)))
    ops.memory.copy_block(cache, 1, 2)
    for stored in ops.memory.read_cache(cache):
        assert np.abs(stored[1]).max() > 1
        np.testing.assert_array_equal(stored[2], stored[1])
        assert not stored[0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_dtype": "i16"}, "--kv-cache-dtype i16 is not for this backend"),
        ({"kv_cache_dtype": "i8", "prompt_attention": "fused"}, "--prompt-attention fused does not read"),
        ({"kv_cache_dtype": "i8", "attention_scores": "float16"}, "--attention-scores float16 has no meaning"),
    ],
)
def test_caches_that_there_are_not_are_refused(options, message):
    with pytest.raises(BackendUnavailable, match=message):
        ops_on(emulated_platform(), BackendOptions(**options))


@pytest.mark.parametrize(
    "name", ["rms_norm", "rope", "silu_mul", "linear", "moe", pytest.param("paged_attention", marks=ATTENTION)]
)
def test_a_planted_defect_fails(tables, name):
    """A result that is one part in thirty off."""
    ops = tables["float16"]
    whole = getattr(ops, name)
    broken = dataclasses.replace(ops, **{name: lambda *args: whole(*args) * 1.034})
    spec, case = next(p.values[1:] for p in CASES if p.values[0] == "float16" and p.values[1].name == name)
    assert is_off(broken, spec, case) > limit(spec, case, ops, "float16")


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("inner", [64, 1000, 4100])
def test_w8a8_has_the_integers_of_the_reference(tables, dtype, inner):
    """The same codes give the same sums: results are equal to the bit but for the one rounding to the dtype."""
    rng = np.random.default_rng(inner)
    ops, weight = tables[dtype], random_tensor(rng, (33, inner), WeightFormat.W8A8)
    codes, scales = codes_and_scales(weight)
    tokens = rng.integers(-127, 128, (9, inner)).astype(np.float32)
    tokens[:, 0] = 127  # the largest element: the scale is a power of two, and the device's codes are these
    x = tokens * np.float32(2.0**-9)
    own_codes, own_scales = quantise_rows(x)
    assert np.array_equal(own_codes, tokens)
    sums = integer_product(own_codes, codes.astype(np.float32)).astype(np.float32)
    wanted = ops.memory.download(ops.memory.upload(sums * scales * own_scales[:, None]))
    got = ops.memory.download(ops.linear(ops.memory.upload(x), ops.prepare_linear([weight], None)))
    assert np.array_equal(got, wanted)
