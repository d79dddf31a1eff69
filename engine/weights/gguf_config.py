"""From GGUF metadata to a ``ModelConfig``.

Used by ``gguf_checkpoint``. Sources: the key names of the GGUF specification; what llama.cpp takes a missing key for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.config import ModelConfig, MoeConfig, RopeConfig
from engine.errors import MalformedModel, UnsupportedModel
from engine.weights.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields, check_heads
from engine.weights.gguf import GGUFFile
from kernels.formats import WeightFormat


@dataclass(frozen=True)
class Family:
    """What an architecture's name alone says about a file.

    Attributes:
        architecture: the Hugging Face class it is served as. Mistral files call themselves llama.
        interleaved_rope: rows of q and k hold their rotary halves interleaved.
        post_norm: the file's name for the norm before the MLP.
    """

    architecture: str
    interleaved_rope: bool = False
    qk_norm: bool = False
    moe: bool = False
    post_norm: str = "ffn_norm"


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", interleaved_rope=True),
    "qwen2": Family("Qwen2ForCausalLM"),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True),
    "qwen3moe": Family("Qwen3MoeForCausalLM", qk_norm=True, moe=True),
    "seed_oss": Family("SeedOssForCausalLM", post_norm="post_attention_norm"),
}

EOS_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
EOS_NAMES = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<end_of_turn>"})
"""Control tokens that end an answer whatever the metadata say: files often name only one of a model's end tokens.
llama.cpp ends a generation at each of these too, by the same names."""

_CONTROL = 3
_CHANGES_THE_MODEL = (
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.scale",
    "attention.clamp_kqv",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


def family_of(file: GGUFFile) -> Family:
    """The family that ``general.architecture`` names.

    Raises:
        MalformedModel: the key is missing.
        UnsupportedModel: another architecture, or one part of a split file.
    """
    fields = Fields(file.name, file.metadata)
    name = fields.text("general.architecture")
    if name not in FAMILIES:
        fields.refuse("general.architecture", f"these are supported: {', '.join(FAMILIES)}")
    if fields.integer("split.count", 0, 1 << 16, 1) > 1:
        fields.refuse("split.count", "merge the parts into one file first, with llama-gguf-split --merge")
    return FAMILIES[name]


def read_config(file: GGUFFile, family: Family) -> ModelConfig:
    """The file's configuration.

    Raises:
        MalformedModel: a key is missing, ill-typed or senseless; it is named.
        UnsupportedModel: the model needs something this build does not have; the key is named.
    """
    arch = Fields(file.name, file.metadata).text("general.architecture")
    fields = Fields(file.name, _uniform(file, arch))
    for key in _CHANGES_THE_MODEL:
        if fields.has(f"{arch}.{key}"):
            fields.refuse(f"{arch}.{key}", "this build cannot apply it")
    num_layers = fields.integer(f"{arch}.block_count", 1, MAX_LAYERS)
    hidden = fields.integer(f"{arch}.embedding_length", 1, MAX_WIDTH)
    num_heads = fields.integer(f"{arch}.attention.head_count", 1, MAX_HEADS)
    kv_key = f"{arch}.attention.head_count_kv"
    num_kv_heads = fields.integer(kv_key, 1, MAX_HEADS, num_heads)
    head_dim = _head_dim(fields, arch, hidden, num_heads)
    check_heads(fields, kv_key, num_heads, num_kv_heads, head_dim)
    moe = _moe(fields, arch, family)
    vocab_size = _vocab_size(fields, arch, file)
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer(
            f"{arch}.feed_forward_length", 1, MAX_WIDTH, moe.intermediate_size if moe else None
        ),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number(f"{arch}.attention.layer_norm_rms_epsilon", 1e-12, 0.1),
        max_position_embeddings=fields.integer(f"{arch}.context_length", 1, MAX_CONTEXT),
        rope=_rope(fields, arch, file, head_dim),
        tie_word_embeddings="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        qk_norm=family.qk_norm,
        windows=_windows(fields, arch, num_layers),
        moe=moe,
        moe_layers=(True,) * num_layers if moe else (),
        eos_token_ids=_eos_token_ids(fields, vocab_size),
    )


def _uniform(file: GGUFFile, arch: str) -> dict[str, object]:
    """The metadata, with per-layer sizes that are the same for all layers as one number."""
    values = dict(file.metadata)
    for key in ("feed_forward_length", "attention.head_count", "attention.head_count_kv"):
        per_layer = values.get(f"{arch}.{key}")
        if not isinstance(per_layer, memoryview) or not per_layer:
            continue
        sizes = per_layer.tolist()
        if any(size != sizes[0] for size in sizes):
            raise UnsupportedModel(f"{file.name}: {arch}.{key} differs between layers, which is not supported.")
        values[f"{arch}.{key}"] = sizes[0]
    return values


def _head_dim(fields: Fields, arch: str, hidden: int, num_heads: int) -> int:
    key = f"{arch}.attention.key_length"
    if not fields.has(key) and hidden % num_heads:
        fields.fail(f"{arch}.attention.head_count", f"must divide {arch}.embedding_length {hidden}")
    head_dim = fields.integer(key, 2, MAX_WIDTH, max(2, hidden // num_heads))
    if fields.integer(f"{arch}.attention.value_length", 1, MAX_WIDTH, head_dim) != head_dim:
        fields.refuse(f"{arch}.attention.value_length", f"only the key length {head_dim} is supported")
    if fields.integer(f"{arch}.rope.dimension_count", 1, MAX_WIDTH, head_dim) != head_dim:
        fields.refuse(f"{arch}.rope.dimension_count", f"only rotation of the whole head ({head_dim}) is supported")
    return head_dim


def _vocab_size(fields: Fields, arch: str, file: GGUFFile) -> int:
    """Rows of the embedding: what the model computes logits for."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise MalformedModel(f"{file.name}: tensor token_embd.weight is missing.")
    rows = embedding.shape[0]
    if fields.integer(f"{arch}.vocab_size", 1, MAX_WIDTH, rows) != rows:
        fields.fail(f"{arch}.vocab_size", f"must be the {rows} rows of token_embd.weight")
    return rows


