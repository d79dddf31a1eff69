"""Every operation of every backend, under every instruction set, against its specification; planted defects fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kernels.formats import WeightFormat
from kernels.ops import OPERATIONS, AttentionBatch
from kernels.reference.dequant import dequantise
from kernels.spec import deviation, f32_tensor
from kernels.specs import ALL_SPECS
from kernels.specs.rounding import rounded_activations
from tests.support.backends import TABLES, can_run, new_table, use_best_isa, with_isas

BY_NAME = {spec.name: spec for spec in ALL_SPECS}


def cases_of(spec):
    return list(spec.cases(np.random.default_rng(20)))


CASES = [
    pytest.param(table, spec, case, id=f"{table}-{spec.name}-{case.name}")
    for name, ops in TABLES.items()
    for table in with_isas(name)
    for spec in ALL_SPECS
    for case in cases_of(spec)
    if can_run(ops, case.inputs)
]


@pytest.fixture(autouse=True, scope="module")
def best_isa_afterwards():
    yield
    use_best_isa()


def is_off(ops, spec, case):
    """How far the operation is off its oracle, and how far it may be."""
    arithmetic = ops.info.arithmetic
    error = deviation(spec.run(ops, case.inputs), spec.oracle(case.inputs, arithmetic))
    return error, spec.tolerance.limit(case.inputs, arithmetic)


def fails(ops, spec, case):
    error, limit = is_off(ops, spec, case)
    return error > limit


def test_every_operation_has_a_specification():
    assert tuple(BY_NAME) == OPERATIONS


@pytest.mark.parametrize(("table", "spec", "case"), CASES)
def test_parity(table, spec, case):
    error, limit = is_off(new_table(table), spec, case)
    assert error <= limit, f"off by {error:.2e}, more than {limit:.2e}; {spec.tolerance.reason}"


@pytest.mark.parametrize(("table", "spec", "case"), [p for p in CASES if p.values[1].token_inputs])
def test_a_row_does_not_depend_on_its_neighbours(table, spec, case):
    whole = spec.run(new_table(table), case.inputs)
    rng = np.random.default_rng(3)
    num_rows = len(case.inputs[spec.token_inputs[0]])
    picks = [rng.permutation(num_rows), *(np.array([row]) for row in range(num_rows)), np.arange(num_rows)[-2:]]
    for rows in picks:
        some = {**case.inputs, **{name: case.inputs[name][rows] for name in spec.token_inputs}}
        np.testing.assert_array_equal(spec.run(new_table(table), some), whole[rows])


def changed(ops, change, *tensors):
    """What a function makes of tensors as arrays, as a tensor."""
    return ops.memory.upload(change(*map(ops.memory.download, tensors)).astype(np.float32))


def swapped_halves(ops):
    def rope(x, positions, table):
        return ops.rope(changed(ops, lambda x: np.roll(x, x.shape[-1] // 2, axis=-1), x), positions, table)

    return {"rope": rope}


def position_off_by_one(ops):
    return {"rope": lambda x, positions, table: ops.rope(x, np.minimum(positions + 1, 4095), table)}


def norm_without_eps(ops):
    return {"rms_norm": lambda x, weight, _eps: ops.rms_norm(x, weight, 0.0)}


def norm_keeps_the_sum_unadded(ops):
    def add_rms_norm(x, residual, weight, eps):
        return ops.rms_norm(changed(ops, np.add, x, residual), weight, eps), residual

    return {"add_rms_norm": add_rms_norm}


def linear_without_bias(ops):
    return {"prepare_linear": lambda weights, _biases: ops.prepare_linear(weights, None)}


def linear_in_half_precision(ops):
    return {"linear": lambda x, w: ops.linear(changed(ops, lambda x: x.astype(np.float16), x), w)}


def tokens_left_as_floats(ops):
    def prepare(weights, biases):
        return ops.prepare_linear([f32_tensor(dequantise(raw)) for raw in weights], biases)

    return {"prepare_linear": prepare}


def tokens_with_a_scale_a_block(ops):
    int8 = []

    def prepare(weights, biases):
        prepared = ops.prepare_linear(weights, biases)
        if any(raw.format is WeightFormat.W8A8 for raw in weights):
            int8.append(prepared)
        return prepared

    def linear(x, w):
        return ops.linear(changed(ops, rounded_activations, x) if any(w is each for each in int8) else x, w)

    return {"prepare_linear": prepare, "linear": linear}


def embedding_row_below(ops):
    return {"embed": lambda ids, w: ops.embed(np.maximum(ids - 1, 0), w)}


def slot_off_by_one(ops):
    return {"write_kv": lambda cache, k, v, slots: ops.write_kv(cache, k, v, slots ^ 1)}


def keys_and_values_swapped(ops):
    return {"write_kv": lambda cache, k, v, slots: ops.write_kv(cache, v, k, slots)}


def attention_misses_the_newest_key(ops):
    def attend(q, cache, batch, scale, window):
        kv_lens = np.maximum(batch.kv_lens - 1, np.diff(batch.q_starts))  # no fewer than queries: that is refused
        short = AttentionBatch(batch.q_starts, kv_lens, batch.block_table)
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
    def steeper(x):
        gate, up = np.split(x, 2, axis=1)
        return np.concatenate([1.7 * gate, up], axis=1)

    return {"silu_mul": lambda x: ops.silu_mul(changed(ops, steeper, x))}


def experts_not_normalised(ops):
    return {"moe": lambda x, router, experts, k, _n: ops.moe(x, router, experts, k, False)}


def one_expert_too_few(ops):
    return {"moe": lambda x, router, experts, k, n: ops.moe(x, router, experts, max(1, k - 1), n)}


def logits_of_the_row_before(ops):
    return {"logits": lambda x, rows, w: ops.logits(x, np.maximum(rows - 1, 0), w)}


def draw_with(**changes):
    """A draw whose parameters are changed first."""

    def plant(ops):
        def draw(logits, params):
            changed = {name: change(getattr(params, name)) for name, change in changes.items()}
            return ops.draw(logits, dataclasses.replace(params, **changed))

        return {"draw": draw}

    plant.__name__ = f"draw_with_another_{'_'.join(changes)}"
    return plant


def draw_in_the_order_of_ids(ops):
    """Tokens that top_k leaves are laid side by side by id, not by probability."""

    def draw(logits, params):
        out = logits.copy()
        for row, count in zip(out, params.top_k, strict=True):
            if 0 < count < len(row):
                row[np.argsort(-row, kind="stable")[count:]] = -np.inf
        return ops.draw(out, dataclasses.replace(params, top_k=np.zeros_like(params.top_k)))

    return {"draw": draw}


def draw_takes_the_later_of_equals(ops):
    def draw(logits, params):
        return logits.shape[1] - 1 - ops.draw(np.ascontiguousarray(logits[:, ::-1]), params)

    return {"draw": draw}


DEFECTS = {
    swapped_halves: "rope",
    position_off_by_one: "rope",
    norm_without_eps: "rms_norm",
    norm_keeps_the_sum_unadded: "add_rms_norm",
    linear_without_bias: "linear",
    linear_in_half_precision: "linear",
    tokens_left_as_floats: "linear",
    tokens_with_a_scale_a_block: "linear",
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
    draw_with(temperature=np.ones_like): "draw",
    draw_with(top_k=np.zeros_like): "draw",
    draw_with(top_k=lambda k: np.maximum(k.astype(np.int64) - 1, k > 0).astype(np.int32)): "draw",
    draw_with(top_p=np.ones_like): "draw",
    draw_with(min_p=np.zeros_like): "draw",
    draw_with(uniform=lambda u: u * 0.999): "draw",
    draw_in_the_order_of_ids: "draw",
    draw_takes_the_later_of_equals: "draw",
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_planted_defects_fail(defect, table):
    """Some case passes without the defect and fails with it."""
    spec = BY_NAME[DEFECTS[defect]]
    ops = new_table(table)
    broken = dataclasses.replace(ops, **defect(ops))
    cases = [case for case in cases_of(spec) if can_run(ops, case.inputs)]
    assert any(fails(broken, spec, case) and not fails(ops, spec, case) for case in cases)


def test_every_operation_has_a_planted_defect():
    assert set(DEFECTS.values()) == set(OPERATIONS)
