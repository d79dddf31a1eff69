"""The tiny checkpoints of tests/golden, as engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.config import EngineConfig
from engine.loading import load_engine
from kernels.ops import AttentionBatch, StepInputs

GOLDEN = Path(__file__).parents[1] / "golden"
TINY_MODELS = ("tiny-mistral", "tiny-qwen3-moe")
TINY_VOCAB_SIZE = 259


def tiny_engine(name, **options):
    config = EngineConfig(model_path=str(GOLDEN / name), **{"device": "reference", **options})
    return load_engine(config, lambda *_: None)[0]


def prompt_step(token_ids):
    """One sequence from its beginning, with the scores of every seventh token: i32[n] ids."""
    count = len(token_ids)
    places = np.arange(count, dtype=np.int32)
    attention = AttentionBatch(
        q_starts=np.array([0, count], dtype=np.int32),
        kv_lens=np.array([count], dtype=np.int32),
        block_table=np.arange(-(-count // 16), dtype=np.int32)[None],
    )
    return StepInputs(token_ids, places, places, attention, places[::7].copy())
