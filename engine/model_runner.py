"""A model, its backend and its KV cache: turns a batch into scores of the next tokens."""

from __future__ import annotations

from engine.config import CacheConfig, ModelConfig
from engine.models.decoder import Decoder
from kernels.ops import F32, I32, DrawParams, Ops, Scores, StepInputs, StepLimits, Tensor


class ModelRunner:
    """Owns the KV cache; implements ``engine.Runner``."""

    def __init__(self, model: Decoder, ops: Ops, cache: CacheConfig, limits: StepLimits) -> None:
        """Allocate the cache, and record the forward pass for steps of at most ``limits``.

        Raises:
            NoKernel: the backend has none for the cache or the forward pass.
            ValueError: it cannot have blocks of that size.
        """
        config = model.config
        caches = [
            ops.memory.alloc_cache(cache.num_blocks, cache.block_size, config.num_kv_heads, config.head_dim)
            for _ in range(config.num_layers)
        ]

        def forward(inputs: StepInputs) -> Tensor:
            return model.forward(inputs, caches)

        self.vocab_size = config.vocab_size
        self._caches = caches
        self._copy_block = ops.memory.copy_block
        self._step = ops.record(forward, limits)
        self._draw = ops.draw
        self._native_cpu_s = ops.native_cpu_s
        self._native_wall_s = ops.native_wall_s
        self._native_rested = ops.native_rested

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy blocks of the cache, (from, to), one after the other."""
        for source, target in copies:
            for cache in self._caches:
                self._copy_block(cache, source, target)

    def forward(self, batch: StepInputs) -> Scores:
        """Write the batch's keys and values, and score the next tokens of ``batch.logit_rows``.

        Batch-invariant. The scores hold until the next step.
        """
        return self._step(batch)

    def draw(self, logits: F32, params: DrawParams) -> I32:
        """One token a row, at random: f32[n,V] -> i32[n]. Batch-invariant; the logits may be overwritten."""
        return self._draw(logits, params)

    def native_cpu_s(self) -> float:
        """CPU seconds that native code has spent in steps so far."""
        return self._native_cpu_s()

    def native_wall_s(self) -> float:
        """Seconds that calls of native code have taken so far; 0 without native code."""
        return self._native_wall_s()

    def native_rested(self) -> int:
        """Native calls so far that one of several threads made alone, since the others did not get a processor."""
        return self._native_rested()


def block_bytes(config: ModelConfig, ops: Ops, block_size: int) -> int:
    """Bytes of one block over all layers, keys and values."""
    per_token = config.num_layers * ops.memory.cache_token_bytes(config.num_kv_heads, config.head_dim)
    return block_size * per_token


def spare_bytes(model: Decoder, ops: Ops, block_size: int, limits: StepLimits) -> int | None:
    """What the weights and the largest steps leave for the KV cache on a device with memory of its own, else None.

    The steps are run, on one small cache that all layers write over.

    Raises:
        NoKernel: the backend has none for the cache or the forward pass.
    """
    if ops.memory.spare_bytes is None:
        return None
    config = model.config
    num_blocks = -(-limits.max_tokens // block_size)
    cache = ops.memory.alloc_cache(num_blocks, block_size, config.num_kv_heads, config.head_dim)
    return ops.memory.spare_bytes(lambda inputs: model.forward(inputs, [cache] * config.num_layers), limits)
