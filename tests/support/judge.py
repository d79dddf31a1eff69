"""transformers as the judge of our models: tiny random checkpoints, saved by transformers itself."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from engine.config import CacheConfig
from engine.model_runner import ModelRunner
from engine.models.registry import model_class
from engine.weights.open import open_checkpoint
from kernels.ops import AttentionBatch, BackendOptions, StepInputs, StepLimits
from kernels.resolve import resolve

SMALL = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_checkpoint(config_class, folder, **options):
    """A random model in float32, its one-dimensional weights moved away from 0 and 1; returns it for judging."""
    torch.manual_seed(11)
    config = config_class(**{**SMALL, **options}, dtype="float32")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def judged_logits(model, token_ids):
    """f32[T, V], every position's."""
    return model(torch.tensor([token_ids])).logits[0].numpy()


class OurModel:
    """One sequence through ``ModelRunner``, in whatever chunks, over blocks in a scrambled order."""

    def __init__(self, path, device, num_blocks=20, block_size=16):
        checkpoint = open_checkpoint(path)
        ops = resolve(device, BackendOptions(kv_cache_dtype="f32")).ops
        model = model_class(checkpoint.config.architecture)(
            checkpoint.config, checkpoint, ops, num_blocks * block_size, lambda _: None
        )
        limits = StepLimits(128, 128, num_blocks * block_size)
        self._runner = ModelRunner(model, ops, CacheConfig(num_blocks, block_size), limits)
        self._table = np.random.default_rng(5).permutation(num_blocks).astype(np.int32)
        self._block_size = block_size
        self._num_computed = 0

    def run(self, token_ids):
        """Logits f32[len(token_ids), V] of the next tokens of the sequence."""
        positions = np.arange(self._num_computed, self._num_computed + len(token_ids), dtype=np.int32)
        self._num_computed += len(token_ids)
        num_blocks = -(-self._num_computed // self._block_size)
        size = self._block_size
        inputs = StepInputs(
            token_ids=np.array(token_ids, dtype=np.int32),
            positions=positions,
            slots=self._table[positions // size] * size + positions % size,
            attention=AttentionBatch(
                q_starts=np.array([0, len(token_ids)], dtype=np.int32),
                kv_lens=np.array([self._num_computed], dtype=np.int32),
                block_table=self._table[None, :num_blocks],
            ),
            logit_rows=np.arange(len(token_ids), dtype=np.int32),
        )
        return self._runner.forward(inputs).logits.copy()
