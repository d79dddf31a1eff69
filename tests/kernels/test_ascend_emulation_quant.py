"""Emulated int8: quantised rows, products and their scales against NumPy; storage formats; refusals."""

import numpy as np
import pytest
import torch

from tests.support.ascend_calls import HALVES, close, codes, f64, normal, refused, same_alone
from tests.support.ascend_links import link

pytestmark = link(5, attention=False)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("dtype", HALVES)
def test_dynamic_quant(npu, rng, dtype):
    x = normal(rng, 2, 3, 80, dtype=dtype)
    x[0, 1] = 0
    y, scale = npu.npu_dynamic_quant(x)
    want = np.abs(f64(x)).max(-1) / 127
    close(scale, want)
    assert not y[0, 1].any()
    ratio = np.divide(f64(x), want[..., None], where=want[..., None] > 0, out=np.zeros(x.shape))
    assert (np.abs(f64(y) - ratio) <= 0.5 + 1e-4).all()  # 127 float32 roundoffs at most
    assert np.abs(f64(y)).max() == 127


def test_dynamic_quant_rounds_half_to_even(npu):
    y, _ = npu.npu_dynamic_quant(torch.tensor([[127, 0.5, 1.5, 2.5, -0.5]]).half())
    assert y.tolist() == [[127, 0, 2, 2, 0]]


def test_dynamic_quant_refuses(npu, rng):
    x = normal(rng, 2, 8)
    refused("torch.float32 is not supported", npu.npu_dynamic_quant, x.float())
    refused("more than 1 dimension", npu.npu_dynamic_quant, x[0])
    refused("smooth_scales is not emulated", npu.npu_dynamic_quant, x, smooth_scales=x[0])
    refused("only int8", npu.npu_dynamic_quant, x, dst_type=torch.quint4x2)
    refused("empty", npu.npu_dynamic_quant, x[:0])


@pytest.mark.parametrize(
    ("result", "scale_dtype", "tokens", "bias_dtype"),
    [
        (torch.bfloat16, torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, torch.float32, False, torch.int32),
        (torch.bfloat16, torch.float32, True, torch.float32),
        (torch.float16, torch.float32, True, torch.float16),
        (torch.float16, torch.float32, False, torch.int32),
        (torch.int32, torch.float32, False, torch.int32),
        (torch.float16, torch.float32, True, None),
    ],
)
def test_quant_matmul(npu, rng, result, scale_dtype, tokens, bias_dtype):
    x, w = codes(rng, 5, 300), codes(rng, 40, 300).t()
    scale = (torch.rand(40, generator=rng) / 1000).to(scale_dtype)
    per_token = torch.rand(5, generator=rng) if tokens else None
    bias = None if bias_dtype is None else (normal(rng, 40) * 10).to(bias_dtype)
    got = npu.npu_quant_matmul(x, w, scale, pertoken_scale=per_token, bias=bias, output_dtype=result)
    want = f64(x) @ f64(w) + (f64(bias) if bias_dtype == torch.int32 else 0)
    if result == torch.int32:
        assert np.array_equal(got.numpy(), want)
        return
    want = want * f64(scale) * (f64(per_token)[:, None] if tokens else 1)
    want = want + (f64(bias) if bias_dtype not in {None, torch.int32} else 0)
    close(got, want, 4)


def test_quant_matmul_refuses(npu, rng):
    x, w, scale, tokens = codes(rng, 2, 32), codes(rng, 32, 8), torch.rand(8), torch.rand(2)
    half = {"output_dtype": torch.float16}
    call = npu.npu_quant_matmul
    refused("must be int8", call, x.half(), w, scale, **half)
    refused("do not share K", call, x, w[:16], scale, **half)
    refused(r"scale must be \[1\] or \[8\]", call, x, w, scale[:4], **half)
    refused(r"pertoken_scale must be \[2\]", call, x, w, scale, pertoken_scale=tokens[:1], **half)
    refused("pertoken_scale must be float32", call, x, w, scale, pertoken_scale=tokens.half(), **half)
    refused("scale of torch.bfloat16", call, x, w, scale.bfloat16(), **half)
    refused("scale of torch.float16", call, x, w, scale.half(), output_dtype=torch.bfloat16)
    refused("bias of torch.float16", call, x, w, scale, bias=scale.half(), output_dtype=torch.bfloat16)
    refused("bias of torch.float32", call, x, w, scale, bias=scale, **half)  # a float bias wants pertoken_scale
    refused("takes no pertoken_scale", call, x, w, scale, pertoken_scale=tokens, output_dtype=torch.int32)
    refused("result of torch.int8 is not emulated", call, x, w, scale)
    refused("result of torch.float32 is not emulated", call, x, w, scale, output_dtype=torch.float32)
    refused(
        "must not exceed 65535, but are 65536, 1", call, codes(rng, 1, 65536), codes(rng, 65536, 1), scale[:1], **half
    )
    refused("must not exceed 65535, but are 1, 65536", call, x[:, :1], codes(rng, 1, 65536), scale[:1], **half)
    assert call(x[:, :1], codes(rng, 1, 65535), scale[:1], **half).shape == (2, 65535)
    refused("empty", call, x[:0], w, scale, **half)
    refused("only x1 and x2 of 2 dimensions", call, x[None], w, scale, **half)


def test_rows_of_products_do_not_know_their_neighbours(npu, rng):
    x, w, scale = codes(rng, 9, 257), codes(rng, 257, 33), torch.rand(33, generator=rng)
    tokens = torch.rand(9, generator=rng)
    product = npu.npu_quant_matmul
    same_alone(lambda x, t: (product(x, w, scale, pertoken_scale=t, output_dtype=torch.bfloat16),), x, tokens)


def test_format_cast(npu, rng):
    w = codes(rng, 32, 64)
    npu.npu.config.allow_internal_format = True
    nz = npu.npu_format_cast(w, 29)
    formats = [int(npu.get_npu_format(tensor)) for tensor in (w, nz, nz.t(), nz.clone(), npu.npu_format_cast(nz, 2))]
    assert formats == [2, 29, 29, 2, 2]
    assert torch.equal(nz, w)
    assert nz.data_ptr() != w.data_ptr()
    scale = torch.rand(64, generator=rng)
    results = [npu.npu_quant_matmul(w[:1, :32], x, scale, output_dtype=torch.bfloat16) for x in (w, nz)]
    assert torch.equal(*results)


def test_format_cast_refuses(npu, rng):
    w = normal(rng, 32, 64)
    npu.npu.config.allow_internal_format = True
    refused("format 4 is not emulated", npu.npu_format_cast, w, 4)
    refused("torch.float32 cannot be in FRACTAL_NZ", npu.npu_format_cast, w.float(), 29)
    refused("must be contiguous", npu.npu_format_cast, w.t(), 29)
    refused("at least 2 dimensions", npu.npu_format_cast, w[0], 29)
    nz = npu.npu_format_cast(torch.zeros(2, 16, 2, 16).half(), 29)
    slots = torch.zeros(1, dtype=torch.int32)
    rows = torch.ones(1, 2, 16).half()
    refused("must be in ND", npu.npu_scatter_pa_kv_cache, rows, rows, nz, nz.clone(), slots, cache_mode="Norm")


def test_formats_are_not_cast_unless_allowed(npu, rng):
    npu.npu.config.allow_internal_format = False
    with pytest.warns(RuntimeWarning, match="allow_internal_format is not True"):
        got = npu.npu_format_cast(codes(rng, 16, 32), 29)
    assert int(npu.get_npu_format(got)) == 2
