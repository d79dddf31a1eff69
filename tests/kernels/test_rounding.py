"""The oracles of backends that round on purpose: what they round, and that it can be told from what does not."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.formats import RawTensor, WeightFormat
from kernels.ops import Arithmetic
from kernels.reference.dequant import dequantise
from kernels.spec import deviation, random_tensor
from kernels.specs.attention import PAGED_ATTENTION, WRITE_KV, make_attention_case
from kernels.specs.products import LINEAR
from kernels.specs.rounding import kept, product, rounded_activations, rounded_tokens

EXACT, INT8 = Arithmetic(), Arithmetic(activations="int8 blocks of 32")
FLOATS = {WeightFormat.F32, WeightFormat.F16, WeightFormat.BF16}


def test_activations_are_rounded_by_blocks_of_32():
    x = np.zeros((1, 102), dtype=np.float32)
    x[0, :3], x[0, 32:35], x[0, 64:66], x[0, 101] = [127, 0.4, -0.6], [127, 0.4, -1.6], [1e-3, 4.9e-6], 5
    wanted = np.zeros(102)
    wanted[:3], wanted[32:35], wanted[64:66], wanted[101] = [127, 0, -1], [127, 0, -2], [1e-3, 1e-3 / 127], 5
    np.testing.assert_allclose(rounded_activations(x)[0], wanted, rtol=1e-6)


def test_the_blocks_that_stick_out_of_a_row_keep_seven_bits_more():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 256)).astype(np.float32)
    x[0, 40] = 90.0
    found = rounded_activations(x)
    steps = np.abs(x.reshape(2, 8, 32)).max(axis=-1) / 127
    off = np.abs(found - x).reshape(2, 8, 32).max(axis=-1) / steps
    assert off[0, 1] <= 0.5001 / 128
    assert (off[0, [0, 2, 3, 4, 5, 6, 7]] > 0.3).all()
    assert (off[1] > 0.3).all()


def test_a_token_before_a_w8a8_weight_has_one_scale():
    x = np.zeros((3, 102), dtype=np.float32)
    x[0, :3], x[0, 40], x[1, :2], x[2, 5] = [0.4, -0.6, 1.5], 127, [1e-3, 4.9e-6], np.nan
    wanted = np.zeros((3, 102))
    wanted[0, :3], wanted[0, 40], wanted[1, :2], wanted[2] = [0, -1, 2], 127, [1e-3, 1e-3 / 127], np.nan
    np.testing.assert_allclose(rounded_tokens(x), wanted, rtol=1e-6)


def test_no_rows_are_no_rows():
    assert rounded_tokens(np.zeros((0, 70), dtype=np.float32)).shape == (0, 70)
    assert rounded_activations(np.zeros((0, 70), dtype=np.float32)).shape == (0, 70)


@pytest.mark.parametrize("fmt", WeightFormat)
def test_a_product_of_numbers_that_need_no_rounding_is_the_same(fmt):
    rng = np.random.default_rng(4)
    x = rng.integers(-127, 128, (3, 512)).astype(np.float32)
    x[:, ::32] = 127
    weight = random_tensor(rng, (8, 512), fmt)
    assert deviation(product(x, weight, INT8), product(x, weight, EXACT)) < 1e-6


@pytest.mark.parametrize("fmt", WeightFormat)
def test_only_products_with_integer_weights_are_rounded_and_a_test_would_notice(fmt):
    rng = np.random.default_rng(5)
    inputs = {"x": rng.standard_normal((4, 512)).astype(np.float32)}
    inputs |= {"weights": [random_tensor(rng, (32, 512), fmt)], "biases": None}
    exact = inputs["x"].astype(np.float64) @ dequantise(inputs["weights"][0]).astype(np.float64).T
    if fmt is not WeightFormat.W8A8:  # whose activations are rounded whatever the arithmetic
        np.testing.assert_array_equal(LINEAR.oracle(inputs, EXACT), exact)
    error = deviation(LINEAR.oracle(inputs, INT8), exact)
    if fmt in FLOATS:
        assert error == 0
    else:
        assert LINEAR.tolerance.limit(inputs, INT8) < error < 2**-5


@pytest.mark.parametrize(("fmt", "codes_from"), [(WeightFormat.Q4_1, 4), (WeightFormat.Q4_K, 16)])
def test_the_offset_of_a_format_meets_the_activations_as_they_are(fmt, codes_from):
    """With every code at 8, a weight is its offset alone."""
    rng = np.random.default_rng(6)
    weight = random_tensor(rng, (8, 512), fmt)
    blocks = weight.data.reshape(-1, fmt.block_bytes).copy()
    blocks[:, codes_from:] = 0x88
    flat = RawTensor(weight.shape, fmt, blocks.reshape(weight.data.shape))
    assert np.ptp(dequantise(flat)) > 0.1
    x = rng.standard_normal((3, 512)).astype(np.float32)
    assert deviation(product(x, flat, INT8), product(x, flat, EXACT)) < 1e-12


@pytest.mark.parametrize(("cache", "steps"), [("i16", (8191, 2047)), ("i8", (127, 127))])
def test_a_cache_of_integers_keeps_a_scale_a_token_and_head(cache, steps):
    rng = np.random.default_rng(7)
    k, v = (rng.standard_normal((5, 3, 16)).astype(np.float32) for _ in range(2))
    k[0, 1] = 0
    for rows, found, levels in zip((k, v), kept(k, v, cache), steps, strict=True):
        scale = np.abs(rows).max(axis=-1, keepdims=True) / levels
        assert (np.abs(found - rows) <= scale * 0.5001).all()
        integers = found / np.where(scale == 0, 1, scale)
        np.testing.assert_allclose(integers, np.rint(integers), atol=1e-3)
        assert np.abs(integers).max() == pytest.approx(levels)


def test_a_cache_of_another_kind_is_noticed():
    inputs = make_attention_case(np.random.default_rng(8), [(40, 9), (7, 7)])
    found = {cache: PAGED_ATTENTION.oracle(inputs, Arithmetic(cache=cache)) for cache in ("f32", "f16", "i16", "i8")}
    limit = PAGED_ATTENTION.tolerance.limit(inputs, Arithmetic(cache="i8"))
    assert deviation(found["i8"], found["f32"]) > limit
    assert deviation(found["i16"], found["f32"]) < limit
    exact = PAGED_ATTENTION.tolerance.limit(inputs, Arithmetic())
    assert min(deviation(found[cache], found["f32"]) for cache in ("f16", "i16", "i8")) > exact
    written = {cache: WRITE_KV.oracle(inputs, Arithmetic(cache=cache)) for cache in found}
    assert len({array.tobytes() for array in written.values()}) == 4
