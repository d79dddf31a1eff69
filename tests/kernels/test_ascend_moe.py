"""Link 5: a layer whose only expert is products of all rows, since npu_grouped_matmul takes no list of one size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.ascend.backend import ops_on
from kernels.ascend.linear import Linears
from kernels.ascend.moe import Experts
from kernels.ascend.parallel import Ranks
from kernels.formats import WeightFormat
from kernels.ops import BackendOptions, Parallel
from kernels.reference.dequant import dequantise
from kernels.spec import deviation, f32_tensor, random_tensor
from kernels.specs.products import MOE
from tests.kernels.test_ascend_parity import INT8_STEP, ROUNDINGS, UNIT
from tests.support.ascend_links import link
from tools.ascend.emulation import CallRecord
from tools.ascend.emulation.platform import emulated_platform

pytestmark = link(5, attention=False)

HIDDEN, INNER, ROWS = 64, 48, 9


def inputs_in(kind, seed=0):
    """Of a layer with one expert, as ``MOE`` has them."""
    rng = np.random.default_rng(seed)
    shapes = {"gate": (1, INNER, HIDDEN), "up": (1, INNER, HIDDEN), "down": (1, HIDDEN, INNER), "router": (1, HIDDEN)}
    weights = {name: random_tensor(rng, shape, kind) for name, shape in shapes.items()}
    return weights | {"x": rng.standard_normal((ROWS, HIDDEN), dtype=np.float32), "top_k": 1, "normalise": False}


@pytest.mark.parametrize("kind", [WeightFormat.F32, WeightFormat.W8A8])
@pytest.mark.parametrize("dtype", UNIT)
def test_the_only_expert_has_all_rows(dtype, kind):
    ops, inputs = ops_on(emulated_platform(), BackendOptions(dtype=dtype)), inputs_in(kind)
    with CallRecord() as calls:
        got = MOE.run(ops, inputs)
    share = MOE.tolerance.limit(inputs, ops.info.arithmetic) + ROUNDINGS * UNIT[dtype]
    limit = share + (INT8_STEP if kind is WeightFormat.W8A8 else 0)
    assert deviation(got.astype(np.float64), MOE.oracle(inputs, ops.info.arithmetic)) <= limit
    assert "npu_grouped_matmul" not in calls.called
    for rows in ([3], [8, 0]):
        np.testing.assert_array_equal(MOE.run(ops, inputs | {"x": inputs["x"][rows]}), got[rows])


class Second(Ranks):
    """The second of two ranks; what the first has is given."""

    def __init__(self, first):
        super().__init__(None, Parallel(1, 2, ""))
        self._first = first

    def _gather(self, x):
        return torch.stack([self._first, x])


def part_of(raw, index):
    return f32_tensor(dequantise(raw)[index])


def test_the_only_expert_of_two_ranks_is_the_sum_of_their_halves():
    inputs, platform, half = inputs_in(WeightFormat.F32), emulated_platform(), INNER // 2

    def run(part, ranks=None):
        linears = Linears(platform, torch.float16, ranks)
        gate, up = (part_of(inputs[name], np.s_[:, part]) for name in ("gate", "up"))
        experts = Experts(platform, torch.float16, linears, ranks)
        prepared = experts.prepare_experts(gate, up, part_of(inputs["down"], np.s_[:, :, part]))
        router = linears.prepare_linear([inputs["router"]], None)
        return experts.moe(torch.from_numpy(inputs["x"]).half(), router, prepared, 1, True)

    first, second, whole = run(np.s_[:half]), run(np.s_[half:]), run(np.s_[:])
    together = run(np.s_[half:], Second(first))
    assert torch.equal(together, (first.float() + second.float()).half())
    assert (together - whole).abs().max() <= 4 * UNIT["float16"] * whole.abs().max()
