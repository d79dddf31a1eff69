"""``config.json`` as we read it, against what transformers builds from the same file."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import transformers

from engine.config import ModelConfig, MoeConfig, RopeConfig
from engine.errors import MalformedModel, ModelError, ModelNotFound, UnsupportedModel
from engine.models.rope import rope_frequencies
from engine.weights.hf_config import DEFAULTS, read_config

Json = dict[str, object]

BASE: Json = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
}
EXPERTS: Json = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA3: Json = {
    **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
}
TYPES = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]

LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, SEED = DEFAULTS
MODEL_TYPES = dict(zip(DEFAULTS, ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "seed_oss"], strict=True))

CASES: list[tuple[str, Json]] = [
    (LLAMA, {}),
    (LLAMA, {"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu"}),
    (LLAMA, {"rope_theta": 10000, "attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    (LLAMA, {"num_key_value_heads": None, "head_dim": None, "sliding_window": 8}),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 20000.0}),
    (LLAMA, {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 500000.0}),
    (LLAMA, {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "rope_theta": 500000.0}}),
    (LLAMA, {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 30000.0}, "rope_theta": 1e6}),
    (LLAMA, {"rope_parameters": {"rope_type": "default"}, "rope_theta": 1e6}),
    (
        LLAMA,
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_scaling": {"type": "linear", "factor": 2}},
    ),
    (LLAMA, {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "original_max_position_embeddings": 64}),
    (MISTRAL, {}),
    (MISTRAL, {"sliding_window": None, "head_dim": 32}),
    (MISTRAL, {"sliding_window": 8, "attention_bias": True}),
    (QWEN2, {}),
    (QWEN2, {"sliding_window": 32, "use_sliding_window": False, "max_window_layers": 2}),
    (QWEN2, {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 2}),
    (QWEN2, {"use_sliding_window": True, "max_window_layers": 0}),
    (QWEN2, {"use_sliding_window": True, "max_window_layers": 28}),
    (QWEN2, {"use_sliding_window": True, "sliding_window": 16, "layer_types": TYPES}),
    (QWEN2, {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    (QWEN2, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 1000000.0, "head_dim": 32}),
    (QWEN3, {}),
    (QWEN3, {"head_dim": 32, "attention_bias": True, "tie_word_embeddings": True}),
    (QWEN3, {"head_dim": 32, "use_sliding_window": True, "sliding_window": 16, "layer_types": TYPES}),
    (
        QWEN3,
        {
            "rope_parameters": {
                **{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 1e6},
                **{"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False, "mscale": 0.7, "mscale_all_dim": 0.4},
            },
        },
    ),
    (QWEN3, {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 0.5}}),
    (QWEN3_MOE, EXPERTS),
    (QWEN3_MOE, {**EXPERTS, "norm_topk_prob": True, "head_dim": 32, "mlp_only_layers": [0, 2]}),
    (QWEN3_MOE, {**EXPERTS, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 16}),
    (QWEN3_MOE, {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    (SEED, {}),
    (SEED, {"head_dim": 32, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
]
MISSING: list[tuple[str, str]] = [
    (architecture, key)
    for architecture in DEFAULTS
    for key in ("num_key_value_heads", "max_position_embeddings")
    if (architecture, key) not in {(QWEN2, "num_key_value_heads"), (QWEN3, "num_key_value_heads")}
]


def write(folder: Path, architecture: str, changes: Json, *, without: tuple[str, ...] = ()) -> Path:
    """A folder with that ``config.json``."""
    values = {"architectures": [architecture], "model_type": MODEL_TYPES[architecture], **BASE, **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k not in without}))
    return folder


def judge(folder: Path) -> tuple[ModelConfig, torch.nn.Module]:
    """The configuration as the modules that transformers builds show it, and the rotary embedding."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    layers = model.model.layers
    attention = layers[0].self_attn
    windows = tuple(getattr(layer.self_attn, "sliding_window", None) for layer in layers)
    if architecture_of(model) == MISTRAL:
        windows = (config.sliding_window,) * len(layers)
    moe_layers = tuple(hasattr(layer.mlp, "experts") for layer in layers)
    dense = next((layer.mlp for layer in layers if not hasattr(layer.mlp, "experts")), None)
    expert = next((layer.mlp for layer in layers if hasattr(layer.mlp, "experts")), None)
    head_dim = attention.head_dim
    eos = config.eos_token_id
    return ModelConfig(
        architecture=architecture_of(model),
        vocab_size=model.model.embed_tokens.num_embeddings,
        hidden_size=model.model.embed_tokens.embedding_dim,
        intermediate_size=dense.gate_proj.out_features if dense is not None else config.intermediate_size,
        num_layers=len(layers),
        num_heads=attention.q_proj.out_features // head_dim,
        num_kv_heads=attention.k_proj.out_features // head_dim,
        head_dim=head_dim,
        rms_norm_eps=layers[0].input_layernorm.variance_epsilon,
        max_position_embeddings=config.max_position_embeddings,
        rope=RopeConfig(),
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=attention.q_proj.bias is not None,
        o_bias=attention.o_proj.bias is not None,
        mlp_bias=dense is not None and dense.gate_proj.bias is not None,
        qk_norm=hasattr(attention, "q_norm"),
        windows=windows if any(windows) else (),
        moe=MoeConfig(
            num_experts=expert.experts.num_experts,
            num_experts_per_tok=expert.gate.top_k,
            intermediate_size=expert.experts.intermediate_dim,
            norm_topk_prob=expert.gate.norm_topk_prob,
        )
        if expert is not None
        else None,
        moe_layers=moe_layers if any(moe_layers) else (),
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
    ), type(model.model.rotary_emb)(config)


