"""The tensors that a configuration asks for, and the check that a file has them, has them in shape, and has no others.

Used by both kinds of checkpoint when they are opened, so the model code never meets a tensor of a wrong shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engine.config import ModelConfig
from engine.errors import MalformedModel, UnsupportedModel
from engine.weights.mapped import shown

Shape = tuple[int, ...]


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name -> shape of every tensor the model needs, named as in ``checkpoint``, in the order of the layers.

    Raises:
        ValueError: a layer has routed experts, but the configuration no sizes of them.
    """
    vocab, hidden = config.vocab_size, config.hidden_size
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(config.num_layers):
        is_moe = bool(config.moe_layers) and config.moe_layers[index]
        parts = {**_attention(config), **(_experts(config) if is_moe else _mlp(config))}
        shapes.update({f"model.layers.{index}.{part}": shape for part, shape in parts.items()})
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _attention(config: ModelConfig) -> dict[str, Shape]:
    """Attention and the two norms of a layer."""
    hidden, head_dim = config.hidden_size, config.head_dim
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes: dict[str, Shape] = {"input_layernorm.weight": (hidden,)}
    for part, width in (("q", q_width), ("k", kv_width), ("v", kv_width)):
        shapes[f"self_attn.{part}_proj.weight"] = (width, hidden)
        if config.qkv_bias:
            shapes[f"self_attn.{part}_proj.bias"] = (width,)
    if config.qk_norm:
        shapes |= {f"self_attn.{part}_norm.weight": (head_dim,) for part in "qk"}
    shapes["self_attn.o_proj.weight"] = (hidden, q_width)
    if config.o_bias:
        shapes["self_attn.o_proj.bias"] = (hidden,)
    shapes["post_attention_layernorm.weight"] = (hidden,)
    return shapes


def _mlp(config: ModelConfig) -> dict[str, Shape]:
    """The dense MLP of a layer."""
    hidden, width = config.hidden_size, config.intermediate_size
    weights: dict[str, Shape] = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    shapes = {f"mlp.{part}_proj.weight": shape for part, shape in weights.items()}
    if config.mlp_bias:
        shapes |= {f"mlp.{part}_proj.bias": shape[:1] for part, shape in weights.items()}
    return shapes


def _experts(config: ModelConfig) -> dict[str, Shape]:
    """Router and stacked experts of a layer."""
    if config.moe is None:
        raise ValueError("a configuration with MoE layers has no MoE sizes")
    hidden, width, num = config.hidden_size, config.moe.intermediate_size, config.moe.num_experts
    return {
        "mlp.gate.weight": (num, hidden),
        "mlp.experts.gate_proj.weight": (num, width, hidden),
        "mlp.experts.up_proj.weight": (num, width, hidden),
        "mlp.experts.down_proj.weight": (num, hidden, width),
    }


def check_shapes(source: str, config: ModelConfig, shape_of: Callable[[str], Shape | None]) -> None:
    """Check that every tensor the configuration asks for is there, in its shape.

    Args:
        source: the file or folder, for errors.
        config: what is asked for.
        shape_of: a tensor's shape by its Hugging Face name, None if it is not there.

    Raises:
        MalformedModel: naming the first tensor that is missing or of another shape.
    """
    for name, want in expected_shapes(config).items():
        have = shape_of(name)
        if have is None:
            raise MalformedModel(f"{source}: tensor {name} is missing.")
        if have != want:
            raise MalformedModel(f"{source}: tensor {name} has shape {have}, but its configuration asks for {want}.")


def check_no_others(source: str, architecture: str, others: Iterable[str]) -> None:
    """Refuse tensors that the model would leave unused: it would not be the model they were made for.

    Raises:
        UnsupportedModel: naming the first one.
    """
    for name in others:
        raise UnsupportedModel(
            f"{source}: tensor {shown(name)} has no place in a {architecture} of this configuration as this build "
            "knows it; running without it would give wrong answers."
        )
