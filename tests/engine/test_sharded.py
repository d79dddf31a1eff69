"""``--tensor-parallel-size``: the ranks' parts of a checkpoint together are the whole of it, in every format."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import ModelConfig, MoeConfig, RopeConfig
from engine.errors import MalformedModel, UnsupportedModel
from engine.weights.open import open_checkpoint
from engine.weights.quantised import is_quantised, quantised
from engine.weights.shapes import expected_shapes
from engine.weights.sharded import ShardedCheckpoint, split_of
from kernels.formats import WeightFormat
from kernels.quantise import to_w8a8
from kernels.reference.dequant import codes_and_scales, dequantise
from kernels.spec import random_tensor
from tests.support.tiny_models import GOLDEN, TINY_MODELS

DENSE = ModelConfig(
    architecture="SeedOssForCausalLM",
    vocab_size=37,
    hidden_size=256,
    intermediate_size=768,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
    rope=RopeConfig(),
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    qk_norm=True,
)
MOE = msgspec.structs.replace(
    DENSE,
    architecture="Qwen3MoeForCausalLM",
    mlp_bias=False,
    moe=MoeConfig(num_experts=3, num_experts_per_tok=2, intermediate_size=512, norm_topk_prob=True),
    moe_layers=(True, False),
)
BY_COLUMNS = ("o_proj.weight", "down_proj.weight")
BY_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")


class Stored:
    """A checkpoint of random tensors, matrices in one format and vectors in float32."""

    def __init__(self, config, kind, seed=0):
        rng = np.random.default_rng(seed)
        self.config = config
        self.tensors = {
            name: random_tensor(rng, shape, kind if len(shape) > 1 else WeightFormat.F32)
            for name, shape in expected_shapes(config).items()
        }
        self.total_bytes = sum(raw.nbytes for raw in self.tensors.values())

    def tensor(self, name):
        return self.tensors[name]

    def format(self, name):
        return self.tensors[name].format

    def vocabulary(self):
        return "the vocabulary"


def assert_whole(stored, size):
    """All ranks' parts, one behind the other, are the stored tensor, to the last bit of what it means."""
    parts = [ShardedCheckpoint(stored, rank, size) for rank in range(size)]
    for name in expected_shapes(stored.config):
        whole, cut = dequantise(stored.tensor(name)), [dequantise(part.tensor(name)) for part in parts]
        if name.endswith(BY_COLUMNS):
            put_together = np.concatenate(cut, axis=-1)
        elif name.split(".")[-2] in BY_ROWS:
            put_together = np.concatenate(cut, axis=-1 if name.endswith("bias") else -2)
        else:
            assert all(other.tobytes() == whole.tobytes() for other in cut), name
            put_together = cut[0]
        assert put_together.shape == whole.shape, name
        assert put_together.tobytes() == whole.tobytes(), name


@settings(max_examples=25)
@given(kind=st.sampled_from(list(WeightFormat)), config=st.sampled_from([DENSE, MOE]), size=st.sampled_from([1, 2, 4]))
def test_the_parts_together_are_the_whole(kind, config, size):
    assert_whole(Stored(config, kind), size)


@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.parametrize("quantization", ["none", "w8a8"])
def test_the_parts_of_a_real_folder_are_the_whole(name, quantization):
    assert_whole(quantised(open_checkpoint(GOLDEN / name), quantization), 2)


@pytest.mark.parametrize("kind", list(WeightFormat))
@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_parts_are_of_the_shapes_that_their_configuration_asks_for(kind, config):
    stored = Stored(config, kind)
    rows = 0
    for rank in range(4):
        part = ShardedCheckpoint(stored, rank, 4)
        assert part.config.vocab_size == config.vocab_size
        tensors = {name: part.tensor(name) for name in expected_shapes(part.config)}
        for name, shape in expected_shapes(part.config).items():
            if split_of(name) == "vocabulary":
                assert tensors[name].shape[1:] == shape[1:]
            else:
                assert tensors[name].shape == shape, name
            assert tensors[name].format is part.format(name), name
        assert part.total_bytes == sum(raw.nbytes for raw in tensors.values())
        rows += len(tensors["lm_head.weight"].data)
    assert rows == config.vocab_size


def test_a_rank_has_its_own_share_and_no_more():
    part = ShardedCheckpoint(Stored(MOE, WeightFormat.BF16), 1, 4)
    assert (part.config.num_heads, part.config.num_kv_heads, part.config.intermediate_size) == (2, 1, 192)
    assert part.config.moe.intermediate_size == 128
    assert part.config.moe.num_experts == MOE.moe.num_experts
    assert part.vocabulary() == "the vocabulary"


