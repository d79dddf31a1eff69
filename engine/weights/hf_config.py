"""From a Hugging Face folder's ``config.json`` to a ``ModelConfig``.

Used by ``hf_checkpoint``. Both the older keys (``rope_theta``, ``rope_scaling``) and those of transformers 5
(``rope_parameters``, ``layer_types``) are read. A missing key means what transformers' own configuration class takes it
for; sizes that say what the model is must be there. ``auto_map`` and other code beside a model are never looked at, and
``quantization_config`` is read by ``hf_quantization``.
"""

from __future__ import annotations

from pathlib import Path

from engine.config import ModelConfig, MoeConfig
from engine.errors import ModelNotFound, UnsupportedModel
from engine.weights.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields, check_heads
from engine.weights.hf_rope import read_rope
from engine.weights.json_file import read_json
from engine.weights.mapped import shown

_QWEN: dict[str, object] = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
DEFAULTS: dict[str, dict[str, object]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048, "eos_token_id": 2},
    "MistralForCausalLM": {
        **{"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096, "eos_token_id": 2},
    },
    "Qwen2ForCausalLM": _QWEN,
    "Qwen3ForCausalLM": {**_QWEN, "head_dim": 128},
    "Qwen3MoeForCausalLM": {**_QWEN, "num_key_value_heads": 4},
    "SeedOssForCausalLM": {
        **{"num_key_value_heads": 8, "max_position_embeddings": 524288, "head_dim": 128, "attention_bias": True},
        "eos_token_id": 2,
    },
}
"""Architecture -> what transformers takes its missing keys for. A key that is null is not missing."""

_MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
}


def read_config(folder: Path) -> ModelConfig:
    """The folder's configuration.

    Raises:
        ModelNotFound: there is no ``config.json``.
        MalformedModel: a key is missing, ill-typed or senseless; it is named.
        UnsupportedModel: the model needs something this build does not have; it is named.
    """
    values = read_json(folder / "config.json", dict[str, object])
    architecture = _architecture(Fields("config.json", values))
    fields = Fields("config.json", {**DEFAULTS[architecture], **values})
    if fields.text("hidden_act", "silu") != "silu":
        fields.refuse("hidden_act", "only silu is supported")
    num_layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    num_heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    num_kv_heads = fields.integer("num_key_value_heads", 1, MAX_HEADS, num_heads)
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    head_dim = _head_dim(fields, hidden, num_heads)
    check_heads(fields, "num_key_value_heads", num_heads, num_kv_heads, head_dim)
    vocab_size = fields.integer("vocab_size", 1, MAX_WIDTH)
    qkv_bias, o_bias, mlp_bias = _biases(fields, architecture)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", 1, MAX_WIDTH),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 0.1, 1e-6),
        max_position_embeddings=fields.integer("max_position_embeddings", 1, MAX_CONTEXT),
        rope=read_rope(fields),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=architecture in {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM"},
        windows=_windows(fields, architecture, num_layers),
        moe=_moe(fields) if architecture == "Qwen3MoeForCausalLM" else None,
        moe_layers=_moe_layers(fields, num_layers) if architecture == "Qwen3MoeForCausalLM" else (),
        eos_token_ids=_eos_token_ids(folder, fields, vocab_size),
    )


