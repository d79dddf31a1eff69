"""What all tests share: the default model, fetched once into the user's cache."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the suites run side by side: see settings.engine_environment
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # torch would import torch_npu, which finds no driver here

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from server.settings import DEFAULT_MODEL, cache_dir
from tools.ascend.stubs import LoadedOnDemand
from tools.ascend.toolchain import HOST_PROGRAMS

# transformers imports torch_npu wherever it is installed, which fails where there is no driver. So stubs stand in for
# it, and where none can be made, it is as if torch_npu were not installed.
if all(map(shutil.which, HOST_PROGRAMS)):
    sys.meta_path.insert(0, LoadedOnDemand(Path(__file__).parents[1] / ".pytest_cache" / "npu-stubs"))
else:
    sys.modules["torch_npu"] = None  # type: ignore[assignment]

settings.register_profile("upwell", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("few", settings.get_profile("upwell"), max_examples=10)  # where everything is slow
settings.load_profile("upwell")


@pytest.fixture(scope="session")
def default_model():
    """Path of the default model's GGUF."""
    from engine.weights.store import resolve_model

    return resolve_model(DEFAULT_MODEL, cache_dir(None), lambda _: None).path
