"""Specifications of the operations that treat each row on its own: embed, norms, rope, activation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.formats import WeightFormat
from kernels.ops import Arithmetic, Ops
from kernels.reference.dequant import dequantise
from kernels.spec import Array, Case, Inputs, OpSpec, Tolerance, random_tensor

_ROUNDINGS = "a handful of roundings an element; 8 leaves room for exp and division, which round more than once"


def _rows_of_x(inputs: Inputs) -> int:
    return int(inputs["x"].shape[-1])


def _embed_cases(rng: np.random.Generator) -> Iterator[Case]:
    for fmt in WeightFormat:
        ids = rng.integers(0, 40, 9).astype(np.int32)
        yield Case(fmt.label, {"ids": ids, "weight": random_tensor(rng, (40, 256), fmt)})


EMBED = OpSpec(
    name="embed",
    axes="ids i32[T], weight [V,H] -> f32[T,H]",
    oracle=lambda i, _arithmetic: dequantise(i["weight"]).astype(np.float64)[i["ids"]],
    run=lambda ops, i: ops.memory.download(
        ops.embed(ops.memory.upload(i["ids"]), ops.prepare_linear([i["weight"]], None))
    ),
    cases=_embed_cases,
    tolerance=Tolerance(1.0, lambda _: 1, "one rounding to the backend's dtype"),
    token_inputs=("ids",),
    source="a table look-up",
)


def _norm_oracle(inputs: Inputs, _arithmetic: Arithmetic) -> Array:
    x, weight = inputs["x"].astype(np.float64), dequantise(inputs["weight"]).astype(np.float64)
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + inputs["eps"]) * weight)


def _norm_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(1, 576), (5, 576), (17, 64), (3, 4, 128), (2, 8)]:
        x = rng.standard_normal(shape).astype(np.float32)
        for scale in (1.0, 1e-3, 1e3):
            inputs = {
                "x": x * np.float32(scale),
                "weight": random_tensor(rng, shape[-1:], WeightFormat.F32),
                "eps": 1e-5,
            }
            yield Case(f"{shape}x{scale}", inputs)


RMS_NORM = OpSpec(
    name="rms_norm",
    axes="x f32[...,H], weight [H], eps -> f32[...,H]",
    oracle=_norm_oracle,
    run=lambda ops, i: ops.memory.download(
        ops.rms_norm(ops.memory.upload(i["x"]), ops.prepare_vector(i["weight"]), i["eps"])
    ),
    cases=_norm_cases,
    tolerance=Tolerance(4.0, _rows_of_x, "a mean of H squares, then four roundings"),
    token_inputs=("x",),
    source="Zhang and Sennrich, Root Mean Square Layer Normalization (2019), equation 4",
)


def _add_norm_oracle(inputs: Inputs, arithmetic: Arithmetic) -> Array:
    total = inputs["x"].astype(np.float64) + inputs["residual"]
    return np.stack([_norm_oracle({**inputs, "x": total}, arithmetic), total], axis=1)


def _add_norm_run(ops: Ops, i: Inputs) -> Array:
    weight = ops.prepare_vector(i["weight"])
    normed, total = ops.add_rms_norm(ops.memory.upload(i["x"]), ops.memory.upload(i["residual"]), weight, i["eps"])
    return np.stack([ops.memory.download(normed), ops.memory.download(total)], axis=1)


def _add_norm_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(1, 576), (7, 576), (33, 64)]:
        x, residual = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        weight = random_tensor(rng, shape[-1:], WeightFormat.F32)
        yield Case(str(shape), {"x": x, "residual": residual, "weight": weight, "eps": 1e-6})


ADD_RMS_NORM = OpSpec(
    name="add_rms_norm",
    axes="x f32[T,H], residual f32[T,H], weight [H], eps -> (f32[T,H], f32[T,H])",
    oracle=_add_norm_oracle,
    run=_add_norm_run,
    cases=_add_norm_cases,
    tolerance=Tolerance(4.0, _rows_of_x, "as rms_norm, with one addition before"),
    token_inputs=("x", "residual"),
    source="the sum of a residual branch, then rms_norm",
)


def _rope_oracle(inputs: Inputs, _arithmetic: Arithmetic) -> Array:
    x, half = inputs["x"].astype(np.float64), inputs["x"].shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    turned = pairs * np.exp(1j * inputs["positions"][:, None, None] * inputs["inv_freq"]) * inputs["scale"]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _rope_cases(rng: np.random.Generator) -> Iterator[Case]:
    for heads, dim, scale in [(3, 64, 1.0), (1, 8, 1.25), (9, 128, 1.0)]:
        positions = np.array([0, 1, 7, 4095, 511], dtype=np.int32)
        x = rng.standard_normal((len(positions), heads, dim)).astype(np.float32)
        inv_freq = 1.0 / 10000.0 ** (np.arange(0, dim, 2) / dim)
        yield Case(f"{heads}x{dim}", {"x": x, "positions": positions, "inv_freq": inv_freq, "scale": scale})


ROPE = OpSpec(
    name="rope",
    axes="x f32[T,heads,d], positions i32[T], table of inv_freq f64[d/2] times scale -> f32[T,heads,d]",
    oracle=_rope_oracle,
    run=lambda ops, i: ops.memory.download(
        ops.rope(
            ops.memory.upload(i["x"]),
            ops.memory.upload(i["positions"]),
            ops.prepare_rope(i["inv_freq"], i["scale"], 4096),
        )
    ),
    cases=_rope_cases,
    tolerance=Tolerance(4.0, lambda _: 2, "table entries rounded once, then a sum of two products"),
    token_inputs=("x", "positions"),
    source="Su et al., RoFormer (2021), section 3.2.2, with halves instead of neighbours as Hugging Face lays them out",
)


def _silu_oracle(inputs: Inputs, _arithmetic: Arithmetic) -> Array:
    x, half = inputs["x"].astype(np.float64), inputs["x"].shape[-1] // 2
    gate, up = x[:, :half], x[:, half:]
    with np.errstate(over="ignore"):
        return np.asarray(gate / (1 + np.exp(-gate)) * up)


def _silu_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(1, 3072), (19, 64)]:
        yield Case(str(shape), {"x": rng.standard_normal(shape).astype(np.float32) * 4})
    extremes = np.array([[-200.0, 200.0, -0.0, 1e-20, 1.0, 1.0, 1.0, 1.0]], dtype=np.float32)
    yield Case("extremes", {"x": extremes})


SILU_MUL = OpSpec(
    name="silu_mul",
    axes="gate_up f32[T,2F] -> f32[T,F]",
    oracle=_silu_oracle,
    run=lambda ops, i: ops.memory.download(ops.silu_mul(ops.memory.upload(i["x"]))),
    cases=_silu_cases,
    tolerance=Tolerance(8.0, lambda _: 1, _ROUNDINGS),
    token_inputs=("x",),
    source="Shazeer, GLU Variants Improve Transformer (2020), SwiGLU",
)
