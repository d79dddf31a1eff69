"""Every operation of every backend against its specification; a backend with a planted defect fails."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kernels.ops import OPERATIONS, AttentionBatch
from kernels.resolve import BACKENDS
from kernels.spec import deviation
from kernels.specs import ALL_SPECS

BY_NAME = {spec.name: spec for spec in ALL_SPECS}


def cases_of(spec):
    return list(spec.cases(np.random.default_rng(20)))


CASES = [pytest.param(spec, case, id=f"{spec.name}-{case.name}") for spec in ALL_SPECS for case in cases_of(spec)]


def test_every_operation_has_a_specification():
    assert tuple(BY_NAME) == OPERATIONS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("spec", "case"), CASES)
def test_parity(backend, spec, case):
    error = deviation(spec.run(BACKENDS[backend](), case.inputs), spec.oracle(case.inputs))
    assert error <= spec.tolerance.limit(case.inputs), f"off by {error:.2e}; {spec.tolerance.reason}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("spec", "case"), [p for p in CASES if p.values[0].token_inputs])
def test_a_row_does_not_depend_on_its_neighbours(backend, spec, case):
    ops = BACKENDS[backend]()
    whole = spec.run(ops, case.inputs)
    rng = np.random.default_rng(3)
    num_rows = len(case.inputs[spec.token_inputs[0]])
    picks = [rng.permutation(num_rows), *(np.array([row]) for row in range(num_rows)), np.arange(num_rows)[-2:]]
    for rows in picks:
        some = {**case.inputs, **{name: case.inputs[name][rows] for name in spec.token_inputs}}
        np.testing.assert_array_equal(spec.run(ops, some), whole[rows])


def swapped_halves(ops):
    def rope(x, positions, table):
        half = x.shape[-1] // 2
        return ops.rope(np.roll(x, half, axis=-1), positions, table)

    return {"rope": rope}


def position_off_by_one(ops):
    return {"rope": lambda x, positions, table: ops.rope(x, np.minimum(positions + 1, 4095), table)}


def norm_without_eps(ops):
    return {"rms_norm": lambda x, weight, _eps: ops.rms_norm(x, weight, 0.0)}


def norm_keeps_the_sum_unadded(ops):
    return {"add_rms_norm": lambda x, residual, weight, eps: (ops.rms_norm(x + residual, weight, eps), residual)}


def linear_without_bias(ops):
    return {"prepare_linear": lambda weights, _biases: ops.prepare_linear(weights, None)}


def linear_in_half_precision(ops):
    return {"linear": lambda x, w: ops.linear(x.astype(np.float16).astype(np.float32), w)}


def embedding_row_below(ops):
    return {"embed": lambda ids, w: ops.embed(np.maximum(ids - 1, 0), w)}


def slot_off_by_one(ops):
    return {"write_kv": lambda cache, k, v, slots: ops.write_kv(cache, k, v, slots ^ 1)}


def keys_and_values_swapped(ops):
    return {"write_kv": lambda cache, k, v, slots: ops.write_kv(cache, v, k, slots)}


def attention_misses_the_newest_key(ops):
    def attend(q, cache, batch, scale, window):
        short = AttentionBatch(batch.q_starts, np.maximum(batch.kv_lens - 1, 1), batch.block_table)
        return ops.paged_attention(q, cache, short, scale, window)

    return {"paged_attention": attend}


def attention_ignores_the_window(ops):
    return {"paged_attention": lambda q, cache, batch, scale, _w: ops.paged_attention(q, cache, batch, scale, None)}


def window_off_by_one(ops):
    def attend(q, cache, batch, scale, window):
        return ops.paged_attention(q, cache, batch, scale, None if window is None else window + 1)

    return {"paged_attention": attend}


def attention_without_scale(ops):
    return {"paged_attention": lambda q, cache, batch, _s, window: ops.paged_attention(q, cache, batch, 1.0, window)}


def gelu_instead_of_silu(ops):
    return {
        "silu_mul": lambda x: ops.silu_mul(np.concatenate([x[:, : x.shape[1] // 2] * 1.7, x[:, x.shape[1] // 2 :]], 1))
    }


def experts_not_normalised(ops):
    return {"moe": lambda x, router, experts, k, _n: ops.moe(x, router, experts, k, False)}


def one_expert_too_few(ops):
    return {"moe": lambda x, router, experts, k, n: ops.moe(x, router, experts, max(1, k - 1), n)}


def logits_of_the_row_before(ops):
    return {"logits": lambda x, rows, w: ops.logits(x, np.maximum(rows - 1, 0), w)}


DEFECTS = {
    swapped_halves: "rope",
    position_off_by_one: "rope",
    norm_without_eps: "rms_norm",
    norm_keeps_the_sum_unadded: "add_rms_norm",
    linear_without_bias: "linear",
    linear_in_half_precision: "linear",
    embedding_row_below: "embed",
    slot_off_by_one: "write_kv",
    keys_and_values_swapped: "write_kv",
    attention_misses_the_newest_key: "paged_attention",
    attention_ignores_the_window: "paged_attention",
    window_off_by_one: "paged_attention",
    attention_without_scale: "paged_attention",
    gelu_instead_of_silu: "silu_mul",
    experts_not_normalised: "moe",
    one_expert_too_few: "moe",
    logits_of_the_row_before: "logits",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_planted_defects_fail(defect):
    ops = BACKENDS["reference"]()
    spec = BY_NAME[DEFECTS[defect]]
    broken = dataclasses.replace(ops, **defect(ops))
    errors = [
        deviation(spec.run(broken, case.inputs), spec.oracle(case.inputs)) / spec.tolerance.limit(case.inputs)
        for case in cases_of(spec)
    ]
    assert max(errors) > 1


def test_every_operation_has_a_planted_defect():
    assert set(DEFECTS.values()) == set(OPERATIONS)
