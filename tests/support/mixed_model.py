"""A small model as GGUF whose weights are of every format that such a file may have, side by side."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from kernels.formats import WeightFormat
from kernels.spec import random_tensor
from tests.support import tiny_bpe
from tests.support.tiny_checkpoints import tiny_model, write_gguf_model

MAX_LEN = 1024
_KINDS = {
    "embed_tokens": "Q8_0", "lm_head": "Q8_0",
    "0.self_attn.q_proj": "Q4_0", "0.self_attn.k_proj": "Q4_0", "0.self_attn.v_proj": "Q8_0",
    "0.self_attn.o_proj": "Q4_K",
    "0.mlp.gate_proj": "Q4_1", "0.mlp.up_proj": "Q4_1", "0.mlp.down_proj": "Q6_K",
    "1.self_attn.q_proj": "F16", "1.self_attn.k_proj": "BF16", "1.self_attn.v_proj": "F32",
    "1.self_attn.o_proj": "Q4_1",
    "1.mlp.gate_proj": "Q8_0", "1.mlp.up_proj": "Q4_0", "1.mlp.down_proj": "Q4_K",
}  # fmt: skip
"""The end of a weight's name, without its suffix -> format. Products of several weights have several in the second
layer and in the first one's attention."""

_SMALL_SCALES = {"Q4_K": (0, 2), "Q6_K": (208,)}
"""Format -> where in a block its float16 scales lie."""


def write_mixed_model(path: Path) -> Path:
    """A Llama of two layers with contexts of ``MAX_LEN`` and the tiny vocabulary."""
    vocabulary = tiny_bpe.metadata()
    model = tiny_model(
        "LlamaForCausalLM",
        vocab_size=len(vocabulary["tokenizer.ggml.tokens"]),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=MAX_LEN,
    )
    rng = np.random.default_rng(0)
    tensors = {name: _packed(name, tensor, rng) for name, tensor in model.state_dict().items()}
    metadata = {key: value.tolist() if isinstance(value, memoryview) else value for key, value in vocabulary.items()}
    return write_gguf_model(path, "LlamaForCausalLM", tensors, model.config, metadata=metadata)


def _packed(
    name: str, tensor: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor | tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """A matrix in its format. Nothing here quantises to K formats, so those get random codes with small scales."""
    kind = next((kind for end, kind in _KINDS.items() if name.removesuffix(".weight").endswith(end)), None)
    if kind is None:
        return tensor
    if kind not in _SMALL_SCALES:
        return gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[kind]), gguf.GGMLQuantizationType[kind]
    data = random_tensor(rng, tuple(tensor.shape), WeightFormat[kind]).data.copy()
    for at in _SMALL_SCALES[kind]:
        scales = data.reshape(len(data), -1, WeightFormat[kind].block_bytes)[..., at : at + 2]
        scales[...] = (scales.copy().view(np.float16) * np.float16(0.004)).view(np.uint8)
    return data, gguf.GGMLQuantizationType[kind]
