"""Make the tiny checkpoints under tests/golden, and their golden logits, with transformers.

Run once, by hand, with the test extras installed: ``python tools/make_tiny_models.py``. The results are committed, so
that the tests which only need some model need no torch, and so that a change in either implementation shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
SMALL = {
    "vocab_size": 256 + len(SPECIALS),
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": None,
    "dtype": "float32",
}
MODELS: dict[str, Any] = {
    "tiny-mistral": tf.MistralConfig(**SMALL, sliding_window=50),
    "tiny-qwen3-moe": tf.Qwen3MoeConfig(
        **SMALL, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
    ),
}


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and three control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return tokenizer


def main() -> None:
    for name, config in MODELS.items():
        torch.manual_seed(3)
        model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        folder = GOLDEN / name
        model.save_pretrained(folder)
        byte_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}) + "\n")
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n")
        token_ids = np.random.default_rng(8).integers(0, 256, 150).astype(np.int32)
        with torch.no_grad():
            logits = model(torch.from_numpy(token_ids.astype(np.int64))[None]).logits[0]
        np.savez_compressed(folder / "golden.npz", token_ids=token_ids, logits=logits[::7].numpy())


if __name__ == "__main__":
    main()
