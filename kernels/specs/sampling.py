"""Specification of drawing a token at random."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.ops import Arithmetic, DrawParams, Ops
from kernels.spec import Array, Case, Inputs, OpSpec, Tolerance

_COLUMNS = ("temperature", "top_k", "top_p", "min_p", "uniform")
_CLEAR = 1e-6
"""Cases keep this far from every border, where a rounding would decide."""


def _side_by_side(logits: Array, temperature: float, top_k: int, top_p: float) -> tuple[Array, Array]:
    """Ids in the order in which they are laid side by side, and their probabilities, before top_p cuts any off."""
    likeliest_first = np.argsort(-logits, kind="stable")
    ids = likeliest_first if top_k or top_p < 1 else np.arange(len(logits))
    ids = ids[:top_k] if top_k else ids
    with np.errstate(over="ignore"):
        shares = np.exp((logits[ids] - logits.max()) / temperature)
    return ids, shares / shares.sum()


def _distribution(logits: Array, temperature: float, top_k: int, top_p: float, min_p: float) -> tuple[Array, Array]:
    """Ids that may be drawn, in order, and their probabilities among themselves."""
    ids, shares = _side_by_side(logits, temperature, top_k, top_p)
    if top_p < 1:
        enough = int(np.flatnonzero(np.cumsum(shares) >= top_p)[0]) + 1
        ids, shares = ids[:enough], shares[:enough]
    kept = shares >= min_p * shares.max()
    return ids[kept], shares[kept] / shares[kept].sum()


def _row(inputs: Inputs, row: int) -> tuple[Array, float, int, float, float, float]:
    temperature, top_k, top_p, min_p, uniform = (inputs[name][row].item() for name in _COLUMNS)
    return inputs["logits"][row].astype(np.float64), temperature, top_k, top_p, min_p, uniform


def _draw_oracle(inputs: Inputs, _arithmetic: Arithmetic) -> Array:
    tokens = []
    for row in range(len(inputs["logits"])):
        logits, temperature, top_k, top_p, min_p, uniform = _row(inputs, row)
        ids, shares = _distribution(logits, temperature, top_k, top_p, min_p)
        possible = np.flatnonzero(shares)
        beyond = np.flatnonzero(np.cumsum(shares) > uniform)
        tokens.append(ids[beyond[0] if len(beyond) else possible[-1]])
    return np.array(tokens)


def _is_clear(inputs: Inputs, row: int) -> bool:
    """Whether the number lies off every border of the tokens, and top_p and min_p off those of what they cut."""
    logits, temperature, top_k, top_p, min_p, uniform = _row(inputs, row)
    _, uncut = _side_by_side(logits, temperature, top_k, top_p)
    _, shares = _distribution(logits, temperature, top_k, top_p, min_p)
    off = [np.cumsum(shares)[:-1] - uniform]
    if top_p < 1:
        off.append(np.cumsum(uncut) - top_p)
    if min_p > 0:
        off.append(uncut / uncut.max() - min_p)
    return bool(np.abs(np.concatenate(off)).min(initial=1.0) > _CLEAR)


def _draw_run(ops: Ops, inputs: Inputs) -> Array:
    return ops.draw(inputs["logits"].copy(), DrawParams(**{name: inputs[name] for name in _COLUMNS}))


def _make(rng: np.random.Generator, logits: Array, **fixed: float) -> Inputs:
    """Parameters for each row, those of ``fixed`` the same in all, drawn until every row is clear."""
    rows = len(logits)
    while True:
        columns = {
            "temperature": rng.choice([0.3, 0.7, 1.0, 1.9], rows),
            "top_k": rng.choice([0, 0, 1, 5, 40, 2**31 - 1], rows),
            "top_p": rng.choice([1.0, 0.1003, 0.5003, 0.9003, 0.9993], rows),
            "min_p": rng.choice([0.0, 0.0, 0.02, 0.3], rows),
            "uniform": rng.random(rows),
            **{name: np.full(rows, value) for name, value in fixed.items()},
        }
        columns["top_k"] = columns["top_k"].astype(np.int32)
        inputs = {"logits": logits, **columns}
        if all(_is_clear(inputs, row) for row in range(rows)):
            return inputs


def _draw_cases(rng: np.random.Generator) -> Iterator[Case]:
    plain = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for vocab in (1, 2, 17, 300, 5003):
        logits = (3 * rng.standard_normal((12, vocab))).astype(np.float32)
        yield Case(f"{vocab} tokens", _make(rng, logits))
        yield Case(f"{vocab} tokens, nothing cut", _make(rng, logits, **plain))
    some = (3 * rng.standard_normal((12, 300))).astype(np.float32)
    for name, value in [("top_k", 3), ("top_p", 0.7), ("min_p", 0.1)]:
        yield Case(f"{name} alone", _make(rng, some, **{**plain, name: value}))
    flat = np.zeros((6, 700), dtype=np.float32)
    yield Case("a flat row, its likeliest beyond any first guess", _make(rng, flat, **{**plain, "top_p": 0.8003}))
    wide = (0.5 * rng.standard_normal((12, 5003))).astype(np.float32)
    for name, value in [("top_k", 3000), ("top_p", 0.8003)]:
        yield Case(f"{name} alone, its end far down", _make(rng, wide, **{**plain, name: value}))
    yield Case("a row of thousands of ties", _make(rng, np.zeros((6, 5003), dtype=np.float32), top_k=2500, min_p=0.0))
    ties = rng.integers(0, 3, (12, 90)).astype(np.float32)
    yield Case("ties", _make(rng, ties, temperature=1.0, min_p=0.0))
    banned = np.where(rng.random((12, 300)) < 0.5, np.float32(-np.inf), some)
    yield Case("half of the tokens banned", _make(rng, banned))
    yield Case("a tiny temperature", _make(rng, some, temperature=1e-300, min_p=0.0))
    for name, uniform in [("first", 0.0), ("last", 1 - 2.0**-53)]:
        inputs = {"logits": banned, "uniform": np.full(12, uniform), "temperature": np.ones(12)}
        inputs |= {"top_k": np.zeros(12, dtype=np.int32), "top_p": np.ones(12), "min_p": np.zeros(12)}
        yield Case(f"the {name} of the tokens that are not banned", inputs)


DRAW = OpSpec(
    name="draw",
    axes="logits f32[n,V], temperature f64[n], top_k i32[n], top_p f64[n], min_p f64[n], uniform f64[n] -> i32[n]",
    oracle=_draw_oracle,
    run=_draw_run,
    cases=_draw_cases,
    tolerance=Tolerance(0.0, lambda _: 1, "the token itself; no case lies where a rounding in float64 could decide"),
    token_inputs=("logits", *_COLUMNS),
    source="Holtzman et al., The Curious Case of Neural Text Degeneration (2019), top_p; Fan et al. (2018), top_k; "
    "Nguyen et al., Min-p Sampling (2024)",
)
