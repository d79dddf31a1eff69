"""Rotary settings of a Hugging Face ``config.json``, in its older and its newer form.

Used by ``hf_config``. Source: transformers' ``modeling_rope_utils``: which key stands in for which, and the defaults.
"""

from __future__ import annotations

from engine.config import RopeConfig
from engine.errors import UnsupportedModel
from engine.weights.fields import MAX_CONTEXT, Fields
from engine.weights.mapped import shown

_MAX_FACTOR = 1e6


def read_rope(config: Fields) -> RopeConfig:
    """The rotary embedding: ``rope_scaling`` (older) or else ``rope_parameters``, ``rope_theta`` beside or inside it.

    Raises:
        MalformedModel: a parameter is missing, ill-typed or senseless.
        UnsupportedModel: a scaling we do not know, named; rotation of part of a head; several embeddings.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    values = config.get(key) or {}
    if not isinstance(values, dict):
        config.fail(key, "must be an object")
    if any(isinstance(value, dict) for value in values.values()):
        raise UnsupportedModel(f"{config.source}: {key} with an entry for each kind of layer is not supported.")
    rope = Fields(f"{config.source}: {key}", values)
    for fields in (rope, config):
        if fields.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
            fields.refuse("partial_rotary_factor", "only rotation of the whole head is supported")
    theta = rope.number("rope_theta", 2.0, 1e12, config.number("rope_theta", 2.0, 1e12, 10000.0))
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, kind=kind, factor=_factor(rope))
    if kind == "llama3":
        return _llama3(rope, config, theta)
    if kind == "yarn":
        return _yarn(rope, config, theta)
    raise UnsupportedModel(
        f"{config.source}: rope type {shown(kind)} is not supported; these are: default, linear, llama3, yarn."
    )


def _factor(rope: Fields) -> float:
    return rope.number("factor", 1e-6, _MAX_FACTOR)


def _original_context(rope: Fields, config: Fields) -> int:
    """The trained context: beside the rotary parameters, inside them, or the model's own."""
    key = "original_max_position_embeddings"
    if config.has(key):
        return config.integer(key, 1, MAX_CONTEXT)
    return rope.integer(key, 1, MAX_CONTEXT, config.integer("max_position_embeddings", 1, MAX_CONTEXT))


def _llama3(rope: Fields, config: Fields, theta: float) -> RopeConfig:
    low = rope.number("low_freq_factor", 1e-6, _MAX_FACTOR)
    high = rope.number("high_freq_factor", 1e-6, _MAX_FACTOR)
    if not low < high:
        rope.fail("high_freq_factor", f"must be above low_freq_factor {low:g}")
    return RopeConfig(
        theta=theta,
        kind="llama3",
        factor=_factor(rope),
        original_max_position_embeddings=_original_context(rope, config),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(rope: Fields, config: Fields, theta: float) -> RopeConfig:
    def optional(key: str, low: float) -> float | None:
        return rope.number(key, low, _MAX_FACTOR) if rope.has(key) else None

    beta_slow = rope.number("beta_slow", 1e-6, _MAX_FACTOR, 1.0)
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=_factor(rope),
        original_max_position_embeddings=_original_context(rope, config),
        beta_fast=rope.number("beta_fast", beta_slow, _MAX_FACTOR, 32.0),
        beta_slow=beta_slow,
        attention_factor=optional("attention_factor", 1e-6),
        mscale=optional("mscale", 0.0),
        mscale_all_dim=optional("mscale_all_dim", 0.0),
        truncate=rope.boolean("truncate", default=True),
    )