def _architecture(fields: Fields) -> str:
    """The first of ``architectures`` that is served; without that key, what ``model_type`` stands for."""
    names = fields.get("architectures")
    if names is None:
        names = [_MODEL_TYPES.get(fields.text("model_type"), fields.text("model_type"))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        fields.fail("architectures", "must be a list of class names")
    for name in names:
        if name in DEFAULTS:
            return str(name)
    raise UnsupportedModel(
        f"config.json: architecture {shown(names[0])} is not supported; these are: {', '.join(DEFAULTS)}."
    )


def _head_dim(fields: Fields, hidden: int, num_heads: int) -> int:
    if not fields.has("head_dim") and hidden % num_heads:
        fields.fail("num_attention_heads", f"must divide hidden_size {hidden}")
    return fields.integer("head_dim", 2, MAX_WIDTH, max(2, hidden // num_heads))


def _biases(fields: Fields, architecture: str) -> tuple[bool, bool, bool]:
    """Whether q/k/v, the attention's output and the MLP have biases."""
    if architecture == "MistralForCausalLM":
        return False, False, False
    if architecture == "Qwen2ForCausalLM":
        return True, False, False
    attention = fields.boolean("attention_bias", default=False)
    if architecture == "SeedOssForCausalLM":
        return attention, fields.boolean("attention_out_bias", default=False), fields.boolean("mlp_bias", default=False)
    has_mlp_bias = architecture == "LlamaForCausalLM" and fields.boolean("mlp_bias", default=False)
    return attention, attention, has_mlp_bias


def _windows(fields: Fields, architecture: str, num_layers: int) -> tuple[int | None, ...]:
    """Per-layer windows, empty if no layer has one.

    Mistral and Qwen3-MoE have one window for all layers; Qwen2 and Qwen3 say which layers have it, in ``layer_types``
    or by ``max_window_layers``, the number of first layers without.
    """
    if architecture in {"LlamaForCausalLM", "SeedOssForCausalLM"}:
        return ()
    is_on = architecture == "MistralForCausalLM" or fields.boolean("use_sliding_window", default=False)
    window = fields.integer("sliding_window", 1, MAX_CONTEXT) if is_on and fields.has("sliding_window") else None
    types = _layer_types(fields, num_layers)
    if architecture in {"MistralForCausalLM", "Qwen3MoeForCausalLM"}:
        if window is not None and "full_attention" in types:
            fields.refuse("layer_types", f"{architecture} is only supported with the same attention in all layers")
        return (window,) * num_layers if window is not None else ()
    if not types:
        first = fields.integer("max_window_layers", 0, MAX_CONTEXT, 28)
        types = ["full_attention" if index < first else "sliding_attention" for index in range(num_layers)]
    elif window is None and "sliding_attention" in types:
        fields.fail("layer_types", "must be full_attention throughout, since sliding windows are off")
    windows = tuple(window if kind == "sliding_attention" else None for kind in types)
    return windows if any(windows) else ()


def _layer_types(fields: Fields, num_layers: int) -> list[str]:
    """The checked ``layer_types``, empty if there are none."""
    types = fields.get("layer_types")
    if types is None:
        return []
    if not isinstance(types, list) or len(types) != num_layers:
        fields.fail("layer_types", f"must be a list of {num_layers} names")
    for kind in types:
        if kind not in {"full_attention", "sliding_attention"}:
            raise UnsupportedModel(f"{fields.source}: layers of type {shown(kind)} are not supported.")
    return types


def _moe(fields: Fields) -> MoeConfig:
    key = "num_experts" if fields.has("num_experts") else "num_local_experts"
    num_experts = fields.integer(key, 1, 1 << 14)
    return MoeConfig(
        num_experts=num_experts,
        num_experts_per_tok=fields.integer("num_experts_per_tok", 1, num_experts),
        intermediate_size=fields.integer("moe_intermediate_size", 1, MAX_WIDTH),
        norm_topk_prob=fields.boolean("norm_topk_prob", default=False),
    )


def _moe_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Every ``decoder_sparse_step``-th layer, but none of ``mlp_only_layers``."""
    step = fields.integer("decoder_sparse_step", 1, MAX_CONTEXT, 1)
    dense = fields.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(index) is int for index in dense):
        fields.fail("mlp_only_layers", "must be a list of layer numbers")
    return tuple((index + 1) % step == 0 and index not in dense for index in range(num_layers))


def _eos_token_ids(folder: Path, config: Fields, vocab_size: int) -> tuple[int, ...]:
    """From ``generation_config.json`` if it names any, else from ``config.json``.

    Ids beyond the vocabulary are left out: they cannot be generated, and small test models carry them.
    """
    for fields in (_generation_config(folder), config):
        value = fields.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        valid = [index for index in ids if isinstance(index, int) and not isinstance(index, bool) and index >= 0]
        if len(valid) != len(ids):
            fields.fail("eos_token_id", "must be a token id or a list of them")
        return tuple(dict.fromkeys(index for index in valid if index < vocab_size))
    return ()


def _generation_config(folder: Path) -> Fields:
    name = "generation_config.json"
    try:
        return Fields(name, read_json(folder / name, dict[str, object]))
    except ModelNotFound:
        return Fields(name, {})
