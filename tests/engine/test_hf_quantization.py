"""compressed-tensors folders: int8 weights as they lie give what ``--quantization w8a8`` makes; all else is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import MalformedModel, UnsupportedModel
from engine.weights.hf_checkpoint import HFCheckpoint
from engine.weights.hf_quantization import read_quantization
from engine.weights.quantised import is_quantised, quantised
from engine.weights.shapes import expected_shapes
from kernels.formats import WeightFormat
from kernels.reference.dequant import codes_and_scales
from tests.support.backends import DEVICES
from tests.support.tiny_checkpoints import tiny_model
from tests.support.tiny_models import GOLDEN, TINY_MODELS, prompt_step, tiny_engine

Tensors = dict[str, torch.Tensor]
Json = dict[str, object]
DOWN = "model.layers.0.mlp.down_proj.weight"
ARGS: Json = {
    **{"actorder": None, "block_structure": None, "group_size": None, "num_bits": 8, "symmetric": True, "type": "int"},
    **{"observer_kwargs": {}, "scale_dtype": None, "zp_dtype": None},
}
WEIGHTS: Json = {**ARGS, "dynamic": False, "observer": "minmax", "strategy": "channel"}
TOKENS: Json = {**ARGS, "dynamic": True, "observer": None, "strategy": "token"}
GROUP: Json = {
    **{"format": "int-quantized", "input_activations": TOKENS, "output_activations": None, "targets": ["Linear"]},
    "weights": WEIGHTS,
}
CONFIG: Json = {
    **{"config_groups": {"group_0": GROUP}, "format": "int-quantized", "global_compression_ratio": None},
    **{"ignore": ["lm_head"], "kv_cache_scheme": None, "quant_method": "compressed-tensors"},
    **{"quantization_status": "compressed", "sparsity_config": {}, "transform_config": {}, "version": "0.14.0"},
}
"""As compressed-tensors writes it."""


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def by_channel(weight: torch.Tensor, levels: float = 127) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales: with 127 as this project rounds, with 127.5 as compressed-tensors does, which uses -128 too."""
    values = weight.float().numpy()
    most = np.abs(values).max(axis=1, keepdims=True)
    codes = np.clip(np.rint(values * (np.float32(levels) / most)), -128, 127)
    return torch.from_numpy(codes).char(), torch.from_numpy(most / np.float32(levels))


