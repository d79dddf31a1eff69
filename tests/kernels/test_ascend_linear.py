"""Link 5: what npu_quant_matmul takes. W8A8 weights of more outputs are several, of more inputs refused; no rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.ascend.backend import ops_on
from kernels.ascend.linear import MAX_INPUTS, MAX_OUTPUTS, Linears
from kernels.formats import RawTensor, WeightFormat
from kernels.ops import BackendOptions, NoKernel
from kernels.spec import f32_tensor, random_tensor
from tests.kernels.test_ascend_moe import Second
from tests.support.ascend_links import link
from tools.ascend.emulation import CallRecord
from tools.ascend.emulation.platform import emulated_platform

pytestmark = link(5, attention=False)

INNER, ROWS = 32, 5
LARGE = 2 * MAX_OUTPUTS + 100


@pytest.fixture(scope="module")
def ops():
    return ops_on(emulated_platform(), BackendOptions(dtype="float16"))


@pytest.fixture(scope="module")
def large():
    return random_tensor(np.random.default_rng(0), (LARGE, INNER), WeightFormat.W8A8)


def rows_of(weight: RawTensor, chosen: slice) -> RawTensor:
    data = weight.data[chosen]
    return RawTensor((len(data), *weight.shape[1:]), weight.format, data)


def tokens(seed=0):
    return np.random.default_rng(seed).standard_normal((ROWS, INNER)).astype(np.float32)


def outputs_of(prepared):
    return [part.outputs for part in prepared.parts]


@pytest.mark.parametrize("start", [0, MAX_OUTPUTS - 50, 2 * MAX_OUTPUTS, LARGE - 7])
def test_outputs_are_those_of_any_part_alone(ops, large, start):
    prepared, x = ops.prepare_linear([large], None), ops.memory.upload(tokens())
    assert outputs_of(prepared) == [MAX_OUTPUTS, MAX_OUTPUTS, 100]
    with CallRecord() as calls:
        got = ops.memory.download(ops.linear(x, prepared))
    assert calls.counts == {"npu_dynamic_quant": 1, "npu_quant_matmul": 3}
    some = ops.prepare_linear([rows_of(large, slice(start, start + 100))], None)
    assert len(some.parts) == 1
    assert got.shape == (ROWS, LARGE)
    np.testing.assert_array_equal(got[:, start : start + 100], ops.memory.download(ops.linear(x, some)))


def test_logits_of_a_large_vocabulary(ops, large):
    x, rows = ops.memory.upload(tokens()), np.array([4, 1], dtype=np.int32)
    prepared = ops.prepare_linear([large], None, split="vocabulary")
    got = ops.memory.download(ops.logits(x, ops.memory.upload(rows), prepared))
    np.testing.assert_array_equal(got, ops.memory.download(ops.linear(x, prepared)).astype(np.float32)[rows])


def test_several_weights_side_by_side_with_floats_and_biases(ops):
    """Gate and up, as it were, each of which fits: together they do not."""
    rng = np.random.default_rng(1)
    kinds = (WeightFormat.W8A8, WeightFormat.W8A8, WeightFormat.F32)
    weights = [random_tensor(rng, (40_000, INNER), kind) for kind in kinds]
    biases = [f32_tensor(rng.standard_normal(40_000).astype(np.float32)) for _ in weights]
    x, together = ops.memory.upload(tokens()), ops.prepare_linear(weights, biases)
    assert outputs_of(together) == [MAX_OUTPUTS, 80_000 - MAX_OUTPUTS, 40_000]
    pairs = zip(weights, biases, strict=True)
    alone = [ops.memory.download(ops.linear(x, ops.prepare_linear([w], [b]))) for w, b in pairs]
    np.testing.assert_array_equal(ops.memory.download(ops.linear(x, together)), np.concatenate(alone, axis=1))


def test_a_share_of_the_inputs_likewise(large):
    """What two processes add up: the second has as many columns, all 0, and a largest number of its own."""
    platform = emulated_platform()
    x = torch.from_numpy(tokens()).half()
    most = 2 * x.abs().amax(-1, keepdim=True)
    sums = [torch.zeros(ROWS, n, dtype=torch.int32) for n in (MAX_OUTPUTS, MAX_OUTPUTS, 100)]
    ranks = Second(None)
    given = iter([most, *sums])
    ranks._gather = lambda mine: torch.stack([next(given), mine])
    shared = Linears(platform, torch.float16, ranks)
    got = shared.linear(x, shared.prepare_linear([large], None, split="inputs"))
    alone = Linears(platform, torch.float16)
    wider = torch.cat([x, most], dim=1)
    zeros = np.concatenate([large.data, np.zeros((LARGE, 1), dtype=np.uint8)], axis=1)
    whole = RawTensor((LARGE, INNER + 1), WeightFormat.W8A8, zeros)
    assert torch.equal(got, alone.linear(wider, alone.prepare_linear([whole], None)))


@pytest.mark.parametrize("kinds", [[WeightFormat.W8A8], [WeightFormat.F32], [WeightFormat.W8A8, WeightFormat.F32]])
def test_logits_of_no_rows(ops, kinds):
    """In the middle of a prompt."""
    prepared = ops.prepare_linear([random_tensor(np.random.default_rng(4), (7, INNER), kind) for kind in kinds], None)
    got = ops.logits(ops.memory.upload(tokens()), ops.memory.upload(np.zeros(0, dtype=np.int32)), prepared)
    assert ops.memory.download(got).shape == (0, 7 * len(kinds))


@pytest.mark.parametrize("split", ["none", "outputs", "inputs"])
def test_too_many_inputs_are_refused_with_the_way_out(ops, split):
    def weight(inputs):
        return random_tensor(np.random.default_rng(2), (3, inputs), WeightFormat.W8A8)

    ops.prepare_linear([weight(MAX_INPUTS)], None, split=split)
    with pytest.raises(NoKernel, match=r"65,536 inputs in W8A8.*65,535 at most.* --quantization none$") as caught:
        ops.prepare_linear([weight(MAX_INPUTS + 1)], None, split=split)
    assert ("raise --tensor-parallel-size" in str(caught.value)) == (split == "inputs")


def test_floats_of_as_many_inputs_are_served(ops):
    rng = np.random.default_rng(3)
    prepared = ops.prepare_linear([f32_tensor(rng.standard_normal((3, 70_000)).astype(np.float32))], None)
    x = ops.memory.upload(np.ones((1, 70_000), dtype=np.float32))
    assert ops.memory.download(ops.linear(x, prepared)).shape == (1, 3)
