"""Native operations on up to several bands of rows: each row is, bit for bit, what it is alone on one thread."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu.abi import Op
from kernels.formats import WeightFormat
from kernels.ops import AttentionBatch, BackendOptions, StepInputs, StepLimits
from kernels.resolve import BACKENDS
from kernels.spec import f32_tensor, random_tensor
from kernels.specs import ALL_SPECS
from tests.support.backends import DEVICES

pytestmark = pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")

RUN = {spec.name: spec.run for spec in ALL_SPECS}
BORDERS = (255, 256, 257, 300, 511, 512, 513, 600)
"""About the 256 rows of a band (``kBandRows`` of ``linear.hpp``)."""
row_counts = st.one_of(st.integers(1, 30), st.integers(1, 600), st.sampled_from(BORDERS))
seeds = st.integers(0, 2**32)
threads_of = st.integers(1, 3)


@cache
def one_thread():
    return BACKENDS["cpu"](BackendOptions(threads=1))


def activations(rng, num_rows, columns):
    """Ordinary numbers, and some far greater: such blocks are kept in two planes."""
    x = rng.standard_normal((num_rows, columns)).astype(np.float32)
    x[rng.random(x.shape) < 0.01] *= 20
    return x


def columns_of(rng, fmt):
    return fmt.block_elements * int(rng.integers(1, 4 if fmt.block_elements > 32 else 1 + 640 // fmt.block_elements))


def linear_inputs(rng, fmt, num_rows):
    columns, biased = columns_of(rng, fmt), bool(rng.integers(2))
    parts = [random_tensor(rng, (int(rng.integers(1, 50)), columns), each) for each in (fmt, WeightFormat.F32)]
    biases = [f32_tensor(rng.standard_normal(part.shape[0])) for part in parts] if biased else None
    return {"x": activations(rng, num_rows, columns), "weights": parts, "biases": biases}, ("x",)


def logits_inputs(rng, fmt, num_rows):
    columns = columns_of(rng, fmt)
    weight = random_tensor(rng, (int(rng.integers(1, 80)), columns), fmt)
    rows = np.arange(num_rows, dtype=np.int32)
    return {"x": activations(rng, num_rows, columns), "rows": rows, "weight": weight}, ("rows",)


def gated_inputs(rng, fmt, num_rows):
    columns, width = columns_of(rng, fmt), 32 * int(rng.integers(1, 4))
    weight = random_tensor(rng, (2 * width, columns), fmt)
    return {"x": activations(rng, num_rows, columns), "weight": weight}, ("x",)


def moe_inputs(rng, fmt, num_rows):
    """Most tokens go to the first expert: it has rows for several bands."""
    hidden, num_experts = max(64, fmt.block_elements), 4
    inner = int(rng.integers(1, 65)) if fmt.block_elements == 1 else fmt.block_elements
    router = rng.standard_normal((num_experts, hidden)) / np.sqrt(hidden)
    x = activations(rng, num_rows, hidden)
    x += (0.5 * router[0]).astype(np.float32)
    up, down = (num_experts, inner, hidden), (num_experts, hidden, inner)
    return {
        "x": x, "router": f32_tensor(router), "top_k": int(rng.integers(1, 4)), "normalise": bool(rng.integers(2)),
        "gate": random_tensor(rng, up, fmt), "up": random_tensor(rng, up, fmt), "down": random_tensor(rng, down, fmt),
    }, ("x",)  # fmt: skip


def embed_inputs(rng, fmt, num_rows):
    ids = rng.integers(0, 40, num_rows).astype(np.int32)
    return {"ids": ids, "weight": random_tensor(rng, (40, columns_of(rng, fmt)), fmt)}, ("ids",)


def norm_inputs(rng, num_rows):
    shape = [(70,), (576,), (3, 64)][int(rng.integers(3))]
    x = activations(rng, num_rows, int(np.prod(shape))).reshape(num_rows, *shape)
    return {"x": x, "weight": random_tensor(rng, shape[-1:], WeightFormat.F32), "eps": 1e-5}, ("x",)


def add_norm_inputs(rng, num_rows):
    x, residual = (activations(rng, num_rows, 130) for _ in range(2))
    weight = random_tensor(rng, (130,), WeightFormat.F32)
    return {"x": x, "residual": residual, "weight": weight, "eps": 1e-5}, ("x", "residual")


def rope_inputs(rng, num_rows):
    x = rng.standard_normal((num_rows, 3, 40)).astype(np.float32)
    positions = rng.integers(0, 4096, num_rows).astype(np.int32)
    inv_freq = 1e4 ** (-np.arange(0, 40, 2) / 40)
    return {"x": x, "positions": positions, "inv_freq": inv_freq, "scale": 1.0}, ("x", "positions")


def silu_inputs(rng, num_rows):
    return {"x": activations(rng, num_rows, 2 * int(rng.integers(1, 200)))}, ("x",)


def gated_product(ops, i):
    """silu_mul of a product, as a recorded step has it: in one call, whose result leaves through a matrix of ones."""
    table, weight = ops.prepare_linear([f32_tensor(i["x"])], None), ops.prepare_linear([i["weight"]], None)
    ones = ops.prepare_linear([f32_tensor(np.eye(i["weight"].shape[0] // 2))], None)

    def forward(inputs):
        gated = ops.silu_mul(ops.linear(ops.embed(inputs.token_ids, table), weight))
        return ops.logits(gated, inputs.logit_rows, ones)

    ids = np.arange(len(i["x"]), dtype=np.int32)
    step = ops.record(forward, StepLimits(len(ids), len(ids), len(ids)))
    assert Op.SILU_LINEAR in step.program.ops
    batch = AttentionBatch(np.array([0, len(ids)], dtype=np.int32), ids[:1], ids[None, :1])
    return step(StepInputs(ids, ids, ids, batch, ids)).logits


RUN["gated product"] = gated_product
OF_WEIGHTS = {
    "linear": linear_inputs,
    "logits": logits_inputs,
    "gated product": gated_inputs,
    "moe": moe_inputs,
    "embed": embed_inputs,
}
OF_ROWS = {"rms_norm": norm_inputs, "add_rms_norm": add_norm_inputs, "rope": rope_inputs, "silu_mul": silu_inputs}


def check(name, inputs, row_wise, threads, rng):
    """All rows together on some threads, whose pool is new (one that had to wait may rest); then some rows alone."""
    run = RUN[name]
    whole = run(BACKENDS["cpu"](BackendOptions(threads=threads)), inputs)
    num_rows = len(inputs[row_wise[0]])
    assert whole.shape[0] == num_rows
    assert np.isfinite(whole).all()
    for row in {0, num_rows - 1, num_rows // 2, *rng.integers(0, num_rows, 4).tolist()}:
        alone = {**inputs, **{each: inputs[each][row : row + 1] for each in row_wise}}
        np.testing.assert_array_equal(run(one_thread(), alone)[0], whole[row])


@pytest.mark.parametrize("fmt", WeightFormat, ids=lambda fmt: fmt.label)
@pytest.mark.parametrize("name", OF_WEIGHTS)
@given(seed=seeds, num_rows=row_counts, threads=threads_of)
def test_a_row_of_a_product_is_what_it_is_alone(name, fmt, seed, num_rows, threads):
    rng = np.random.default_rng(seed)
    check(name, *OF_WEIGHTS[name](rng, fmt, num_rows), threads, rng)


@pytest.mark.parametrize("name", OF_ROWS)
@given(seed=seeds, num_rows=row_counts, threads=threads_of)
def test_a_row_is_what_it_is_alone(name, seed, num_rows, threads):
    rng = np.random.default_rng(seed)
    check(name, *OF_ROWS[name](rng, num_rows), threads, rng)
