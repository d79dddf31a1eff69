"""Tiny random models of every architecture: saved by transformers itself, and as GGUF as llama.cpp converts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

SIZES: dict[str, object] = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
}
MOE: dict[str, object] = {
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 16},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 32},
    "Qwen3MoeForCausalLM": {"head_dim": 32, **MOE},
    "SeedOssForCausalLM": {"head_dim": 32},
}
"""Architecture -> what its configuration has beside ``SIZES``."""

GGUF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "SeedOssForCausalLM": "seed_oss",
}


def tiny_model(architecture: str, **overrides: object) -> PreTrainedModel:
    """A model with random weights; also biases and norms are random, which transformers starts at 0 and 1."""
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**{**SIZES, **ARCHITECTURES[architecture], **overrides})
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def hf_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """A saved model's tensors by name, experts stacked as ``checkpoint`` names them."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    for name in [name for name in tensors if ".experts.0." in name]:
        singles = [tensors.pop(name.replace(".experts.0.", f".experts.{index}.")) for index in range(4)]
        tensors[name.replace(".experts.0.", ".experts.")] = torch.stack(singles)
    return tensors


def interleave(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of q or k as llama.cpp's conversion orders them: of each head first and second half in turn."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def write_gguf_model(
    path: Path,
    architecture: str,
    tensors: Mapping[str, torch.Tensor | tuple[np.ndarray, gguf.GGMLQuantizationType]],
    config: transformers.PreTrainedConfig,
    *,
    quantisation: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, object] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a model as GGUF, its tensors named by the ``gguf`` package.

    Args:
        path: where to.
        architecture: as in ``GGUF_ARCHITECTURES``.
        tensors: by Hugging Face names, experts stacked; one that is packed already comes with its kind, rows in the
            file's order.
        config: the model's configuration.
        quantisation: of matrices.
        metadata: further keys, or others for those this function writes; None leaves one out.
        extra: further tensors by their GGUF names.
    """
    arch = GGUF_ARCHITECTURES[architecture]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**_metadata(arch, config), **(metadata or {})}.items():
        _add(writer, key.format(arch=arch), value)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in tensors.items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if isinstance(tensor, tuple):
            writer.add_tensor(own, tensor[0], raw_dtype=tensor[1])
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        is_interleaved = arch == "llama" and heads is not None
        values = (interleave(tensor, heads) if is_interleaved else tensor).float().numpy()
        packed = quantisation if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(own, gguf.quants.quantize(values, packed), raw_dtype=packed)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(arch: str, config: transformers.PreTrainedConfig) -> dict[str, object]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values: dict[str, object] = {
        "{arch}.block_count": config.num_hidden_layers,
        "{arch}.context_length": config.max_position_embeddings,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": config.intermediate_size,
        "{arch}.attention.head_count": config.num_attention_heads,
        "{arch}.attention.head_count_kv": config.num_key_value_heads,
        "{arch}.attention.key_length": head_dim,
        "{arch}.attention.value_length": head_dim,
        "{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "{arch}.rope.freq_base": config.rope_parameters["rope_theta"],
    }
    if arch == "qwen3moe":
        values["{arch}.expert_count"] = config.num_experts
        values["{arch}.expert_used_count"] = config.num_experts_per_tok
        values["{arch}.expert_feed_forward_length"] = config.moe_intermediate_size
    return values


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        raise TypeError(type(value))
