"""The tiny checkpoints of tests/golden, as engines."""

from __future__ import annotations

from pathlib import Path

from engine.config import EngineConfig
from engine.loading import load_engine

GOLDEN = Path(__file__).parents[1] / "golden"
TINY_MODELS = ("tiny-mistral", "tiny-qwen3-moe")
TINY_VOCAB_SIZE = 259


def tiny_engine(name, **options):
    config = EngineConfig(model_path=str(GOLDEN / name), **{"device": "reference", **options})
    return load_engine(config, lambda *_: None)[0]
