"""Emulated mixture of experts: gating, sorting, grouped products and the way back, against NumPy and as one chain."""

import numpy as np
import pytest
import torch

from tests.support.ascend_calls import FLOATS, HALVES, close, codes, f64, normal, refused, same_alone
from tests.support.ascend_links import link

pytestmark = link(5, attention=False)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(11)


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def best(scores, k):
    return np.argsort(-scores, axis=-1, kind="stable")[:, :k]


@pytest.mark.parametrize("dtype", FLOATS)
def test_gating_top_k_softmax(npu, rng, dtype):
    x = normal(rng, 5, 12, dtype=dtype)
    x[1, 3:7] = 4.0  # equal scores: the lower experts first
    scores, experts, rows = npu.npu_moe_gating_top_k_softmax(x, None, 3)
    want = softmax(f64(x))
    assert np.array_equal(experts.numpy(), best(want, 3))
    assert experts[1].tolist() == [3, 4, 5]
    close(scores, np.take_along_axis(want, best(want, 3), -1), 12)
    assert rows.tolist() == [[token, token + 5, token + 10] for token in range(5)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm_type", [0, 1])
def test_gating_top_k(npu, rng, dtype, norm_type):
    x, bias = normal(rng, 5, 12, dtype=dtype), normal(rng, 12, dtype=dtype)
    options = {"bias": bias, "norm_type": norm_type, "routed_scaling_factor": 2.5}
    scores, experts, _ = npu.npu_moe_gating_top_k(x, 4, **options)
    every = 1 / (1 + np.exp(-f64(x))) if norm_type else softmax(f64(x))
    chosen = best(every + f64(bias), 4)
    assert np.array_equal(experts.numpy(), chosen)
    want = np.take_along_axis(every, chosen, -1)
    close(scores, 2.5 * (want / want.sum(-1, keepdims=True) if norm_type else want), 12)


def test_gating_refuses(npu, rng):
    x = normal(rng, 2, 8)
    refused("k must be from 1 to 8", npu.npu_moe_gating_top_k_softmax, x, None, 9)
    refused("k must be from 1 to 1024", npu.npu_moe_gating_top_k_softmax, normal(rng, 1, 2000), None, 1025)
    refused("finished is not emulated", npu.npu_moe_gating_top_k_softmax, x, torch.zeros(2, dtype=torch.bool), 2)
    refused("torch.int32 is not supported", npu.npu_moe_gating_top_k_softmax, x.int(), None, 2)
    refused("only x of 2 dimensions", npu.npu_moe_gating_top_k_softmax, x[None], None, 2)
    refused("at most 2048 experts", npu.npu_moe_gating_top_k, normal(rng, 1, 2049), 2)
    refused("group_count is not emulated", npu.npu_moe_gating_top_k, x, 2, k_group=1, group_count=2)
    refused("renorm is not emulated", npu.npu_moe_gating_top_k, x, 2, renorm=1)
    refused("bias must be torch.float16", npu.npu_moe_gating_top_k, x, 2, bias=torch.zeros(8))
    refused(r"bias must be \[8\]", npu.npu_moe_gating_top_k, x, 2, bias=torch.zeros(7).half())
    refused("norm_type must be 0 or 1", npu.npu_moe_gating_top_k, x, 2, norm_type=2)


def route(npu, x, experts, num_experts, active=None, **changed):
    options = {
        "active_num": experts.numel(), "expert_num": num_experts, "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": True, "active_expert_range": active or [0, num_experts], "quant_mode": -1,
        "row_idx_type": 0,
    }  # fmt: skip
    return npu.npu_moe_init_routing_v2(x, experts, **(options | changed))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8])