def compress(
    source: Path, folder: Path, *, is_int8: Callable[[str], bool] = is_linear, levels: float = 127, dtype=torch.float32
) -> Path:
    """A copy of a folder of floats whose weights of those names are int8 by channel."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    stored, tensors = load_file(source / "model.safetensors"), {}
    for name, tensor in stored.items():
        tensors[name] = tensor
        if is_int8(name):
            codes, scales = by_channel(tensor, levels)
            tensors |= {name: codes, f"{name}_scale": scales.to(dtype)}
    assert len(tensors) > len(stored)
    save_file(tensors, folder / "model.safetensors")
    return set_config(folder, CONFIG)


def set_config(folder: Path, config: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    return folder


def edit_tensors(folder: Path, edit: Callable[[Tensors], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def logits(model: Path, device: str, **options: object) -> np.ndarray:
    batch = prompt_step(np.arange(40, dtype=np.int32) * 5 % 250)
    return tiny_engine(model, device=device, **options)._runner.forward(batch).logits


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_same_bits_as_quantised_at_load(tmp_path: Path, name: str, device: str) -> None:
    folder = compress(GOLDEN / name, tmp_path)
    made, stored = logits(GOLDEN / name, device, quantization="w8a8"), logits(folder, device)
    np.testing.assert_array_equal(stored.view(np.uint32), made.view(np.uint32))
    np.testing.assert_array_equal(logits(folder, device, quantization="w8a8").view(np.uint32), made.view(np.uint32))
    assert not np.array_equal(made, logits(GOLDEN / name, device))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_tensor_is_as_quantised_at_load(tmp_path: Path, name: str) -> None:
    stored, made = HFCheckpoint(compress(GOLDEN / name, tmp_path)), quantised(HFCheckpoint(GOLDEN / name), "w8a8")
    for tensor in expected_shapes(stored.config):
        got, want = stored.tensor(tensor), made.tensor(tensor)
        assert (got.format, got.shape) == (want.format, want.shape)
        assert (got.format is WeightFormat.W8A8) == is_quantised(tensor)
        np.testing.assert_array_equal(got.data, want.data)
    assert stored.total_bytes == made.total_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scales_of_any_float_and_all_256_codes(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = compress(GOLDEN / "tiny-mistral", tmp_path, levels=127.5, dtype=dtype)
    tensors = load_file(folder / "model.safetensors")
    assert tensors[DOWN].min() == -128
    codes, scales = codes_and_scales(HFCheckpoint(folder).tensor(DOWN))
    np.testing.assert_array_equal(codes, tensors[DOWN].numpy())
    np.testing.assert_array_equal(scales, tensors[f"{DOWN}_scale"].float().numpy()[:, 0])


MIXED = {
    "v of q, k and v": lambda name: is_linear(name) and "v_proj" not in name,
    "up of gate and up": lambda name: is_linear(name) and "up_proj" not in name,
    "a layer": lambda name: is_linear(name) and ".0." not in name,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_int8", MIXED.values(), ids=MIXED)
def test_what_is_left_as_floats_stays_so(tmp_path: Path, is_int8: Callable[[str], bool], device: str) -> None:
    """Near the floats and not the same, nor the same as with all layers int8, which is what the flag makes of it."""
    source = GOLDEN / "tiny-mistral"
    folder = compress(source, tmp_path / "int8", is_int8=is_int8)
    set_config(folder, {**CONFIG, "ignore": ["lm_head", "re:.*v_proj$"]})
    checkpoint, floats = HFCheckpoint(folder), HFCheckpoint(source)
    for name in expected_shapes(checkpoint.config):
        raw = checkpoint.tensor(name)
        assert (raw.format is WeightFormat.W8A8) == is_int8(name)
        assert is_int8(name) or raw.data.tobytes() == floats.tensor(name).data.tobytes()
    got, full = logits(folder, device), logits(source, device)
    assert not np.array_equal(got, full)
    assert not np.array_equal(got, logits(source, device, quantization="w8a8"))
    assert np.abs(got - full).mean() < 0.1 * full.std()
    both = logits(folder, device, quantization="w8a8")
    np.testing.assert_array_equal(both, logits(source, device, quantization="w8a8"))


@pytest.mark.parametrize("device", DEVICES)
def test_head_and_router_may_be_int8_too(tmp_path: Path, device: str) -> None:
    source = GOLDEN / "tiny-qwen3-moe"
    is_int8 = re.compile("lm_head.weight|.*mlp.gate.weight").fullmatch
    folder = compress(source, tmp_path, is_int8=is_int8)
    assert HFCheckpoint(folder).tensor("lm_head.weight").format is WeightFormat.W8A8
    got, full = logits(folder, device), logits(source, device)
    assert np.abs(got - full).mean() < 0.1 * full.std()


EDITS: list[tuple[Callable[[Tensors], object], type[Exception], str]] = [
    (lambda t: t.pop(f"{DOWN}_scale"), MalformedModel, f"tensor {DOWN}_scale is missing"),
    (lambda t: t.update({f"{DOWN}_scale": torch.ones(48)}), MalformedModel, r"_scale has shape \(48,\).*\(48, 1\)"),
    (lambda t: t.update({f"{DOWN}_scale": torch.ones(47, 1)}), MalformedModel, r"_scale has shape \(47, 1\)"),
    (lambda t: t.update({f"{DOWN}_scale": torch.ones(1)}), MalformedModel, r"_scale has shape \(1,\)"),
    (lambda t: t.update({f"{DOWN}_scale": torch.ones(48, 1).char()}), MalformedModel, "_scale is int8"),
    (lambda t: t.update({f"{DOWN}_scale": torch.ones(48, 1).double()}), UnsupportedModel, "_scale' is of type 'F64'"),
    (lambda t: t.update({DOWN: t[DOWN].float()}), UnsupportedModel, f"'{DOWN}_scale' has no place"),
    (lambda t: t.update({DOWN: t[DOWN].int()}), UnsupportedModel, f"'{DOWN}' is of type 'I32'"),
    (lambda t: t.update({DOWN: t[DOWN][:, 1:].contiguous()}), MalformedModel, rf"{DOWN} has shape \(48, 79\)"),
    (lambda t: t.update({f"{DOWN[:-7]}.input_scale": torch.ones(1)}), UnsupportedModel, "input_scale' has no place"),
    (
        lambda t: t.update({f"{DOWN}_zero_point": torch.ones(48, 1).char()}),
        UnsupportedModel,
        "weight_zero_point' has no place",
    ),
    (
        lambda t: t.update({name: t[name].char() for name in ["model.embed_tokens.weight"]}),
        UnsupportedModel,
        "embed_tokens.weight is int8; only linear layers",
    ),
    (
        lambda t: t.update({name: t[name].char() for name in ["model.norm.weight"]}),
        UnsupportedModel,
        "model.norm.weight is int8; only linear layers",
    ),
]


@pytest.mark.parametrize(("edit", "error", "match"), EDITS, ids=[edit[2] for edit in EDITS])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, edit, error: type[Exception], match: str) -> None:
    folder = edit_tensors(compress(GOLDEN / "tiny-mistral", tmp_path), edit)
    with pytest.raises(error, match=match):
        HFCheckpoint(folder)


def test_int8_without_a_configuration_of_it(tmp_path: Path) -> None:
    folder = set_config(compress(GOLDEN / "tiny-mistral", tmp_path), None)
    with pytest.raises(UnsupportedModel, match=r"_proj\.weight is int8, but config\.json has no quantization_config"):
        HFCheckpoint(folder)


def test_a_stack_of_experts_is_not_read_as_int8(tmp_path: Path) -> None:
    tiny_model("Qwen3MoeForCausalLM").save_pretrained(tmp_path, save_original_format=False)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    edit_tensors(set_config(tmp_path, CONFIG), lambda t: t.update({name: t[name].char()}))
    with pytest.raises(UnsupportedModel, match=f"{name} is int8; only linear layers that lie one by one"):
        HFCheckpoint(tmp_path)


def test_experts_that_are_int8_in_part_only(tmp_path: Path) -> None:
    def is_int8(name: str) -> bool:
        return is_linear(name) and "experts.1.down" not in name

    folder = compress(GOLDEN / "tiny-qwen3-moe", tmp_path, is_int8=is_int8)
    with pytest.raises(MalformedModel, match=r"the experts of .*down_proj\.weight are not all of one shape and type"):
        HFCheckpoint(folder)


def group(**changes: object) -> Json:
    return {"config_groups": {"group_0": {**GROUP, **changes}}}


def weights(**changes: object) -> Json:
    return group(weights={**WEIGHTS, **changes})


def tokens(**changes: object) -> Json:
    return group(input_activations={**TOKENS, **changes})


READ: dict[str, Json] = {
    "as written": {},
    "all that has a default left out": group(
        weights={"strategy": "channel"}, input_activations={"strategy": "token", "dynamic": True}, format=None
    ),
    "channel by its group size": weights(strategy=None, group_size=-1),
    "channel by both": weights(group_size=-1),
    "dense": {"sparsity_config": {"format": "dense", "targets": []}},
    "two groups": {"config_groups": {"group_0": GROUP, "group_1": {**GROUP, "targets": ["re:.*down_proj"]}}},
    "order of activations": weights(actorder="weight"),
}


@pytest.mark.parametrize("changes", READ.values(), ids=READ)
def test_what_is_read(tmp_path: Path, changes: Json) -> None:
    shutil.copy(GOLDEN / "tiny-mistral" / "config.json", tmp_path)
    assert read_quantization(set_config(tmp_path, {**CONFIG, **changes}))


REFUSED: list[tuple[object, str]] = [
    ("x", "quantised by None"),
    ({"quant_method": "gptq", "bits": 4}, "quantised by 'gptq'"),
    ({**CONFIG, "format": "pack-quantized"}, "'format' is 'pack-quantized'; only 'int-quantized' is read"),
    ({**CONFIG, "format": None}, "'format' is None; only 'int-quantized'"),
    ({**CONFIG, "kv_cache_scheme": TOKENS}, "'kv_cache_scheme' is a dict"),
    ({**CONFIG, "sparsity_config": {"format": "sparse-24-bitmask"}}, "'sparsity_config' is a dict"),
    ({**CONFIG, "transform_config": {"config_groups": {"u": {}}}}, "'transform_config' is a dict"),
    ({**CONFIG, "config_groups": {}}, "'config_groups' is a dict; at least one"),
    ({**CONFIG, "config_groups": None}, "'config_groups' is None; only an object"),
    ({**CONFIG, "config_groups": {"W8A8": ["Linear"]}}, "'W8A8' is a list; only an object"),
    (
        {**CONFIG, "config_groups": {"a": GROUP, "b": {**GROUP, "weights": {**WEIGHTS, "num_bits": 4}}}},
        "'b': 'weights'",
    ),
    ({**CONFIG, **group(format="pack-quantized")}, "'group_0': 'format' is 'pack-quantized'"),
    ({**CONFIG, **group(output_activations=TOKENS)}, "'output_activations' is a dict"),
    ({**CONFIG, **group(input_activations=None)}, "'input_activations' is None"),
    ({**CONFIG, **group(weights=None)}, "'weights' is None"),
    ({**CONFIG, **weights(num_bits=4)}, "'weights': 'num_bits' is 4; only 8 is read"),
    ({**CONFIG, **weights(num_bits={"self_attn": 16})}, "'num_bits' is a dict"),
    ({**CONFIG, **weights(type="float")}, "'weights': 'type' is 'float'; only 'int'"),
    ({**CONFIG, **weights(strategy="group", group_size=128)}, "'weights': 'strategy' is 'group'; only 'channel'"),
    ({**CONFIG, **weights(strategy="tensor")}, "'strategy' is 'tensor'"),
    ({**CONFIG, **weights(strategy=None)}, "'strategy' is None; only 'channel'"),
    ({**CONFIG, **weights(strategy=None, group_size=64)}, "'strategy' is None; only 'channel'"),
    ({**CONFIG, **weights(symmetric=False)}, "'weights': 'symmetric' is False; only True"),
    ({**CONFIG, **weights(symmetric=1)}, "'weights': 'symmetric' is 1; only True"),
    ({**CONFIG, **weights(dynamic=True)}, "'weights': 'dynamic' is True; only False"),
    ({**CONFIG, **tokens(num_bits=16)}, "'input_activations': 'num_bits' is 16"),
    ({**CONFIG, **tokens(type="float")}, "'input_activations': 'type' is 'float'"),
    ({**CONFIG, **tokens(strategy="tensor", dynamic=False)}, "'input_activations': '(strategy|dynamic)' is"),
    ({**CONFIG, **tokens(dynamic=None)}, "'input_activations': 'dynamic' is None; only True"),
    ({**CONFIG, **tokens(symmetric=False)}, "'input_activations': 'symmetric' is False"),
]


@pytest.mark.parametrize(("config", "match"), REFUSED, ids=[match for _, match in REFUSED])
def test_other_schemes_are_refused_by_the_key(tmp_path: Path, config: object, match: str) -> None:
    folder = set_config(compress(GOLDEN / "tiny-mistral", tmp_path), config)
    with pytest.raises(UnsupportedModel, match=match) as caught:
        HFCheckpoint(folder)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)
