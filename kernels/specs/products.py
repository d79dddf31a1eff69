"""Specifications of the operations that multiply by weights: linear, logits, moe."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.formats import RawTensor, WeightFormat
from kernels.ops import Arithmetic, Ops
from kernels.reference.dequant import dequantise
from kernels.spec import Array, Case, Inputs, OpSpec, Tolerance, f32_tensor, random_tensor
from kernels.specs.rounding import product

_RANDOM_WALK = "products and sums in float32 in any order; 4 is four times what a random walk of roundings gives"


def _f64(raw: RawTensor) -> Array:
    return dequantise(raw).astype(np.float64)


def _linear_oracle(inputs: Inputs, arithmetic: Arithmetic) -> Array:
    out = np.concatenate([product(inputs["x"], part, arithmetic) for part in inputs["weights"]], axis=1)
    if inputs["biases"] is not None:
        out += np.concatenate([_f64(part) for part in inputs["biases"]])
    return np.asarray(out)


def _linear_run(ops: Ops, i: Inputs) -> Array:
    return ops.memory.download(ops.linear(ops.memory.upload(i["x"]), ops.prepare_linear(i["weights"], i["biases"])))


def _linear_cases(rng: np.random.Generator) -> Iterator[Case]:
    for fmt in WeightFormat:
        x = rng.standard_normal((5, 512)).astype(np.float32)
        yield Case(fmt.label, {"x": x, "weights": [random_tensor(rng, (48, 512), fmt)], "biases": None})
    for rows in (1, 15, 16, 17, 33):
        x = rng.standard_normal((rows, 96)).astype(np.float32)
        parts = [random_tensor(rng, (n, 96), fmt) for n, fmt in [(64, WeightFormat.Q4_1), (32, WeightFormat.Q8_0)]]
        biases = [f32_tensor(rng.standard_normal(n)) for n in (64, 32)] if rows % 2 else None
        yield Case(f"{rows} rows, mixed parts", {"x": x, "weights": parts, "biases": biases})
        parts = [random_tensor(rng, (n, 96), WeightFormat.W8A8) for n in (64, 32)]
        yield Case(f"{rows} rows of w8a8", {"x": x, "weights": parts, "biases": biases})
    formats = (WeightFormat.W8A8, WeightFormat.F32, WeightFormat.Q8_0, WeightFormat.W8A8)
    parts = [random_tensor(rng, (16, 64), fmt) for fmt in formats]
    yield Case("w8a8 beside others", {
        "x": rng.standard_normal((7, 64)).astype(np.float32), "weights": parts, "biases": None,
    })  # fmt: skip
    for rows, columns in ((3, 1), (2, 37), (1, 3000), (20, 1100)):
        x = rng.standard_normal((rows, columns)).astype(np.float32)
        weight = random_tensor(rng, (40, columns), WeightFormat.W8A8)
        yield Case(f"w8a8, {columns} columns", {"x": x, "weights": [weight], "biases": None})
    for fmt in (WeightFormat.Q8_0, WeightFormat.Q4_1, WeightFormat.Q4_K, WeightFormat.W8A8):
        x = rng.standard_normal((4, 512)).astype(np.float32)
        x[0], x[1, 32:64], x[2, 100], x[3, 64:96] = 0, 0, 3e4, 1e-30
        yield Case(f"{fmt.label}, zeros and outliers", {
            "x": x, "weights": [random_tensor(rng, (16, 512), fmt)], "biases": None,
        })  # fmt: skip


LINEAR = OpSpec(
    name="linear",
    axes="x f32[T,K], weights [N_i,K], biases [N_i] or None -> f32[T,sum N_i]",
    oracle=_linear_oracle,
    run=_linear_run,
    cases=_linear_cases,
    tolerance=Tolerance(4.0, lambda i: int(i["x"].shape[-1]), _RANDOM_WALK),
    token_inputs=("x",),
    source="x W^T + b, weights stacked",
)


def _logits_cases(rng: np.random.Generator) -> Iterator[Case]:
    for count in (0, 1, 4):
        x = rng.standard_normal((7, 64)).astype(np.float32)
        rows = np.sort(rng.permutation(7)[:count]).astype(np.int32)
        yield Case(f"{count} rows", {"x": x, "rows": rows, "weight": random_tensor(rng, (300, 64), WeightFormat.Q8_0)})


LOGITS = OpSpec(
    name="logits",
    axes="x f32[T,H], rows i32[B'], weight [V,H] -> f32[B',V]",
    oracle=lambda i, arithmetic: product(i["x"][i["rows"]], i["weight"], arithmetic),
    run=lambda ops, i: ops.memory.download(
        ops.logits(ops.memory.upload(i["x"]), ops.memory.upload(i["rows"]), ops.prepare_linear([i["weight"]], None))
    ),
    cases=_logits_cases,
    tolerance=Tolerance(4.0, lambda i: int(i["x"].shape[-1]), _RANDOM_WALK),
    token_inputs=("rows",),
    source="linear, for the rows that are sampled",
)


def _moe_oracle(inputs: Inputs, arithmetic: Arithmetic) -> Array:
    out = np.zeros(inputs["x"].shape)
    for row, scores in enumerate(product(inputs["x"], inputs["router"], arithmetic)):
        token = inputs["x"][row : row + 1]
        probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        chosen = np.argsort(-probabilities, kind="stable")[: inputs["top_k"]]
        weights = probabilities[chosen] / (probabilities[chosen].sum() if inputs["normalise"] else 1.0)
        for expert, weight in zip(chosen, weights, strict=True):
            gate, up, down = (inputs[name].at(expert) for name in ("gate", "up", "down"))
            gated = product(token, gate, arithmetic)
            with np.errstate(over="ignore"):
                hidden = gated / (1 + np.exp(-gated)) * product(token, up, arithmetic)
            out[row] += weight * product(hidden, down, arithmetic)[0]
    return out


def _moe_run(ops: Ops, i: Inputs) -> Array:
    experts = ops.prepare_experts(i["gate"], i["up"], i["down"])
    router = ops.prepare_linear([i["router"]], None)
    x = ops.memory.upload(i["x"])
    return ops.memory.download(ops.moe(x, router, experts, i["top_k"], i["normalise"]))


def _moe_cases(rng: np.random.Generator) -> Iterator[Case]:
    for rows, num_experts, top_k, normalise in [(1, 4, 2, True), (9, 8, 3, False), (40, 5, 1, True), (6, 4, 4, True)]:
        shapes = {"gate": (num_experts, 32, 64), "up": (num_experts, 32, 64), "down": (num_experts, 64, 32)}
        inputs: dict[str, object] = {k: f32_tensor(rng.standard_normal(s) / 8) for k, s in shapes.items()}
        inputs |= {"x": rng.standard_normal((rows, 64)).astype(np.float32), "top_k": top_k, "normalise": normalise}
        inputs["router"] = f32_tensor(rng.standard_normal((num_experts, 64)) / 4)
        yield Case(f"{rows} rows, {top_k} of {num_experts}", inputs)
    for up, down, inner, hidden in [
        ("Q4_0", "Q4_1", 32, 64),
        ("Q4_K", "Q8_0", 32, 256),
        ("Q8_0", "F16", 32, 32),
        ("W8A8", "W8A8", 32, 64),
        ("Q8_0", "W8A8", 32, 32),
        # Not whole panels of 32 gates.
        ("Q8_0", "F16", 48, 32),
        ("W8A8", "W8A8", 24, 64),
        ("Q4_K", "W8A8", 40, 256),
    ]:
        packed: dict[str, object] = {
            "gate": random_tensor(rng, (4, inner, hidden), WeightFormat[up]),
            "up": random_tensor(rng, (4, inner, hidden), WeightFormat[up]),
            "down": random_tensor(rng, (4, hidden, inner), WeightFormat[down]),
            "router": f32_tensor(rng.standard_normal((4, hidden)) / np.sqrt(hidden)),
            "x": rng.standard_normal((5, hidden)).astype(np.float32),
        }
        yield Case(f"experts in {up} and {down}, {inner} wide", {**packed, "top_k": 2, "normalise": True})


_EITHER_WAY = (
    "between the products a value on the border of two integers may go either way: 1/127 of the largest it shares a "
    "scale with, in one of F terms"
)

MOE = OpSpec(
    name="moe",
    axes="x f32[T,H], router [E,H], gate and up [E,F,H], down [E,H,F], top_k, normalise -> f32[T,H]",
    oracle=_moe_oracle,
    run=_moe_run,
    cases=_moe_cases,
    tolerance=Tolerance(
        16.0,
        lambda i: int(i["x"].shape[-1]),
        "three products in a row and the router's exponentials",
        {"int8 blocks of 32": (2.0**-9, _EITHER_WAY), "w8a8": (2.0**-9, _EITHER_WAY)},
    ),
    token_inputs=("x",),
    source="Qwen3 Technical Report (2025), section 2: softmax over all experts, top k, weights normalised or not",
)