@pytest.mark.parametrize("active", [None, [1, 3]])
def test_init_routing(npu, rng, dtype, active):
    x = normal(rng, 3, 8).mul(9).to(dtype)
    experts = torch.tensor([[2, 0], [1, 2], [3, 1]], dtype=torch.int32)
    rows, places, counts, _ = route(npu, x, experts, 4, active)
    start, end = active or (0, 4)
    numbers = [number for expert in range(start, end) for number in range(6) if experts.reshape(-1)[number] == expert]
    assert torch.equal(rows[: len(numbers)], x[[number // 2 for number in numbers]])
    assert places.tolist() == [numbers.index(number) if number in numbers else -1 for number in range(6)]
    assert counts.tolist() == [int((experts == expert).sum()) for expert in range(start, end)]
    backwards = route(npu, x, experts, 4, active, row_idx_type=1)[1]
    assert backwards[: len(numbers)].tolist() == numbers


def test_init_routing_refuses(npu, rng):
    x, experts = normal(rng, 3, 8), torch.zeros(3, 2, dtype=torch.int32)
    refused("expert_idx must be int32", route, npu, x, experts.long(), 4)
    refused("active_num must be 6", route, npu, x, experts, 4, active_num=0)
    refused("expert_num must be from 1", route, npu, x, experts, 0, [0, 1])
    refused("expert_tokens_num_flag must be True", route, npu, x, experts, 4, expert_tokens_num_flag=False)
    refused("only expert_tokens_num_type 1", route, npu, x, experts, 4, expert_tokens_num_type=0)
    refused("only quant_mode -1", route, npu, x, experts, 4, quant_mode=1)
    refused("is not within the experts", route, npu, x, experts, 4, [0, 5])
    refused("experts must be from 0 to 3", route, npu, x, experts + 4, 4)
    refused("one number of rows", route, npu, x[:2], experts, 4)
    refused("scale is not emulated", route, npu, x, experts, 4, scale=torch.ones(3))
    refused("drop_pad_mode must be 0", route, npu, x, experts, 4, drop_pad_mode=1)
    refused("torch.int16 is not supported", route, npu, x.to(torch.int16), experts, 4)


def grouped(npu, x, w, sizes, kind=1, **changed):
    groups = torch.tensor(sizes if kind else np.cumsum(sizes), dtype=torch.int64)
    options = {"split_item": 2, "group_type": 0, "group_list_type": kind, "group_list": groups}
    return npu.npu_grouped_matmul([x], [w], **(options | changed))[0]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_grouped_matmul(npu, rng, dtype, kind):
    x, w = normal(rng, 7, 65, dtype=dtype), normal(rng, 4, 33, 65, dtype=dtype).transpose(1, 2)
    sizes = [2, 0, 4, 1]
    expert = np.repeat(np.arange(4), sizes)
    want = np.einsum("tk,tkn->tn", f64(x), f64(w)[expert])
    close(grouped(npu, x, w, sizes, kind), want, 65, magnitude=3 * np.abs(want).max())


@pytest.mark.parametrize(("depth", "width"), [(896, 1024), (257, 100), (64, 33)])
def test_rows_of_grouped_products_do_not_know_their_neighbours(npu, rng, depth, width):
    x, w = normal(rng, 9, depth, dtype=torch.float32), normal(rng, 2, depth, width, dtype=torch.float32)
    same_alone(lambda x: (grouped(npu, x, w, [0, len(x)]),), x)


@pytest.mark.parametrize(("dtype", "scale_dtype"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
@pytest.mark.parametrize("tokens", [True, False])
def test_grouped_matmul_of_int8(npu, rng, dtype, scale_dtype, tokens):
    x, w, sizes = codes(rng, 7, 65), codes(rng, 4, 65, 33), [2, 0, 4, 1]
    scale = (torch.rand(4, 33, generator=rng) / 1000).to(scale_dtype)
    per_token = torch.rand(7, generator=rng)
    more = {"per_token_scale": [per_token]} if tokens else {}
    got = grouped(npu, x, w, sizes, scale=[scale], output_dtype=dtype, **more)
    expert = np.repeat(np.arange(4), sizes)
    want = np.einsum("tk,tkn->tn", f64(x), f64(w)[expert]) * f64(scale)[expert]
    close(got, want * (f64(per_token)[:, None] if tokens else 1), 4)


def test_grouped_matmul_refuses(npu, rng):
    x, w, sizes = normal(rng, 3, 8), normal(rng, 2, 8, 4), [1, 2]
    refused("split_item must be 2 or 3", grouped, npu, x, w, sizes, split_item=0)
    refused("group_type must be 0", grouped, npu, x, w, sizes, group_type=-1)
    refused("the groups have 2 rows together, but x has 3", grouped, npu, x, w, [1, 1])
    refused("negative sizes", grouped, npu, x, w, [4, -1])
    refused(r"group_list must be \[2\]", grouped, npu, x, w, [3])
    refused("more than one element", grouped, npu, x, w[:1], [3])
    groups = torch.tensor([1, 2], dtype=torch.int32)
    refused("group_list must be int64", grouped, npu, x, w, sizes, group_list=groups)
    refused("weight must be torch.float16", grouped, npu, x, w.bfloat16(), sizes)
    refused("differ in K", grouped, npu, x, w[:, :4], sizes)
    refused("only int8 takes scales", grouped, npu, x, w, sizes, scale=[torch.ones(2, 4)])
    refused("must be torch.float16 as x is", grouped, npu, x, w, sizes, output_dtype=torch.bfloat16)
    refused("x must be contiguous", grouped, npu, normal(rng, 8, 3).t(), w, sizes)
    refused("bias is not emulated", grouped, npu, x, w, sizes, bias=[torch.ones(2, 4).half()])
    refused("only one x and one weight", npu.npu_grouped_matmul, [x, x], [w], split_item=2, group_type=0)
    refused("x must have 2 dimensions and weight 3", grouped, npu, x, w[0], sizes)
    qx, qw, scale = codes(rng, 3, 8), codes(rng, 2, 8, 4), torch.ones(2, 4)
    refused("int8 needs one scale", grouped, npu, qx, qw, sizes, output_dtype=torch.float16)
    refused("a result of torch.bfloat16 needs a scale of torch.bfloat16", grouped, npu, qx, qw, sizes,
            scale=[scale], output_dtype=torch.bfloat16)  # fmt: skip
    refused("a result of None", grouped, npu, qx, qw, sizes, scale=[scale])
    refused(r"scale must be \[2, 4\]", grouped, npu, qx, qw, sizes, scale=[scale[0]], output_dtype=torch.float16)
    refused("per_token_scale must be float32", grouped, npu, qx, qw, sizes, scale=[scale],
            per_token_scale=[torch.ones(3).half()], output_dtype=torch.float16)  # fmt: skip
    refused("weight must be int8", grouped, npu, qx, w, sizes, scale=[scale], output_dtype=torch.float16)


@pytest.mark.parametrize("dtype", FLOATS)
def test_token_unpermute(npu, rng, dtype):
    rows, probs = normal(rng, 6, 8, dtype=dtype), torch.rand(3, 2, generator=rng)
    order = torch.tensor([4, 0, 5, 2, 1, 3], dtype=torch.int32)
    want = (f64(rows)[order.numpy()].reshape(3, 2, 8) * f64(probs)[..., None]).sum(1)
    close(npu.npu_moe_token_unpermute(rows, order, probs=probs), want, 2, magnitude=4)
    assert torch.equal(npu.npu_moe_token_unpermute(rows, order), rows[order.long()])


def test_token_unpermute_refuses(npu, rng):
    rows, order = normal(rng, 4, 8), torch.arange(4, dtype=torch.int32)
    probs = torch.ones(2, 2).half()
    refused("must be int32", npu.npu_moe_token_unpermute, rows, order.long(), probs=probs)
    refused("each of 0 to 3 once", npu.npu_moe_token_unpermute, rows, order.clamp(0, 2), probs=probs)
    refused("each of 0 to 3 once", npu.npu_moe_token_unpermute, rows, order - 1, probs=probs)
    refused("probs must have 4 elements", npu.npu_moe_token_unpermute, rows, order, probs=probs[:1])
    refused("one index for each row", npu.npu_moe_token_unpermute, rows, order[:2], probs=probs[:1])
    refused("padded_mode is not emulated", npu.npu_moe_token_unpermute, rows, order, None, True)


def experts_layer(npu, x, gate, up, down):
    scores, experts, _ = npu.npu_moe_gating_top_k_softmax(gate, None, 2)
    rows, places, counts, _ = route(npu, x, experts, up.shape[0])
    options = {"split_item": 2, "group_type": 0, "group_list_type": 1, "group_list": counts}
    inner = npu.npu_swiglu(npu.npu_grouped_matmul([rows], [up], **options)[0])
    return npu.npu_moe_token_unpermute(npu.npu_grouped_matmul([inner], [down], **options)[0], places, probs=scores)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_layer_of_experts(npu, rng, dtype):
    x, gate = normal(rng, 9, 32, dtype=dtype), normal(rng, 9, 6, dtype=dtype)
    up, down = normal(rng, 6, 32, 48, dtype=dtype) / 6, normal(rng, 6, 24, 32, dtype=dtype) / 5
    got = experts_layer(npu, x, gate, up, down)
    scores = softmax(f64(gate))
    want = np.zeros((9, 32))
    for token in range(9):
        for expert in best(scores, 2)[token]:
            first, second = np.split(f64(x)[token] @ f64(up)[expert], 2)
            want[token] += scores[token, expert] * ((first / (1 + np.exp(-first)) * second) @ f64(down)[expert])
    # Four roundings to the dtype between operations, each of a sum of up to 32 terms of the largest magnitude.
    assert np.abs(f64(got) - want).max() <= 4 * np.sqrt(32) * torch.finfo(dtype).eps * np.abs(want).max()
    same_alone(lambda x, gate: (experts_layer(npu, x, gate, up, down),), x, gate)
