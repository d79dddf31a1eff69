"""What all tests share: the default model, fetched once into the user's cache."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the suites run side by side: see settings.engine_environment

import pytest
from hypothesis import settings

from server.settings import DEFAULT_MODEL, cache_dir

settings.register_profile("upwell", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("few", settings.get_profile("upwell"), max_examples=10)  # where everything is slow
settings.load_profile("upwell")


@pytest.fixture(scope="session")
def default_model():
    """Path of the default model's GGUF."""
    from engine.weights.store import resolve_model

    return resolve_model(DEFAULT_MODEL, cache_dir(None), lambda _: None).path
