"""A model, its backend and its KV cache: turns a batch into logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.batch import BatchInput
from engine.config import CacheConfig, ModelConfig
from engine.models.decoder import Decoder
from kernels.ops import Ops


class ModelRunner:
    """Owns the KV cache; implements ``engine.Runner``."""

    def __init__(self, model: Decoder, ops: Ops, cache: CacheConfig) -> None:
        config = model.config
        self._model = model
        self._ops = ops
        self._caches = [
            ops.memory.alloc_cache(cache.num_blocks, cache.block_size, config.num_kv_heads, config.head_dim)
            for _ in range(config.num_layers)
        ]

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._model.config.vocab_size

    def forward(self, batch: BatchInput) -> npt.NDArray[np.float32]:
        """Write the batch's keys and values, and return logits f32[B', V] for ``batch.logit_rows``."""
        return self._ops.memory.download(self._model.forward(batch, self._caches))


def block_bytes(config: ModelConfig, ops: Ops, block_size: int) -> int:
    """Bytes of one block over all layers, keys and values."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * ops.memory.cache_itemsize
    return block_size * per_token
