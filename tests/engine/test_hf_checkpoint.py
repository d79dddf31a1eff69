"""Hugging Face folders: every tensor as transformers saved it, and folders that are not what they seem."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import MalformedModel, ModelNotFound, UnsupportedModel
from engine.weights.hf_checkpoint import PICKLES, HFCheckpoint
from engine.weights.open import open_checkpoint
from engine.weights.shapes import expected_shapes
from kernels.formats import WeightFormat
from kernels.reference.dequant import dequantise
from tests.support.gguf_writer import gguf_bytes
from tests.support.tiny_checkpoints import ARCHITECTURES, hf_tensors, tiny_model, write_gguf_model

Edit = Callable[[dict[str, torch.Tensor]], None]
UP = "model.layers.1.mlp.experts.up_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    tiny_model("LlamaForCausalLM").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    tiny_model("Qwen3MoeForCausalLM").save_pretrained(tmp_path)
    return tmp_path


def edit_tensors(folder: Path, edit: Edit) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    return folder


def edit_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def assert_same_tensors(checkpoint: HFCheckpoint, want: dict[str, torch.Tensor]) -> None:
    assert set(expected_shapes(checkpoint.config)) == set(want)
    for name, tensor in want.items():
        assert np.array_equal(dequantise(checkpoint.tensor(name)), tensor.float().numpy()), name
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in want.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestSaved:
    def test_in_one_file(self, tmp_path: Path, architecture: str) -> None:
        tiny_model(architecture).save_pretrained(tmp_path)
        assert_same_tensors(HFCheckpoint(tmp_path), hf_tensors(tmp_path))

    def test_in_shards(self, tmp_path: Path, architecture: str) -> None:
        tiny_model(architecture).save_pretrained(tmp_path, max_shard_size="30KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 3
        assert_same_tensors(HFCheckpoint(tmp_path), hf_tensors(tmp_path))

    def test_tied(self, tmp_path: Path, architecture: str) -> None:
        tiny_model(architecture, tie_word_embeddings=True).save_pretrained(tmp_path)
        checkpoint = HFCheckpoint(tmp_path)
        assert_same_tensors(checkpoint, hf_tensors(tmp_path))
        with pytest.raises(MalformedModel, match="is missing"):
            checkpoint.tensor("lm_head.weight")


@pytest.mark.parametrize(("dtype", "fmt"), [(torch.bfloat16, WeightFormat.BF16), (torch.float16, WeightFormat.F16)])
def test_half_precision(tmp_path: Path, dtype: torch.dtype, fmt: WeightFormat) -> None:
    tiny_model("Qwen3MoeForCausalLM").to(dtype).save_pretrained(tmp_path)
    checkpoint = HFCheckpoint(tmp_path)
    assert checkpoint.tensor(UP).format is fmt
    assert_same_tensors(checkpoint, hf_tensors(tmp_path))


class TestExperts:
    def test_fused_stacks_are_the_same_as_single_ones(self, experts: Path, tmp_path_factory) -> None:
        fused = tmp_path_factory.mktemp("fused")
        tiny_model("Qwen3MoeForCausalLM").save_pretrained(fused, save_original_format=False)
        assert "model.layers.1.mlp.experts.gate_up_proj" in load_file(fused / "model.safetensors")
        assert_same_tensors(HFCheckpoint(fused), hf_tensors(experts))

    def test_a_missing_expert(self, experts: Path) -> None:
        edit_tensors(experts, lambda t: t.pop(UP.replace("experts.", "experts.3.")))
        with pytest.raises(MalformedModel, match=f"tensor {UP} is missing"):
            HFCheckpoint(experts)

    def test_experts_of_different_shapes_and_types(self, experts: Path) -> None:
        name = UP.replace("experts.", "experts.3.")
        edit_tensors(experts, lambda t: t.update({name: t[name].half()}))
        with pytest.raises(MalformedModel, match="not all of one shape and type"):
            HFCheckpoint(experts)

    def test_an_expert_too_many(self, experts: Path) -> None:
        name = UP.replace("experts.", "experts.4.")
        edit_tensors(experts, lambda t: t.update({name: torch.ones(1)}))
        with pytest.raises(UnsupportedModel, match=r"experts\.4\.up_proj\.weight' has no place"):
            HFCheckpoint(experts)

    @pytest.mark.parametrize("shape", [(4, 65, 64), (4, 64), (4, 32, 64), (5, 64, 64)])
    def test_a_fused_stack_of_another_shape(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        tiny_model("Qwen3MoeForCausalLM").save_pretrained(tmp_path, save_original_format=False)
        edit_tensors(tmp_path, lambda t: t.update({"model.layers.0.mlp.experts.gate_up_proj": torch.ones(shape)}))
        with pytest.raises(MalformedModel, match=r"model\.layers\.0\.mlp\.experts\.gate_proj\.weight has shape"):
            HFCheckpoint(tmp_path)


class TestTensors:
    def test_are_views(self, llama: Path) -> None:
        data = HFCheckpoint(llama).tensor("model.layers.0.self_attn.q_proj.weight").data
        assert not data.flags.owndata
        assert not data.flags.writeable

    def test_what_is_not_there(self, llama: Path) -> None:
        checkpoint = HFCheckpoint(llama)
        for name in ("x", "model.layers.3.input_layernorm.weight", UP):
            with pytest.raises(MalformedModel, match="is missing"):
                checkpoint.tensor(name)

    def test_missing_and_misshapen_ones_are_named(self, llama: Path) -> None:
        name = "model.layers.2.mlp.down_proj.weight"
        edit_tensors(llama, lambda t: t.update({name: t[name].T.contiguous()}))
        with pytest.raises(MalformedModel, match=rf"{name} has shape \(128, 64\).* asks for \(64, 128\)"):
            HFCheckpoint(llama)
        edit_tensors(llama, lambda t: t.pop(name))
        with pytest.raises(MalformedModel, match=f"{name} is missing"):
            HFCheckpoint(llama)

    def test_a_head_that_is_neither_there_nor_tied(self, llama: Path) -> None:
        edit_tensors(llama, lambda t: t.pop("lm_head.weight"))
        with pytest.raises(MalformedModel, match=r"lm_head\.weight is missing"):
            HFCheckpoint(llama)

    def test_one_that_has_no_place(self, llama: Path) -> None:
        edit_tensors(llama, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
        with pytest.raises(UnsupportedModel, match=r"q_proj\.bias' has no place"):
            HFCheckpoint(llama)

    def test_ones_that_say_nothing_new(self, llama: Path) -> None:
        inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq"
        edit_tensors(llama, lambda t: t.update({inv_freq: torch.ones(8)}))
        HFCheckpoint(edit_config(llama, tie_word_embeddings=True))

    def test_a_configuration_of_another_size(self, llama: Path) -> None:
        with pytest.raises(MalformedModel, match=r"self_attn\.q_proj\.weight has shape"):
            HFCheckpoint(edit_config(llama, head_dim=32))


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.mark,))


class TestNothingRuns:
    @pytest.mark.parametrize("suffix", PICKLES)
    def test_pickles_are_refused_unread(self, llama: Path, suffix: str) -> None:
        (llama / "model.safetensors").unlink()
        mark = llama / "mark"
        (llama / f"pytorch_model{suffix}").write_bytes(pickle.dumps(Trap(mark)))
        with pytest.raises(UnsupportedModel, match=r"pickled weights .* only safetensors"):
            open_checkpoint(llama)
        assert not mark.exists()
        pickle.loads((llama / f"pytorch_model{suffix}").read_bytes())
        assert mark.exists()

    def test_code_in_the_folder_is_ignored(self, llama: Path) -> None:
        mark = llama / "mark"
        code = f"open({str(mark)!r}, 'w')"
        for name in ("modeling_evil.py", "configuration_evil.py", "__init__.py"):
            (llama / name).write_text(code)
        (llama / "tokenizer.pkl").write_bytes(pickle.dumps(Trap(mark)))
        edit_config(llama, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, custom_generate="evil")
        assert open_checkpoint(llama).config.num_layers == 3
        assert not mark.exists()

    def test_no_weights_at_all(self, llama: Path) -> None:
        (llama / "model.safetensors").unlink()
        with pytest.raises(ModelNotFound, match=r"no \.safetensors"):
            open_checkpoint(llama)


class TestOpen:
    def gguf(self, path: Path) -> Path:
        model = tiny_model("Qwen2ForCausalLM")
        tensors = dict(model.state_dict())
        return write_gguf_model(path, "Qwen2ForCausalLM", tensors, model.config)

    def test_a_folder_and_a_file(self, llama: Path) -> None:
        assert open_checkpoint(llama).config.architecture == "LlamaForCausalLM"
        path = self.gguf(llama / "model.gguf")
        assert open_checkpoint(path).config.architecture == "Qwen2ForCausalLM"
        assert open_checkpoint(path.rename(llama / "blob")).config.architecture == "Qwen2ForCausalLM"

    def test_a_folder_with_one_gguf(self, tmp_path: Path) -> None:
        self.gguf(tmp_path / "a.gguf")
        assert open_checkpoint(tmp_path).config.architecture == "Qwen2ForCausalLM"
        (tmp_path / "b.gguf").write_bytes(gguf_bytes())
        with pytest.raises(ModelNotFound, match=r"2 \.gguf files; name one of them: 'a\.gguf', 'b\.gguf'"):
            open_checkpoint(tmp_path)

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="no model at"):
            open_checkpoint(tmp_path / "absent")
        with pytest.raises(ModelNotFound, match=r"neither a config\.json nor a \.gguf"):
            open_checkpoint(tmp_path)

    def test_files_of_other_kinds(self, llama: Path) -> None:
        with pytest.raises(UnsupportedModel, match="give the folder"):
            open_checkpoint(llama / "model.safetensors")
        with pytest.raises(UnsupportedModel, match="not a GGUF file"):
            open_checkpoint(llama / "config.json")