def _moe(fields: Fields, arch: str, family: Family) -> MoeConfig | None:
    if not family.moe:
        if fields.integer(f"{arch}.expert_count", 0, MAX_WIDTH, 0):
            fields.refuse(f"{arch}.expert_count", f"experts are not supported in the {arch} architecture")
        return None
    num_experts = fields.integer(f"{arch}.expert_count", 1, 1 << 14)
    return MoeConfig(
        num_experts=num_experts,
        num_experts_per_tok=fields.integer(f"{arch}.expert_used_count", 1, num_experts),
        intermediate_size=fields.integer(f"{arch}.expert_feed_forward_length", 1, MAX_WIDTH),
        norm_topk_prob=fields.boolean(f"{arch}.expert_weights_norm", default=True),
    )


def _rope(fields: Fields, arch: str, file: GGUFFile, head_dim: int) -> RopeConfig:
    """Rotary embedding; a factor without a type is linear, as for llama.cpp."""
    prefix = f"{arch}.rope.scaling"
    theta = fields.number(f"{arch}.rope.freq_base", 2.0, 1e12, 10000.0)
    kind = fields.text(f"{prefix}.type", "linear")
    factor = fields.number(f"{prefix}.factor", 0.0, 1e6, fields.number(f"{arch}.rope.scale_linear", 0.0, 1e6, 0.0))
    factors = _freq_factors(file, head_dim)
    if kind not in {"none", "linear", "yarn"}:
        fields.refuse(f"{prefix}.type", "only none, linear and yarn are supported")
    if kind == "none" or factor in {0.0, 1.0}:
        return RopeConfig(theta=theta, freq_factors=factors)
    if factors is not None:
        fields.refuse(f"{prefix}.type", "scaling on top of the rope_freqs.weight tensor is not supported")
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=factor)
    return _yarn(fields, arch, theta, factor)


def _yarn(fields: Fields, arch: str, theta: float, factor: float) -> RopeConfig:
    prefix = f"{arch}.rope.scaling"
    for key, neutral in (("attn_factor", {1.0}), ("yarn_ext_factor", {1.0, -1.0}), ("yarn_log_multiplier", {0.0})):
        if fields.has(f"{prefix}.{key}") and fields.number(f"{prefix}.{key}", -1e6, 1e6) not in neutral:
            fields.refuse(f"{prefix}.{key}", "this build cannot apply it")
    context = fields.integer(f"{arch}.context_length", 1, MAX_CONTEXT)
    attention = f"{prefix}.yarn_attn_factor"
    beta_slow = fields.number(f"{prefix}.yarn_beta_slow", 1e-6, 1e6, 1.0)
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_position_embeddings=fields.integer(f"{prefix}.original_context_length", 1, MAX_CONTEXT, context),
        beta_fast=fields.number(f"{prefix}.yarn_beta_fast", beta_slow, 1e6, 32.0),
        beta_slow=beta_slow,
        attention_factor=fields.number(attention, 1e-6, 1e6) if fields.has(attention) else None,
    )


def _freq_factors(file: GGUFFile, head_dim: int) -> tuple[float, ...] | None:
    """The divisors in ``rope_freqs.weight``, where converters put Llama 3's scaling."""
    if "rope_freqs.weight" not in file.tensors:
        return None
    raw = file.raw("rope_freqs.weight")
    if raw.format is not WeightFormat.F32 or raw.shape != (head_dim // 2,):
        raise MalformedModel(f"{file.name}: tensor rope_freqs.weight must be F32 of shape ({head_dim // 2},).")
    factors = raw.data.view("<f4")
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise MalformedModel(f"{file.name}: tensor rope_freqs.weight holds a factor that is not a positive number.")
    return tuple(factors.tolist())


def _windows(fields: Fields, arch: str, num_layers: int) -> tuple[int | None, ...]:
    """Per-layer windows. A pattern is a flag a layer, or a period whose last layer sees everything; none means all."""
    window = fields.integer(f"{arch}.attention.sliding_window", 0, MAX_CONTEXT, 0)
    if window == 0:
        return ()
    key = f"{arch}.attention.sliding_window_pattern"
    pattern = fields.get(key)
    if isinstance(pattern, memoryview):
        if len(pattern) != num_layers:
            fields.fail(key, f"must have one flag for each of the {num_layers} layers")
        windowed = [bool(flag) for flag in pattern]
    else:
        period = fields.integer(key, 0, MAX_LAYERS, 0)
        windowed = [period == 0 or index % period < period - 1 for index in range(num_layers)]
    return tuple(window if flag else None for flag in windowed) if any(windowed) else ()


def _eos_token_ids(fields: Fields, vocab_size: int) -> tuple[int, ...]:
    """Ids named in the metadata, then control tokens with a name in ``EOS_NAMES``."""
    ids = [fields.integer(key, 0, vocab_size - 1) for key in EOS_KEYS if fields.has(key)]
    tokens, types = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, memoryview):
        controls = [index for index, kind in enumerate(types) if kind == _CONTROL]
        ids += [index for index in controls if index < len(tokens) and tokens[index] in EOS_NAMES]
    return tuple(dict.fromkeys(index for index in ids if index < vocab_size))
