"""What the API process has no need of, it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.tiny_models import GOLDEN

PROGRAM = """
import sys
from pathlib import Path
import server.run
from engine.tokenizer import load_tokenizer
from engine.weights.store import resolve_model
load_tokenizer(resolve_model(sys.argv[1], Path("/nowhere"), print).path).prepare()
print(sys.modules.keys() & {"numpy", "httpx", "rich.progress"})
"""


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_the_api_process_does_without_arrays(default_model, kind):
    """It reads a model's vocabulary; NumPy takes 6 MB."""
    model = default_model if kind == "gguf" else GOLDEN / "tiny-mistral"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(model)], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
