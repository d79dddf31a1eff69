"""Rotary frequencies: from a configuration to ``inv_freq`` and a scale, for every scaling we serve.

Sources: Su et al., "RoFormer" (2021); Peng et al., "YaRN" (2023), equations 17 to 23; Meta's Llama 3.1 model card for
``llama3``. Parameter names are those of Hugging Face's ``rope_parameters``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engine.config import RopeConfig
from engine.errors import UnsupportedModel

F64 = npt.NDArray[np.float64]


def rope_frequencies(rope: RopeConfig, head_dim: int) -> tuple[F64, float]:
    """inv_freq f64[head_dim/2], and the factor that cosines and sines are scaled by.

    Raises:
        UnsupportedModel: a scaling we do not know.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    inv_freq = 1.0 / rope.theta**exponents
    if rope.freq_factors is not None:
        return inv_freq / np.array(rope.freq_factors), 1.0
    if rope.kind == "default":
        return inv_freq, 1.0
    if rope.kind == "linear":
        return inv_freq / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(inv_freq, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(inv_freq, rope, head_dim), _yarn_scale(rope)
    raise UnsupportedModel(f"rope scaling '{rope.kind}' is not supported; known are default, linear, llama3 and yarn.")


def _llama3(inv_freq: F64, rope: RopeConfig) -> F64:
    """Long wavelengths are slowed by ``factor``, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / inv_freq
    turns = rope.original_max_position_embeddings / wavelengths
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(blend, 0.0, 1.0)
    return (1 - kept) * inv_freq / rope.factor + kept * inv_freq


def _yarn(inv_freq: F64, rope: RopeConfig, head_dim: int) -> F64:
    """Dimensions that turn over beta_fast times in the original context are kept, under beta_slow times slowed."""

    def dimension_of(turns: float) -> float:
        span = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(span) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp, without dividing by zero
    slowed = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
    blended: F64 = (1 - slowed) * inv_freq + slowed * inv_freq / rope.factor
    return blended


def _yarn_scale(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
