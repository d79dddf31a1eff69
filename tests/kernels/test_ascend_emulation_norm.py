"""Emulated operations on rows: normalisation, rotation and gate against NumPy, and refusals."""

import numpy as np
import pytest
import torch

from tests.support.ascend_calls import FLOATS, close, f64, normal, refused
from tests.support.ascend_links import link

pytestmark = link(5, attention=False)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_norm(npu, rng, dtype):
    x, gamma = normal(rng, 3, 5, 97, dtype=dtype), normal(rng, 97, dtype=dtype)
    y, rstd = npu.npu_rms_norm(x, gamma, 1e-5)
    want = 1 / np.sqrt((f64(x) ** 2).mean(-1, keepdims=True) + 1e-5)
    close(rstd, want, 97)
    close(y, f64(x) * want * f64(gamma), 97)


def test_rms_norm_over_two_dimensions(npu, rng):
    x, gamma = normal(rng, 4, 3, 5), normal(rng, 3, 5)
    y, rstd = npu.npu_rms_norm(x, gamma)
    want = 1 / np.sqrt((f64(x) ** 2).mean((1, 2), keepdims=True) + 1e-6)
    close(rstd, want, 15)
    close(y, f64(x) * want * f64(gamma), 15)


@pytest.mark.parametrize("dtype", FLOATS)
def test_add_rms_norm_is_the_norm_of_the_rounded_sum(npu, rng, dtype):
    x, residual, gamma = normal(rng, 6, 64, dtype=dtype), normal(rng, 6, 64, dtype=dtype), normal(rng, 64, dtype=dtype)
    y, rstd, total = npu.npu_add_rms_norm(x, residual, gamma, 1e-5)
    close(total, f64(x) + f64(residual))
    norm, norm_rstd = npu.npu_rms_norm(total, gamma, 1e-5)
    assert torch.equal(y, norm)
    assert torch.equal(rstd, norm_rstd)


def test_norms_refuse(npu, rng):
    x, gamma = normal(rng, 2, 8), normal(rng, 8)
    refused("must have 2 to 8 dimensions", npu.npu_rms_norm, x[0], gamma)
    refused("torch.int8 is not supported", npu.npu_rms_norm, x.to(torch.int8), gamma)
    refused("gamma must be torch.float16", npu.npu_rms_norm, x, gamma.float())
    refused("must be the last dimensions", npu.npu_rms_norm, x, gamma[:4])
    refused("empty", npu.npu_rms_norm, x[:0], gamma)
    refused("one shape and one dtype", npu.npu_add_rms_norm, x, x[:1], gamma)
    refused("one shape and one dtype", npu.npu_add_rms_norm, x, x.float(), gamma)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 5, 1, 32), (1, 1, 3, 32), (2, 5, 1, 32), (2, 5, 3, 32)])
def test_rotary_mul(npu, rng, dtype, shape):
    x = normal(rng, max(2, shape[0]), 5, 3, 32, dtype=dtype)
    cos, sin = (normal(rng, *shape, dtype=dtype).clamp(-1, 1) for _ in range(2))
    turned = np.concatenate((-f64(x)[..., 16:], f64(x)[..., :16]), -1)
    close(npu.npu_rotary_mul(x, cos, sin), f64(cos) * f64(x) + f64(sin) * turned, 2)


def test_rotary_mul_refuses(npu, rng):
    x, r = normal(rng, 1, 4, 2, 32), normal(rng, 1, 4, 1, 32).clamp(-1, 1)
    refused("must be within 1", npu.npu_rotary_mul, x, r, 1.01 + 0 * r)
    refused("must have 4 dimensions", npu.npu_rotary_mul, x[0], r, r)
    refused("have one dtype", npu.npu_rotary_mul, x, r.float(), r.float())
    refused("does not fit", npu.npu_rotary_mul, x, r[..., :16], r[..., :16])
    refused("does not fit", npu.npu_rotary_mul, x.expand(2, 4, 2, 32), r[:, :1], r[:, :1])
    refused("one shape", npu.npu_rotary_mul, x, r, r[:, :1])
    refused('rotary_mode "interleave" is not emulated', npu.npu_rotary_mul, x, r, r, "interleave")
    refused("rotate is not emulated", npu.npu_rotary_mul, x, r, r, "half", torch.eye(32).half())
    wide = torch.ones(1, 1, 1, 896).half()
    refused("even and below 896", npu.npu_rotary_mul, wide, wide, wide)
    odd = torch.ones(1, 1, 1, 3).half()
    refused("even and below 896", npu.npu_rotary_mul, odd, odd, odd)
    many = torch.ones(1, 4, 1000, 32).half()
    refused("below 1000", npu.npu_rotary_mul, many, many[:, :, :1], many[:, :, :1])
    long = torch.ones(1, 1500, 2, 32).half()
    for several in (long, long.expand(2, 1500, 2, 32)):
        assert npu.npu_rotary_mul(several, several[:, :, :1], several[:, :, :1]).shape == several.shape  # S, not B


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [-1, 0])
def test_swiglu(npu, rng, dtype, dim):
    x = normal(rng, 6, 34, dtype=dtype)
    first, second = np.split(f64(x), 2, dim)
    close(npu.npu_swiglu(x, dim), first / (1 + np.exp(-first)) * second, 1)


def test_swiglu_refuses(npu):
    refused("must be even", npu.npu_swiglu, torch.ones(2, 3).half())
    refused("has no dimension 2", npu.npu_swiglu, torch.ones(2, 4).half(), 2)
    refused("torch.int32 is not supported", npu.npu_swiglu, torch.ones(2, 4, dtype=torch.int32))
