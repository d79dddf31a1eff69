"""The emulated paged cache: where rows go, and refusals."""

import pytest
import torch

from tests.support.ascend_calls import HALVES, normal, refused
from tests.support.ascend_links import link

pytestmark = link(5, attention=False)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


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


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [*HALVES, torch.int8])
def test_scatter_nd_update_(npu, rng, dtype, index_dtype):
    rows, stored = normal(rng, 3, 2, 16).mul(20).to(dtype), torch.full((64, 2, 16), 1, dtype=dtype)
    want = stored.clone()
    for row, place in zip(rows, (63, 0, 17), strict=True):
        want[place] = row
    assert npu.npu_scatter_nd_update_(stored, torch.tensor([[63], [0], [17]], dtype=index_dtype), rows) is stored
    assert torch.equal(stored, want)


def test_scatter_nd_update_refuses(npu, rng):
    rows = normal(rng, 2, 2, 16)

    def call(stored=None, places=((1,), (2,)), updates=rows, dtype=torch.int32):
        stored = torch.zeros(32, 2, 16).half() if stored is None else stored
        npu.npu_scatter_nd_update_(stored, torch.tensor(places, dtype=dtype), updates)

    refused("one dtype", call, updates=rows.bfloat16())
    refused(r"updates must be \[2, 2, 16\]", call, updates=rows[:1])
    refused("int32 or int64", call, dtype=torch.int16)
    refused("one column", call, places=((1, 2), (3, 4)))
    refused("from 0 to 31", call, places=((0,), (32,)))
    refused("from 0 to 31", call, places=((0,), (-1,)))
    refused("written twice", call, places=((4,), (4,)))
    refused("float64 is not supported", call, stored=torch.zeros(32, 2, 16).double())