def architecture_of(model: torch.nn.Module) -> str:
    return type(model).__name__


def assert_as_transformers(folder: Path) -> None:
    ours = read_config(folder)
    want, rotary = judge(folder)
    assert msgspec.structs.replace(ours, rope=RopeConfig()) == want
    inv_freq, scale = rope_frequencies(ours.rope, ours.head_dim)
    # transformers computes them in float32, we in float64: a few units of float32's last place.
    np.testing.assert_allclose(inv_freq, rotary.inv_freq.numpy(), rtol=2e-6)
    assert scale == pytest.approx(rotary.attention_scaling, rel=1e-12)


@pytest.mark.parametrize(("architecture", "changes"), CASES, ids=[f"{a}-{i}" for i, (a, _) in enumerate(CASES)])
def test_as_transformers(tmp_path: Path, architecture: str, changes: Json) -> None:
    assert_as_transformers(write(tmp_path, architecture, changes))


@pytest.mark.parametrize(("architecture", "key"), MISSING)
def test_missing_keys_mean_what_transformers_takes_them_for(tmp_path: Path, architecture: str, key: str) -> None:
    changes = {"num_attention_heads": 8, "hidden_size": 128, **(EXPERTS if architecture == QWEN3_MOE else {})}
    assert_as_transformers(write(tmp_path, architecture, changes, without=(key,)))


@pytest.mark.parametrize("architecture", [QWEN2, QWEN3])
def test_missing_heads_of_qwen(tmp_path: Path, architecture: str) -> None:
    changes = {"num_attention_heads": 32, "hidden_size": 128}
    assert_as_transformers(write(tmp_path, architecture, changes, without=("num_key_value_heads",)))


def test_what_transformers_saves_is_what_it_reads(tmp_path: Path) -> None:
    for architecture, changes in CASES:
        transformers.AutoConfig.from_pretrained(write(tmp_path, architecture, changes)).save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**saved, "architectures": [architecture]}))
        assert_as_transformers(tmp_path)


class TestArchitecture:
    def test_by_model_type(self, tmp_path: Path) -> None:
        for architecture in DEFAULTS:
            changes = EXPERTS if architecture == QWEN3_MOE else {}
            config = read_config(write(tmp_path, architecture, changes, without=("architectures",)))
            assert config.architecture == architecture

    def test_the_first_that_is_served(self, tmp_path: Path) -> None:
        assert read_config(write(tmp_path, LLAMA, {"architectures": ["Other", QWEN2]})).architecture == QWEN2

    @pytest.mark.parametrize(
        ("changes", "error", "match"),
        [
            ({"architectures": ["Glm4ForCausalLM"]}, UnsupportedModel, "'Glm4ForCausalLM' is not supported"),
            ({"architectures": None, "model_type": "glm4"}, UnsupportedModel, "'glm4' is not supported"),
            ({"architectures": None, "model_type": None}, MalformedModel, "'model_type' is missing"),
            ({"architectures": []}, MalformedModel, "'architectures' must be"),
            ({"architectures": [1]}, MalformedModel, "'architectures' must be"),
            ({"architectures": LLAMA}, MalformedModel, "'architectures' must be"),
        ],
    )
    def test_others(self, tmp_path: Path, changes: Json, error: type[ModelError], match: str) -> None:
        with pytest.raises(error, match=match):
            read_config(write(tmp_path, LLAMA, changes))


class TestEndTokens:
    @pytest.mark.parametrize(
        ("config", "generation", "want"),
        [
            (7, None, (7,)),
            ([7, 9, 7], None, (7, 9)),
            (7, {"eos_token_id": [3, 4]}, (3, 4)),
            (7, {"eos_token_id": 3}, (3,)),
            (7, {"temperature": 1.0}, (7,)),
            (7, {"eos_token_id": None}, (7,)),
            (None, None, ()),
            ([95, 96], None, (95,)),
        ],
    )
    def test_where_they_come_from(self, tmp_path: Path, config: object, generation: object, want: object) -> None:
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        assert read_config(write(tmp_path, QWEN2, {"eos_token_id": config})).eos_token_ids == want

    @pytest.mark.parametrize("value", ["</s>", -1, 1.5, [True], {}])
    def test_senseless(self, tmp_path: Path, value: object) -> None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        folder = write(tmp_path, LLAMA, {})
        with pytest.raises(MalformedModel, match=r"generation_config\.json: 'eos_token_id'"):
            read_config(folder)