def test_blocks_stay_packed_where_columns_end_between_them_and_become_floats_where_not():
    for kind, size, packed in (
        (WeightFormat.Q4_K, 1, True),
        (WeightFormat.Q4_K, 2, False),
        (WeightFormat.Q8_0, 4, True),
    ):
        part = ShardedCheckpoint(Stored(DENSE, kind), 0, size)  # 768 columns: three blocks of Q4_K
        name = "model.layers.0.mlp.down_proj.weight"
        assert part.tensor(name).format is (kind if packed else WeightFormat.F32)
        assert part.tensor("model.layers.0.mlp.up_proj.weight").format is kind


def test_w8a8_keeps_the_scales_of_whole_rows():
    stored = Stored(MOE, WeightFormat.W8A8)
    for name in ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.experts.down_proj.weight"):
        codes, scales = codes_and_scales(stored.tensor(name))
        for rank in range(2):
            own, of_rank = codes_and_scales(ShardedCheckpoint(stored, rank, 2).tensor(name))
            half = codes.shape[-1] // 2
            assert np.array_equal(own, codes[..., rank * half : (rank + 1) * half])
            assert np.array_equal(of_rank, scales)


@pytest.mark.parametrize("kind", [WeightFormat.F32, WeightFormat.BF16, WeightFormat.Q8_0, WeightFormat.W8A8])
@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_a_part_has_the_bits_of_the_whole_quantised_and_then_cut(kind, config, monkeypatch):
    """And where rows are cut, no others are quantised on the way; where columns are, all are, for the rows' scales."""
    stored, asked = Stored(config, kind), []
    once = Stored(config, kind)
    once.tensors = {name: quantised(stored, "w8a8").tensor(name) for name in stored.tensors}
    monkeypatch.setattr("engine.weights.quantised.to_w8a8", lambda raw: asked.append(raw.shape) or to_w8a8(raw))
    for rank in range(4):
        part, wanted = ShardedCheckpoint(quantised(stored, "w8a8"), rank, 4), ShardedCheckpoint(once, rank, 4)
        for name, shape in expected_shapes(config).items():
            asked.clear()
            got = part.tensor(name)
            assert (got.shape, got.format) == (wanted.tensor(name).shape, part.format(name)), name
            assert got.data.tobytes() == wanted.tensor(name).data.tobytes(), name
            assert asked == ([shape if name.endswith(BY_COLUMNS) else got.shape] if is_quantised(name) else []), name


def test_ranks_beyond_the_heads_of_keys_share_them():
    config = msgspec.structs.replace(DENSE, num_kv_heads=2)
    stored = Stored(config, WeightFormat.F16)
    name = "model.layers.1.self_attn.k_proj.weight"
    heads = [ShardedCheckpoint(stored, rank, 4).tensor(name).data for rank in range(4)]
    assert np.array_equal(heads[0], heads[1])
    assert np.array_equal(heads[2], heads[3])
    assert np.array_equal(np.concatenate(heads[::2]), stored.tensor(name).data)
    assert ShardedCheckpoint(stored, 3, 4).config.num_kv_heads == 1


@pytest.mark.parametrize(
    ("changed", "size", "words"),
    [
        ({}, 3, r"--tensor-parallel-size 3: this model has 8 heads and 4 heads of keys, .* be had: 1, 2, 4, 8\."),
        ({"intermediate_size": 770}, 4, r"an inner size of 770, .* can be had: 1, 2\."),
        ({"num_kv_heads": 3, "num_heads": 12}, 2, r"3 heads of keys, .*: 1, 3, 6, 12\."),
        ({"vocab_size": 3}, 4, r"3 tokens in its vocabulary, .*: 1, 2\."),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(changed, size, words):
    config = msgspec.structs.replace(DENSE, **changed)
    with pytest.raises(UnsupportedModel, match=words):
        ShardedCheckpoint(Stored(config, WeightFormat.F32), 0, size)


def test_an_inner_size_that_no_layer_has_does_not_matter():
    config = msgspec.structs.replace(MOE, moe_layers=(True, True), intermediate_size=769)
    assert ShardedCheckpoint(Stored(config, WeightFormat.F32), 0, 2).config.moe.intermediate_size == 256
    with pytest.raises(UnsupportedModel, match="an inner size of 769"):
        ShardedCheckpoint(Stored(msgspec.structs.replace(config, moe_layers=(True, False)), WeightFormat.F32), 0, 2)


def test_formats_are_told_without_reading_and_missing_tensors_by_name():
    for name in TINY_MODELS:
        stored = open_checkpoint(GOLDEN / name)
        assert all(stored.format(tensor) is stored.tensor(tensor).format for tensor in expected_shapes(stored.config))
        with pytest.raises(MalformedModel, match=r"tensor 'lm_body\.weight' is missing"):
            stored.format("lm_body.weight")
