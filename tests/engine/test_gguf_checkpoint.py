"""GGUF checkpoints of every architecture: tensors and configuration are those of the model that was converted."""

from __future__ import annotations

from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import PreTrainedConfig

from engine.config import ModelConfig, RopeConfig
from engine.errors import MalformedModel, ModelError, UnsupportedModel
from engine.weights.gguf_checkpoint import GGUFCheckpoint
from engine.weights.hf_checkpoint import HFCheckpoint
from kernels.formats import WeightFormat
from kernels.reference.dequant import dequantise
from tests.support.tiny_checkpoints import ARCHITECTURES, hf_tensors, interleave, tiny_model, write_gguf_model

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensors, PreTrainedConfig]]:
    """Every architecture's tiny model, saved by transformers."""
    out = {}
    for architecture in ARCHITECTURES:
        folder = tmp_path_factory.mktemp(architecture)
        model = tiny_model(architecture)
        model.save_pretrained(folder)
        out[architecture] = (folder, hf_tensors(folder), model.config)
    return out


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


class Writer:
    """Writes one architecture's model with changes, and opens it."""

    def __init__(self, path: Path, architecture: str, tensors: Tensors, config: PreTrainedConfig) -> None:
        self.path, self.architecture, self.tensors, self.config = path, architecture, tensors, config

    def open(self, metadata: dict[str, object] | None = None, **more: object) -> GGUFCheckpoint:
        tensors = {**self.tensors, **more.pop("tensors", {})}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        write_gguf_model(self.path, self.architecture, tensors, self.config, metadata=metadata, **more)
        return GGUFCheckpoint(self.path)


@pytest.fixture
def writer(saved, path: Path, request: pytest.FixtureRequest) -> Writer:
    architecture = getattr(request, "param", "LlamaForCausalLM")
    return Writer(path, architecture, *saved[architecture][1:])


