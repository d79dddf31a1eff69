"""What holds for all emulated operations: rows without neighbours, and the layer of checks around a call."""

import threading

import pytest
import torch

from tests.support.ascend_calls import normal, refused, same_alone
from tests.support.ascend_links import link
from tools.ascend.emulation import CallRecord, EmulationMismatch, install, operators, registry

pytestmark = link(5, attention=False)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


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


def test_all_operations_are_there(npu):
    assert operators() == (
        "get_npu_format", "npu_add_rms_norm", "npu_dynamic_quant", "npu_format_cast",
        "npu_fused_infer_attention_score", "npu_grouped_matmul", "npu_moe_gating_top_k", "npu_moe_gating_top_k_softmax",
        "npu_moe_init_routing_v2", "npu_moe_token_unpermute", "npu_quant_matmul", "npu_rms_norm", "npu_rotary_mul",
        "npu_scatter_nd_update_", "npu_scatter_pa_kv_cache", "npu_swiglu", "npu_top_k_top_p",
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
