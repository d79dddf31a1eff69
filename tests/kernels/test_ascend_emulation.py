"""Emulated torch_npu operations: results against NumPy, refusals, rows, and the checks around a call."""

import threading

import numpy as np
import pytest
import torch

from tests.support.ascend_calls import FLOATS, HALVES, close, codes, f64, normal, refused, same_alone
from tests.support.ascend_links import link
from tools.ascend.emulation import CallRecord, EmulationMismatch, install, operators, registry

pytestmark = link(5)


@pytest.fixture(scope="module", autouse=True)
def npu():
    install()
    import torch_npu

    return torch_npu


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


# Rows: normalisation, rotation, gate.


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
    cos, sin = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
    turned = np.concatenate((-f64(x)[..., 16:], f64(x)[..., :16]), -1)
    close(npu.npu_rotary_mul(x, cos, sin), f64(cos) * f64(x) + f64(sin) * turned, 2)


def test_rotary_mul_refuses(npu, rng):
    x, r = normal(rng, 1, 4, 2, 32), normal(rng, 1, 4, 1, 32)
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


# int8.


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
    refused("must not exceed 65535", call, codes(rng, 1, 65536), codes(rng, 65536, 1), scale[:1], **half)
    refused("empty", call, x[:0], w, scale, **half)
    refused("only x1 and x2 of 2 dimensions", call, x[None], w, scale, **half)


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


# The paged cache.