YARN: Json = {"rope_type": "yarn", "factor": 4.0}
REFUSED: list[tuple[str, Json, type[ModelError], str]] = [
    (LLAMA, {"hidden_act": "gelu"}, UnsupportedModel, "'hidden_act' is 'gelu'"),
    (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedModel, "'dynamic'"),
    (LLAMA, {"rope_parameters": {"rope_type": "longrope"}}, UnsupportedModel, "'longrope'"),
    (LLAMA, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, UnsupportedModel, "rope_parameters"),
    (LLAMA, {"partial_rotary_factor": 0.5}, UnsupportedModel, "partial_rotary_factor"),
    (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedModel, "partial_rotary_factor"),
    (QWEN2, {"layer_types": ["linear_attention"] * 4}, UnsupportedModel, "'linear_attention'"),
    (MISTRAL, {"layer_types": TYPES}, UnsupportedModel, "layer_types"),
    (QWEN2, {"layer_types": TYPES}, MalformedModel, "layer_types"),
    (QWEN2, {"layer_types": TYPES[:3]}, MalformedModel, "layer_types"),
    (QWEN2, {"layer_types": "full"}, MalformedModel, "layer_types"),
    (QWEN2, {"use_sliding_window": 1}, MalformedModel, "use_sliding_window"),
    (QWEN2, {"use_sliding_window": True, "sliding_window": 0}, MalformedModel, "sliding_window"),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, MalformedModel, "'factor' is missing"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0}}, MalformedModel, "'factor'"),
    (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, MalformedModel, "'low_freq_factor'"),
    (LLAMA, {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, MalformedModel, "above"),
    (LLAMA, {"rope_scaling": {**YARN, "beta_fast": 0.5}}, MalformedModel, "'beta_fast'"),
    (LLAMA, {"rope_scaling": {**YARN, "truncate": 1}}, MalformedModel, "'truncate'"),
    (LLAMA, {"rope_scaling": "linear"}, MalformedModel, "'rope_scaling'"),
    (LLAMA, {"rope_scaling": {"type": 1}}, MalformedModel, "'type'"),
    (LLAMA, {"rope_theta": 0}, MalformedModel, "'rope_theta'"),
    (LLAMA, {"rope_theta": "10000"}, MalformedModel, "'rope_theta'"),
    (LLAMA, {"num_hidden_layers": 10**9}, MalformedModel, "'num_hidden_layers'"),
    (LLAMA, {"num_hidden_layers": 0}, MalformedModel, "'num_hidden_layers'"),
    (LLAMA, {"num_hidden_layers": 10**40}, MalformedModel, "'num_hidden_layers'.*an integer of 133 bits"),
    (LLAMA, {"vocab_size": None}, MalformedModel, "'vocab_size' is missing"),
    (LLAMA, {"hidden_size": 64.0}, MalformedModel, "'hidden_size'"),
    (LLAMA, {"intermediate_size": [48]}, MalformedModel, "'intermediate_size'.*a list"),
    (LLAMA, {"num_attention_heads": 0}, MalformedModel, "'num_attention_heads'"),
    (LLAMA, {"num_attention_heads": 6}, MalformedModel, "'num_attention_heads' must divide"),
    (LLAMA, {"num_key_value_heads": 3}, MalformedModel, "'num_key_value_heads' must divide"),
    (LLAMA, {"head_dim": 15}, MalformedModel, "no two rotary halves"),
    (LLAMA, {"head_dim": 0}, MalformedModel, "'head_dim'"),
    (LLAMA, {"rms_norm_eps": 0}, MalformedModel, "'rms_norm_eps'"),
    (LLAMA, {"rms_norm_eps": -1e-5}, MalformedModel, "'rms_norm_eps'"),
    (LLAMA, {"max_position_embeddings": 0}, MalformedModel, "'max_position_embeddings'"),
    (LLAMA, {"tie_word_embeddings": "no"}, MalformedModel, "'tie_word_embeddings'"),
    (QWEN3_MOE, {}, MalformedModel, "'num_local_experts' is missing"),
    (QWEN3_MOE, {**EXPERTS, "num_experts_per_tok": 9}, MalformedModel, "'num_experts_per_tok'"),
    (QWEN3_MOE, {**EXPERTS, "mlp_only_layers": 1}, MalformedModel, "'mlp_only_layers'"),
    (QWEN3_MOE, {**EXPERTS, "decoder_sparse_step": 0}, MalformedModel, "'decoder_sparse_step'"),
]


@pytest.mark.parametrize(
    ("architecture", "changes", "error", "match"), REFUSED, ids=[f"{r[0]}-{json.dumps(r[1])[:60]}" for r in REFUSED]
)
def test_refused(tmp_path: Path, architecture: str, changes: Json, error: type[ModelError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        read_config(write(tmp_path, architecture, changes))
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b'{"a":' * 100_000, b"[" * 100_000, b"{" + b'"a":0,' * (1 << 20)]
)
def test_no_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(MalformedModel, match=r"config\.json"):
        read_config(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_config(tmp_path)