def of(architecture: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("writer", [architecture], indirect=True)


@pytest.mark.parametrize("writer", ARCHITECTURES, indirect=True)
class TestEveryArchitecture:
    def test_tensors(self, writer: Writer) -> None:
        checkpoint = writer.open()
        for name, tensor in writer.tensors.items():
            assert np.array_equal(dequantise(checkpoint.tensor(name)), tensor.numpy()), name
        assert checkpoint.total_bytes == sum(4 * tensor.numel() for tensor in writer.tensors.values())

    def test_configuration_is_that_of_the_folder(self, writer: Writer, saved) -> None:
        want = HFCheckpoint(saved[writer.architecture][0]).config
        eps = float(np.float32(want.rms_norm_eps))
        want = msgspec.structs.replace(want, rms_norm_eps=eps, eos_token_ids=())
        if writer.architecture == "MistralForCausalLM":
            want = msgspec.structs.replace(want, architecture="LlamaForCausalLM")
        window = {"{arch}.attention.sliding_window": 16} if want.windows else {}
        assert writer.open(window).config == want

    def test_packed_rows_are_reordered_packed(self, writer: Writer) -> None:
        kind = GGMLQuantizationType.Q8_0
        checkpoint = writer.open(quantisation=kind)
        for name, tensor in writer.tensors.items():
            raw = checkpoint.tensor(name)
            want = tensor.numpy()
            if want.ndim > 1:
                assert raw.format is WeightFormat.Q8_0
                want = gguf.quants.dequantize(gguf.quants.quantize(want, kind), kind)
            assert np.array_equal(dequantise(raw), want), name

    def test_missing_and_misshapen_tensors_are_named(self, writer: Writer) -> None:
        for name in writer.tensors:
            if name in {"model.embed_tokens.weight", "lm_head.weight"} or name.endswith(".bias"):
                continue
            with pytest.raises(MalformedModel, match=f"tensor {name} is missing"):
                writer.open(tensors={name: None})
        for name in ("model.norm.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"):
            tensor = writer.tensors[name]
            with pytest.raises(MalformedModel, match=f"tensor {name} has shape"):
                writer.open(tensors={name: torch.cat([tensor, tensor])})


class TestTensors:
    def test_most_are_views(self, writer: Writer) -> None:
        checkpoint = writer.open()
        assert not checkpoint.tensor("model.layers.0.mlp.up_proj.weight").data.flags.owndata
        assert checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").data.flags.owndata

    def test_what_is_not_there(self, writer: Writer) -> None:
        checkpoint = writer.open()
        for name in ("model.layers.3.input_layernorm.weight", "model.layers.0.mlp.gate.weight", "x", "output.weight"):
            with pytest.raises(MalformedModel, match="is missing"):
                checkpoint.tensor(name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_biases_of_q_and_k_are_reordered_too(self, writer: Writer, dtype: torch.dtype) -> None:
        torch.manual_seed(1)
        widths = {"q": 64, "k": 32, "v": 32}
        biases = {
            f"model.layers.{i}.self_attn.{p}_proj.bias": torch.randn(w).to(dtype)
            for i in range(3)
            for p, w in widths.items()
        }
        if dtype is torch.float32:
            checkpoint = writer.open(tensors=biases)
        else:
            heads = {"q": 4, "k": 2, "v": None}
            extra = {}
            for name, bias in biases.items():
                layer, part = name.split(".")[2], name.split(".")[4][0]
                stored = interleave(bias, heads[part]) if heads[part] else bias
                extra[f"blk.{layer}.attn_{part}.bias"] = stored.numpy()
            checkpoint = writer.open(extra=extra)
        assert checkpoint.config.qkv_bias
        assert not checkpoint.config.o_bias
        for name, bias in biases.items():
            assert np.array_equal(dequantise(checkpoint.tensor(name)), bias.float().numpy())

    def test_a_packed_bias_is_refused(self, writer: Writer) -> None:
        packed = gguf.quants.quantize(np.ones(64, np.float32), GGMLQuantizationType.Q8_0)
        names = [f"blk.{i}.attn_{p}.bias" for i in range(3) for p in "qkv"]
        write_gguf_model(
            writer.path,
            writer.architecture,
            writer.tensors,
            writer.config,
            extra={n: np.ones(64 if "_q" in n else 32, np.float32) for n in names},
        )
        content = writer.path.read_bytes()
        head = b"blk.0.attn_q.bias" + (1).to_bytes(4, "little") + (64).to_bytes(8, "little")
        assert content.count(head) == 1
        writer.path.write_bytes(content.replace(head + bytes(4), head + (8).to_bytes(4, "little")))
        assert len(packed) < 256
        with pytest.raises(MalformedModel, match="Q8_0 blocks"):
            GGUFCheckpoint(writer.path).tensor("model.layers.0.self_attn.q_proj.bias")

    def test_output_and_mlp_biases(self, writer: Writer) -> None:
        extra = {f"blk.{i}.attn_output.bias": np.ones(64, np.float32) for i in range(3)}
        for part, width in (("gate", 128), ("up", 128), ("down", 64)):
            extra |= {f"blk.{i}.ffn_{part}.bias": np.full(width, 2, np.float32) for i in range(3)}
        config = writer.open(extra=extra).config
        assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (False, True, True)
        del extra["blk.2.ffn_gate.bias"]
        with pytest.raises(MalformedModel, match=r"model\.layers\.2\.mlp\.gate_proj\.bias is missing"):
            writer.open(extra=extra)

    def test_a_missing_head_is_tied(self, writer: Writer) -> None:
        assert not writer.open().config.tie_word_embeddings
        checkpoint = writer.open(tensors={"lm_head.weight": None})
        assert checkpoint.config.tie_word_embeddings
        with pytest.raises(MalformedModel, match="is missing"):
            checkpoint.tensor("lm_head.weight")

    def test_a_tensor_that_has_no_place_is_refused(self, writer: Writer) -> None:
        with pytest.raises(UnsupportedModel, match=r"'blk\.0\.attn_sinks\.weight' has no place"):
            writer.open(extra={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})

    def test_no_embedding(self, writer: Writer) -> None:
        with pytest.raises(MalformedModel, match=r"token_embd\.weight is missing"):
            writer.open(tensors={"model.embed_tokens.weight": None})


class TestRope:
    PREFIX = "{arch}.rope.scaling."

    def rope(self, writer: Writer, **keys: object) -> RopeConfig:
        return writer.open({self.PREFIX + key: value for key, value in keys.items()}).config.rope

    def test_theta(self, writer: Writer) -> None:
        assert writer.open({"{arch}.rope.freq_base": 5e5}).config.rope == RopeConfig(theta=5e5)
        assert writer.open({"{arch}.rope.freq_base": None}).config.rope == RopeConfig(theta=10000.0)

    @pytest.mark.parametrize("keys", [{"type": "none", "factor": 4.0}, {"type": "linear"}, {"factor": 1.0}])
    def test_none(self, writer: Writer, keys: dict[str, object]) -> None:
        assert self.rope(writer, **keys) == RopeConfig()

    def test_linear(self, writer: Writer) -> None:
        linear = RopeConfig(kind="linear", factor=4.0)
        assert self.rope(writer, type="linear", factor=4.0) == linear
        assert self.rope(writer, factor=4.0) == linear
        assert writer.open({"{arch}.rope.scale_linear": 4.0}).config.rope == linear

    def test_yarn(self, writer: Writer) -> None:
        plain = RopeConfig(kind="yarn", factor=4.0, original_max_position_embeddings=64)
        assert self.rope(writer, type="yarn", factor=4.0, original_context_length=64) == plain
        without = self.rope(writer, type="yarn", factor=4.0)
        assert without.original_max_position_embeddings == 256
        full = self.rope(
            writer,
            **{"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 16.0},
            **{"yarn_beta_slow": 2.0, "yarn_attn_factor": 0.5, "yarn_ext_factor": 1.0, "attn_factor": 1.0},
        )
        assert full == msgspec.structs.replace(plain, beta_fast=16.0, beta_slow=2.0, attention_factor=0.5)

    @pytest.mark.parametrize(
        "keys",
        [
            {"type": "longrope", "factor": 4.0},
            {"type": "yarn", "factor": 4.0, "attn_factor": 0.5},
            {"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.5},
            {"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 0.1},
        ],
    )
    def test_what_is_not_supported(self, writer: Writer, keys: dict[str, object]) -> None:
        with pytest.raises(UnsupportedModel, match=r"llama\.rope\.scaling"):
            self.rope(writer, **keys)

    def test_frequency_factors(self, writer: Writer) -> None:
        factors = np.linspace(1, 8, 8, dtype=np.float32)
        config = writer.open(extra={"rope_freqs.weight": factors}).config
        assert config.rope == RopeConfig(freq_factors=tuple(factors.tolist()))
        with pytest.raises(UnsupportedModel, match="on top of the rope_freqs"):
            writer.open({self.PREFIX + "factor": 2.0}, extra={"rope_freqs.weight": factors})

    @pytest.mark.parametrize("factors", [np.ones(7), np.zeros(8), np.full(8, np.nan), np.full(8, np.inf), -np.ones(8)])
    def test_senseless_frequency_factors(self, writer: Writer, factors: np.ndarray) -> None:
        with pytest.raises(MalformedModel, match=r"rope_freqs\.weight"):
            writer.open(extra={"rope_freqs.weight": factors.astype(np.float32)})


class TestWindows:
    @pytest.mark.parametrize(
        ("window", "pattern", "want"),
        [
            (0, None, ()),
            (None, 2, ()),
            (8, None, (8, 8, 8)),
            (8, 0, (8, 8, 8)),
            (8, 2, (8, None, 8)),
            (8, 3, (8, 8, None)),
            (8, 1, ()),
            (8, [False, True, False], (None, 8, None)),
            (8, [0, 0, 1], (None, None, 8)),
            (8, [False] * 3, ()),
        ],
    )
    def test_windows(self, writer: Writer, window: object, pattern: object, want: tuple[int | None, ...]) -> None:
        keys = {"{arch}.attention.sliding_window": window, "{arch}.attention.sliding_window_pattern": pattern}
        assert writer.open(keys).config.windows == want

    def test_a_pattern_of_another_length(self, writer: Writer) -> None:
        keys = {"{arch}.attention.sliding_window": 8, "{arch}.attention.sliding_window_pattern": [True, False]}
        with pytest.raises(MalformedModel, match=r"llama\.attention\.sliding_window_pattern"):
            writer.open(keys)


class TestEndTokens:
    def ids(self, writer: Writer, names: dict[int, str], controls: list[int], **keys: int) -> tuple[int, ...]:
        tokens = [names.get(index, f"t{index}") for index in range(96)]
        types = [3 if index in controls else 1 for index in range(96)]
        metadata = {f"tokenizer.ggml.{key}_token_id": index for key, index in keys.items()}
        metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
        return writer.open(metadata).config.eos_token_ids

    def test_none_without_a_vocabulary(self, writer: Writer) -> None:
        assert writer.open().config.eos_token_ids == ()

    def test_named_by_a_key(self, writer: Writer) -> None:
        assert self.ids(writer, {}, [], eos=5, eot=3, eom=7, bos=9, padding=11) == (5, 3, 7)
        assert self.ids(writer, {}, [], eos=5, eot=5) == (5,)

    def test_control_tokens_by_name(self, writer: Writer) -> None:
        names = {1: "<|im_end|>", 2: "<|im_start|>", 4: "<|endoftext|>", 6: "<|eot_id|>", 8: "<end_of_turn>"}
        assert self.ids(writer, names, [1, 2, 4, 6, 8], eos=6) == (6, 1, 4, 8)
        assert self.ids(writer, names, [2, 4], eos=6) == (6, 4)

    def test_beyond_the_vocabulary(self, writer: Writer) -> None:
        with pytest.raises(MalformedModel, match=r"tokenizer\.ggml\.eos_token_id"):
            self.ids(writer, {}, [], eos=96)
        metadata = {"tokenizer.ggml.tokens": ["x"] * 96 + ["<|im_end|>"], "tokenizer.ggml.token_type": [3] * 97}
        assert writer.open(metadata).config.eos_token_ids == ()


SENSELESS: list[tuple[str, object, type[ModelError]]] = [
    ("{arch}.block_count", None, MalformedModel),
    ("{arch}.block_count", 0, MalformedModel),
    ("{arch}.block_count", 10**9, MalformedModel),
    ("{arch}.block_count", "3", MalformedModel),
    ("{arch}.block_count", 3.0, MalformedModel),
    ("{arch}.block_count", True, MalformedModel),
    ("{arch}.embedding_length", None, MalformedModel),
    ("{arch}.embedding_length", 0, MalformedModel),
    ("{arch}.context_length", None, MalformedModel),
    ("{arch}.context_length", 0, MalformedModel),
    ("{arch}.feed_forward_length", None, MalformedModel),
    ("{arch}.feed_forward_length", [128, 128, 64], UnsupportedModel),
    ("{arch}.attention.head_count", None, MalformedModel),
    ("{arch}.attention.head_count", 0, MalformedModel),
    ("{arch}.attention.head_count", 10**9, MalformedModel),
    ("{arch}.attention.head_count", [4, 4, 2], UnsupportedModel),
    ("{arch}.attention.head_count_kv", 0, MalformedModel),
    ("{arch}.attention.head_count_kv", 3, MalformedModel),
    ("{arch}.attention.head_count_kv", 8, MalformedModel),
    ("{arch}.attention.key_length", 0, MalformedModel),
    ("{arch}.attention.value_length", 8, UnsupportedModel),
    ("{arch}.rope.dimension_count", 8, UnsupportedModel),
    ("{arch}.attention.layer_norm_rms_epsilon", None, MalformedModel),
    ("{arch}.attention.layer_norm_rms_epsilon", 0.0, MalformedModel),
    ("{arch}.attention.layer_norm_rms_epsilon", -1.0, MalformedModel),
    ("{arch}.attention.layer_norm_rms_epsilon", float("nan"), MalformedModel),
    ("{arch}.attention.layer_norm_rms_epsilon", float("inf"), MalformedModel),
    ("{arch}.attention.sliding_window", "8", MalformedModel),
    ("{arch}.rope.freq_base", 0.0, MalformedModel),
    ("{arch}.rope.freq_base", float("nan"), MalformedModel),
    ("{arch}.rope.scaling.factor", -1.0, MalformedModel),
    ("{arch}.rope.scaling.type", 1, MalformedModel),
    ("{arch}.vocab_size", 97, MalformedModel),
    ("{arch}.expert_count", 8, UnsupportedModel),
    ("{arch}.logit_scale", 0.5, UnsupportedModel),
    ("{arch}.attention.scale", 0.5, UnsupportedModel),
    ("split.count", 2, UnsupportedModel),
]


@pytest.mark.parametrize(("key", "value", "error"), SENSELESS, ids=[f"{key}={value}" for key, value, _ in SENSELESS])
def test_a_senseless_key_is_named(writer: Writer, key: str, value: object, error: type[ModelError]) -> None:
    with pytest.raises(error, match=key.format(arch="llama").replace(".", r"\.")):
        writer.open({key: value})


def test_uneven_heads(writer: Writer) -> None:
    keys = {"{arch}.attention.head_count": 5, "{arch}.attention.head_count_kv": 5}
    with pytest.raises(MalformedModel, match=r"llama\.attention\.head_count' must divide"):
        writer.open({**keys, "{arch}.attention.key_length": None, "{arch}.attention.value_length": None})
    odd = {"{arch}.attention.key_length": 15, "{arch}.attention.value_length": 15}
    with pytest.raises(MalformedModel, match="no two rotary halves"):
        writer.open(odd)


def test_per_layer_sizes_that_are_all_the_same(writer: Writer) -> None:
    want = writer.open().config
    keys = {"{arch}.attention.head_count": [4] * 3, "{arch}.feed_forward_length": [128] * 3}
    assert writer.open(keys).config == want


@of("Qwen3MoeForCausalLM")
class TestExperts:
    def test_normalisation_is_on_unless_the_file_says_otherwise(self, writer: Writer) -> None:
        for value, want in ((None, True), (True, True), (False, False)):
            moe = writer.open({"{arch}.expert_weights_norm": value}).config.moe
            assert moe is not None
            assert moe.norm_topk_prob is want

    def test_dense_width_may_be_missing(self, writer: Writer) -> None:
        assert writer.open({"{arch}.feed_forward_length": None}).config.intermediate_size == 32

    @pytest.mark.parametrize(
        ("key", "value"), [("expert_count", 0), ("expert_count", None), ("expert_used_count", 5)], ids=str
    )
    def test_senseless(self, writer: Writer, key: str, value: object) -> None:
        with pytest.raises(MalformedModel, match=f"qwen3moe.{key}"):
            writer.open({"{arch}." + key: value})


def test_other_architectures_are_named(path: Path) -> None:
    for name, match in (("gemma3", "'general.architecture' is 'gemma3'"), ("LLAMA", "'LLAMA'")):
        write = gguf.GGUFWriter(path, name)
        write.write_header_to_file()
        write.write_kv_data_to_file()
        write.write_tensors_to_file()
        write.close()
        with pytest.raises(UnsupportedModel, match=match):
            GGUFCheckpoint(path)


def test_the_default_model(default_model: Path) -> None:
    checkpoint = GGUFCheckpoint(default_model)
    assert checkpoint.config == ModelConfig(
        **{"architecture": "LlamaForCausalLM", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536},
        **{"num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "max_position_embeddings": 8192},
        rms_norm_eps=float(np.float32(1e-5)),
        rope=RopeConfig(theta=100000.0),
        tie_word_embeddings=True,
        eos_token_ids=(2, 0),
    )
    assert checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").format is WeightFormat.Q4_1