@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [*HALVES, torch.int8])
def test_scatter_pa_kv_cache(npu, rng, dtype, slot_dtype):
    key, value = (normal(rng, 3, 2, dim).mul(20).to(dtype) for dim in (16, 8))
    keys, values = torch.full((4, 16, 2, 16), 1, dtype=dtype), torch.full((4, 16, 2, 8), 2, dtype=dtype)
    slots = torch.tensor([63, 0, 17], dtype=slot_dtype)
    want = [tensor.clone() for tensor in (keys, values)]
    for index, slot in enumerate(slots.tolist()):
        want[0][slot // 16, slot % 16], want[1][slot // 16, slot % 16] = key[index], value[index]
    assert npu.npu_scatter_pa_kv_cache(key, value, keys, values, slots, cache_mode="Norm") is None
    assert torch.equal(keys, want[0])
    assert torch.equal(values, want[1])


def test_scatter_pa_kv_cache_refuses(npu, rng):
    key, cache = normal(rng, 2, 2, 16), torch.zeros(2, 16, 2, 16).half()
    slots = torch.tensor([1, 2], dtype=torch.int32)

    def call(key=key, value=key, keys=cache, values=cache, slots=slots, mode="Norm"):
        npu.npu_scatter_pa_kv_cache(key, value, keys, values, slots, cache_mode=mode)

    refused("wants caches in PA_NZ", call, mode="PA_NZ")
    refused("key must be contiguous", call, key=normal(rng, 2, 2, 32)[..., ::2])
    refused("one dtype", call, value=key.bfloat16())
    refused("share tokens and heads", call, value=key[:1])
    refused(r"key_cache must be \[2, 16, 2, 16\]", call, keys=torch.zeros(2, 16, 2, 8).half())
    refused("int32 or int64", call, slots=slots.to(torch.int16))
    refused(r"slot_mapping must be \[2\]", call, slots=slots[:1])
    refused("slots must be from 0 to 31", call, slots=torch.tensor([0, 32], dtype=torch.int32))
    refused("slots must be from 0 to 31", call, slots=torch.tensor([0, -1], dtype=torch.int32))
    refused("written twice", call, slots=torch.tensor([4, 4], dtype=torch.int32))
    refused("of 3 dimensions", call, key=key[None], value=key[None])


# Sampling.


def top_k_top_p(logits, p, k):
    """The documented steps, one row, float64."""
    order = np.argsort(logits, kind="stable")
    values = logits[order].copy()
    if k is not None:
        values[values < values[-k]] = -np.inf
    if p is not None:
        exponentials = np.exp(values - values.max())
        dropped = np.cumsum(exponentials / exponentials.sum()) <= 1 - p
        dropped[-1] = False
        values[dropped] = -np.inf
    result = np.empty_like(values)
    result[order] = values
    return result


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kinds", ["pk", "p", "k"])
def test_top_k_top_p(npu, rng, dtype, kinds):
    logits = normal(rng, 5, 200, dtype=dtype)
    logits[3, :100] = logits[3, 100]  # ties
    p = torch.tensor([0.0, 0.3, 0.9, 0.5, 1.0], dtype=dtype) if "p" in kinds else None
    k = torch.tensor([1, 5, 150, 50, 200], dtype=torch.int32) if "k" in kinds else None
    got = npu.npu_top_k_top_p(logits, p, k)
    for index, row in enumerate(f64(logits)):
        want = top_k_top_p(row, None if p is None else float(p[index]), None if k is None else int(k[index]))
        assert np.array_equal(f64(got)[index], want)


def test_a_probability_of_exactly_the_threshold_is_dropped(npu):
    got = npu.npu_top_k_top_p(torch.zeros(1, 64), torch.tensor([0.5]))
    assert got.tolist() == [[-np.inf] * 32 + [0.0] * 32]


def test_top_k_top_p_refuses(npu, rng):
    logits, p, k = normal(rng, 2, 2000), torch.ones(2).half(), torch.ones(2, dtype=torch.int32)
    refused("cannot both be None", npu.npu_top_k_top_p, logits)
    refused("p must be torch.float16", npu.npu_top_k_top_p, logits, p.float(), k)
    refused("k must be int32", npu.npu_top_k_top_p, logits, p, k.long())
    refused("k must be from 1 to 1024", npu.npu_top_k_top_p, logits, p, k + 1024)
    refused("k must be from 1 to 8", npu.npu_top_k_top_p, logits[:, :8], p, k + 8)
    refused("p must be from 0 to 1", npu.npu_top_k_top_p, logits, p + 1, k)
    refused(r"p must be \[2\]", npu.npu_top_k_top_p, logits, p[:1], k)
    refused("must have 2 dimensions", npu.npu_top_k_top_p, logits[0], p, k)


# All rows.


@pytest.mark.parametrize("width", [33, 896, 40_000])
def test_rows_do_not_know_their_neighbours(npu, rng, width):
    x, residual = normal(rng, 9, width), normal(rng, 9, width)
    gamma, pairs = normal(rng, width), normal(rng, 9, 2 * width)
    same_alone(lambda x: npu.npu_rms_norm(x, gamma), x)
    same_alone(lambda x, y: npu.npu_add_rms_norm(x, y, gamma), x, residual)
    same_alone(lambda x: (npu.npu_swiglu(x),), pairs)
    same_alone(npu.npu_dynamic_quant, x)
    p, k = torch.full((9,), 0.7).half(), torch.full((9,), 30, dtype=torch.int32)
    same_alone(lambda x, p, k: (npu.npu_top_k_top_p(x, p, k),), x, p, k)


def test_rows_of_products_do_not_know_their_neighbours(npu, rng):
    x, w, scale = codes(rng, 9, 257), codes(rng, 257, 33), torch.rand(33, generator=rng)
    tokens = torch.rand(9, generator=rng)
    product = npu.npu_quant_matmul
    same_alone(lambda x, t: (product(x, w, scale, pertoken_scale=t, output_dtype=torch.bfloat16),), x, tokens)


# The layer around a call.


def test_all_operations_are_there(npu):
    assert operators() == (
        "get_npu_format", "npu_add_rms_norm", "npu_dynamic_quant", "npu_format_cast",
        "npu_fused_infer_attention_score", "npu_grouped_matmul", "npu_moe_gating_top_k", "npu_moe_gating_top_k_softmax",
        "npu_moe_init_routing_v2", "npu_moe_token_unpermute", "npu_quant_matmul", "npu_rms_norm", "npu_rotary_mul",
        "npu_scatter_pa_kv_cache", "npu_swiglu", "npu_top_k_top_p",
    )  # fmt: skip
    install()


def test_a_record_counts_calls_in_every_thread(npu):
    x = torch.ones(2, 4).half()
    with CallRecord() as outer:
        npu.npu_swiglu(x)
        with CallRecord() as inner:
            thread = threading.Thread(target=npu.npu_swiglu, args=(x,))
            thread.start()
            thread.join()
            refused("must be even", npu.npu_swiglu, x[:, :3])
    npu.npu_swiglu(x)
    assert (outer.counts, inner.counts) == ({"npu_swiglu": 2}, {"npu_swiglu": 1})
    assert outer.refused == inner.refused == {"npu_swiglu": 1}
    assert outer.called == {"npu_swiglu"}


def checked(name, emulation, *args, **kwargs):
    return registry.SchemaChecked(registry.overload_of(name), emulation)(*args, **kwargs)


def test_a_wrong_emulation_does_not_pass(npu):
    x, gamma = torch.ones(2, 4).half(), torch.ones(4).half()

    def mismatch(reason, name, emulation, *args):
        with pytest.raises(EmulationMismatch, match=reason):
            checked(name, emulation, *args)

    def norm(result):
        return lambda input, gamma, epsilon: result(input)

    rstd = torch.ones(2, 1)
    assert len(checked("npu_rms_norm", norm(lambda x: (x.clone(), rstd)), x, gamma)) == 2
    mismatch("result 0 is torch.float32", "npu_rms_norm", norm(lambda x: (x.float(), rstd)), x, gamma)
    mismatch(r"result 1 is torch.float32\[2\]", "npu_rms_norm", norm(lambda x: (x, rstd[:, 0])), x, gamma)
    mismatch("1 results, but its schema has 2", "npu_rms_norm", norm(lambda x: x), x, gamma)
    mismatch("writes to input", "npu_swiglu", lambda input, dim: input.mul_(2)[:, :2].clone(), x)
    groups = torch.tensor([1, 1])

    def nothing(x, weight, group_list, split_item, group_type, group_list_type):
        return []

    named = {"group_list": groups, "split_item": 2, "group_type": 0, "group_list_type": 1}
    with pytest.raises(EmulationMismatch, match="0 results, but its meta kernel has 1"):
        checked("npu_grouped_matmul", nothing, [x], [torch.ones(2, 4, 3).half()], **named)


def test_meta_kernels_of_their_own_refusals_hold(npu):
    """What torch_npu itself refuses on shapes alone stays refused, whatever an emulation would do."""
    with pytest.raises(RuntimeError, match="the x shape support only 2d"):
        checked("npu_moe_gating_top_k", lambda x, k: [torch.empty(0)] * 3, torch.ones(2, 2, 2), 1)


def test_defaults_are_those_of_the_schema(npu):
    seen = {}

    def emulation(input, gamma, epsilon):
        seen.update(epsilon=epsilon)
        return input.clone(), torch.ones(2, 1)

    checked("npu_rms_norm", emulation, torch.ones(2, 4), torch.ones(4))
    assert seen == {"epsilon": 1e-6}
