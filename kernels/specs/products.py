"""Specifications of the operations that multiply by weights: linear, logits, moe."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.formats import RawTensor, WeightFormat
from kernels.ops import Ops
from kernels.reference.dequant import dequantise
from kernels.spec import Array, Case, Inputs, OpSpec, Tolerance, f32_tensor, random_tensor

_RANDOM_WALK = "products and sums in float32 in any order; 4 is four times what a random walk of roundings gives"


def _f64(raw: RawTensor) -> Array:
    return dequantise(raw).astype(np.float64)


def _linear_oracle(inputs: Inputs) -> Array:
    out = inputs["x"].astype(np.float64) @ np.concatenate([_f64(part) for part in inputs["weights"]]).T
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
    oracle=lambda i: np.asarray(i["x"].astype(np.float64)[i["rows"]] @ _f64(i["weight"]).T),
    run=lambda ops, i: ops.memory.download(
        ops.logits(ops.memory.upload(i["x"]), ops.memory.upload(i["rows"]), ops.prepare_linear([i["weight"]], None))
    ),
    cases=_logits_cases,
    tolerance=Tolerance(4.0, lambda i: int(i["x"].shape[-1]), _RANDOM_WALK),
    token_inputs=("rows",),
    source="linear, for the rows that are sampled",
)


def _moe_oracle(inputs: Inputs) -> Array:
    x, router = inputs["x"].astype(np.float64), _f64(inputs["router"])
    gate, up, down = (_f64(inputs[name]) for name in ("gate", "up", "down"))
    out = np.zeros(x.shape)
    for row, token in enumerate(x):
        scores = router @ token
        probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        chosen = np.argsort(-probabilities, kind="stable")[: inputs["top_k"]]
        weights = probabilities[chosen] / (probabilities[chosen].sum() if inputs["normalise"] else 1.0)
        for expert, weight in zip(chosen, weights, strict=True):
            gated = gate[expert] @ token
            out[row] += weight * (down[expert] @ (gated / (1 + np.exp(-gated)) * (up[expert] @ token)))
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


MOE = OpSpec(
    name="moe",
    axes="x f32[T,H], router [E,H], gate and up [E,F,H], down [E,H,F], top_k, normalise -> f32[T,H]",
    oracle=_moe_oracle,
    run=_moe_run,
    cases=_moe_cases,
    tolerance=Tolerance(16.0, lambda i: int(i["x"].shape[-1]), "three products in a row and the router's exponentials"),
    token_inputs=("x",),
    source="Qwen3 Technical Report (2025), section 2: softmax over all experts, top k, weights normalised or not",
)
