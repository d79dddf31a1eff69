"""W8A8: what is rounded, that integers are exact, and that backends and instruction sets give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import quantise
from kernels.cpu.abi import MAX_COLUMNS
from kernels.formats import RawTensor, WeightFormat
from kernels.ops import BackendOptions, NoKernel
from kernels.quantise import quantise_rows, to_w8a8, w8a8_tensor
from kernels.reference.dequant import codes_and_scales, dequantise
from kernels.reference.w8a8 import integer_product
from kernels.resolve import BACKENDS
from kernels.spec import f32_tensor, random_tensor
from kernels.specs.rounding import rounded_tokens
from tests.support.backends import DEVICES, use_best_isa, use_isa_of, with_isas

VARIANTS = [variant for device in DEVICES for variant in with_isas(device)]
OPS = {device: BACKENDS[device](BackendOptions(threads=2)) for device in DEVICES}
F32 = np.float32
shapes = st.tuples(st.integers(1, 20), st.integers(1, 70), st.integers(1, 1700))
"""(tokens, outputs, columns): beyond a tile, a panel and a part of columns."""


@pytest.fixture(autouse=True, scope="module")
def best_isa_afterwards():
    yield
    use_best_isa()


def product(variant, x, weights, biases=None):
    ops = OPS[variant.split("-")[0]]
    use_isa_of(variant)
    return ops.memory.download(ops.linear(ops.memory.upload(x), ops.prepare_linear(weights, biases)))


def same_bits(got, want):
    np.testing.assert_array_equal(got.view(np.uint32), want.astype(F32).view(np.uint32))


@given(seed=st.integers(0, 2**32), shape=shapes, exponent=st.integers(-120, 120))
def test_a_row_is_rounded_to_the_nearest_of_255_steps(seed, shape, exponent):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape[::2]) * 2.0**exponent).astype(F32)
    codes, scales = quantise_rows(x)
    assert np.abs(codes).max() == 127
    steps = scales[:, None].astype(np.float64)
    assert (np.abs(codes * steps - x) <= steps * 0.50002).all()
    np.testing.assert_array_equal(codes * steps, rounded_tokens(x))


def test_ties_go_to_even():
    codes, scales = quantise_rows(np.array([[127, 0.5, 1.5, 2.5, -0.5, -3.5]], dtype=F32))
    assert codes.tolist() == [[127, 0, 2, 2, 0, -4]]
    assert scales.tolist() == [1]


def test_rows_of_nothing_are_zeros_and_rows_that_are_not_sound_are_nan():
    x = np.ones((6, 3), dtype=F32)
    x[0], x[1], x[2, 1], x[3, 1], x[4, 1] = 0, 1e-40, np.nan, np.inf, -np.inf
    codes, scales = quantise_rows(x)
    assert not codes[:5][[0, 1]].any()
    assert np.isnan(scales).tolist() == [False, False, True, True, True, False]
    np.testing.assert_array_equal(np.isnan(rounded_tokens(x)).all(axis=1), np.isnan(scales))
    assert np.isfinite(codes).all()


@pytest.mark.parametrize("fmt", WeightFormat)
@pytest.mark.parametrize("shape", [(5, 512), (3, 4, 256)])
def test_a_weight_of_any_format_becomes_w8a8(fmt, shape, monkeypatch):
    raw = random_tensor(np.random.default_rng(1), shape, fmt)
    made = to_w8a8(raw)
    assert (made.format, made.shape) == (WeightFormat.W8A8, shape)
    full = dequantise(raw)
    codes, scales = codes_and_scales(made)
    if fmt is WeightFormat.W8A8:
        assert made is raw
    else:
        wanted, steps = quantise_rows(full.reshape(-1, shape[-1]))
        np.testing.assert_array_equal(codes, wanted.reshape(shape))
        same_bits(scales, steps.reshape(shape[:-1]))
    same_bits(dequantise(made), codes.astype(F32) * scales[..., None])
    assert np.abs(dequantise(made) - full).max() <= scales.max() * 0.501
    monkeypatch.setattr(quantise, "SLAB_ELEMENTS", 2 * shape[-1])
    np.testing.assert_array_equal(to_w8a8(raw).data, made.data)


def test_rows_of_a_w8a8_weight_are_picked_packed():
    raw = random_tensor(np.random.default_rng(2), (7, 30), WeightFormat.W8A8)
    index = np.array([6, 0, 0, 3])
    picked = raw.rows(index)
    assert picked.format is WeightFormat.W8A8
    same_bits(dequantise(picked), dequantise(raw)[index])


def test_data_of_another_size_are_refused():
    with pytest.raises(ValueError, match="not a W8A8 tensor"):
        dequantise(RawTensor((2, 8), WeightFormat.W8A8, np.zeros((2, 8), dtype=np.uint8)))


@given(seed=st.integers(0, 2**32), shape=shapes, extreme=st.booleans())
def test_the_references_product_of_integers_is_exact(seed, shape, extreme):
    (num_tokens, num_outputs, columns), rng = shape, np.random.default_rng(seed)
    tokens = rng.integers(-127, 128, (num_tokens, columns))
    weight = np.full((num_outputs, columns), 127) if extreme else rng.integers(-128, 128, (num_outputs, columns))
    tokens[: num_tokens // 2] = 127
    np.testing.assert_array_equal(integer_product(tokens.astype(F32), weight.astype(F32)), tokens @ weight.T)


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=st.integers(0, 2**32), shape=shapes)
def test_the_integer_part_is_numpys_bit_for_bit(variant, seed, shape):
    """With scales of 1, a result is the sum of the integers, which float32 holds whole: it is below 2**24."""
    (num_tokens, num_outputs, columns), rng = shape, np.random.default_rng(seed)
    x = rng.integers(-127, 128, (num_tokens, columns))
    x[:, 0] = 127
    weight = rng.integers(-128, 128, (num_outputs, columns), dtype=np.int8)
    got = product(variant, x.astype(F32), [w8a8_tensor(weight, np.ones(num_outputs, dtype=F32))])
    exact = x @ weight.astype(np.int64).T
    assert np.abs(exact).max() < 2**24
    same_bits(got, exact.astype(F32))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 6, 7, 13])
def test_the_longest_rows_do_not_overflow(variant, num_tokens):
    """All products as great as they can be; then half of them the other way, and what is left is small."""
    x = np.full((num_tokens, MAX_COLUMNS), 127)
    weight = np.full((3, MAX_COLUMNS), -128, dtype=np.int8)
    weight[1] = 127
    weight[2, ::2] = 127
    weight[2, :7] = 1
    exact = x[:1].astype(np.int64) @ weight.astype(np.int64).T
    assert np.abs(exact).max() > 2**30
    got = product(variant, x.astype(F32), [w8a8_tensor(weight, np.ones(3, dtype=F32))])
    same_bits(got, np.repeat(exact, num_tokens, axis=0).astype(F32))


@given(seed=st.integers(0, 2**32), shape=shapes, biased=st.booleans(), exponent=st.integers(-60, 60))
def test_backends_give_the_same_bits(seed, shape, biased, exponent):
    (num_tokens, num_outputs, columns), rng = shape, np.random.default_rng(seed)
    x = (rng.standard_normal((num_tokens, columns)) * 2.0**exponent).astype(F32)
    x[rng.integers(0, num_tokens, 2)] *= rng.choice([0, np.inf, np.nan, 1e-38], 2)[:, None].astype(F32)
    weights = [random_tensor(rng, (n, columns), WeightFormat.W8A8) for n in (num_outputs, 3)]
    biases = [f32_tensor(rng.standard_normal(n)) for n in (num_outputs, 3)] if biased else None
    with np.errstate(invalid="ignore"):
        results = [product(variant, x, weights, biases) for variant in VARIANTS]
    for result in results:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_of_weights_that_is_not_sound_makes_its_output_nan_and_no_other(variant):
    rng = np.random.default_rng(3)
    full = rng.standard_normal((40, 64)).astype(F32)
    x = rng.standard_normal((7, 64)).astype(F32)
    clean = product(variant, x, [to_w8a8(f32_tensor(full))])
    full[17, 3] = np.inf
    got = product(variant, x, [to_w8a8(f32_tensor(full))])
    assert np.isnan(got[:, 17]).all()
    np.testing.assert_array_equal(np.delete(got, 17, axis=1), np.delete(clean, 17, axis=1))


@pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")
def test_rows_that_could_overflow_are_refused():
    assert MAX_COLUMNS * 127 * 128 < 2**31
    weight = random_tensor(np.random.default_rng(4), (1, MAX_COLUMNS + 1), WeightFormat.W8A8)
    with pytest.raises(NoKernel, match=f"{MAX_COLUMNS} columns at most"):
        OPS["cpu"].prepare_linear([weight], None)
