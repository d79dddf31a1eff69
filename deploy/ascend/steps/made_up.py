"""A model with random weights, for ranks to share out where the one that is asked for cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deploy.ascend.steps.bench import Bench
from engine.weights.hf_config import read_config
from engine.weights.shapes import expected_shapes

VOCABULARY = 512
LOUD = 4.0
"""What scores are multiplied with, so that few tokens are a close call."""
ANSWER = 12
"""Tokens of an answer at least: they cost little."""
PROMPT_LENS = (5, 126, 140, 33)
"""Some go from one block of the cache into the next."""


def write_model(bench: Bench, folder: Path, ranks: int) -> None:
    """A Hugging Face folder with a head of keys for each rank, in float32, the same on every machine."""
    group, dim = bench.sizes.heads[0]
    hidden = ranks * group * dim
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": VOCABULARY,
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "head_dim": dim,
        "num_attention_heads": ranks * group, "num_key_value_heads": ranks, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokens = {f"<{index}>": index for index in range(VOCABULARY)}
    tokenizer = {"model": {"type": "BPE", "vocab": tokens, "merges": []}, "decoder": {"type": "ByteLevel"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    rng, header, parts, end = np.random.default_rng(9), {}, [], 0
    for name, shape in expected_shapes(read_config(folder)).items():
        scale = (LOUD if name.startswith("lm_head") else 1.0) / np.sqrt(shape[-1])
        numbers = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale) if len(shape) > 1 else np.ones(shape)
        parts.append(numbers.astype("<f4").tobytes())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    data = len(head).to_bytes(8, "little") + head + b"".join(parts)
    (folder / "model.safetensors").write_bytes(data)


def prompts() -> dict[str, list[int]]:
    """Prompts of tokens that mean nothing."""
    rng = np.random.default_rng(10)
    return {f"prompt {i + 1}": rng.integers(0, VOCABULARY, count).tolist() for i, count in enumerate(PROMPT_LENS)}
