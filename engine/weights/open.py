"""Opens whatever model a path holds. Called by the engine process with the path that ``store`` resolved."""

from __future__ import annotations

from pathlib import Path

from engine.errors import ModelError
from engine.weights.checkpoint import Checkpoint
from engine.weights.gguf_checkpoint import GGUFCheckpoint
from engine.weights.hf_checkpoint import HFCheckpoint
from engine.weights.locate import model_path


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a ``.gguf`` file, a folder with one, or a Hugging Face folder.

    Opening reads headers and checks them; it never runs or unpickles anything.

    Raises:
        ModelNotFound: nothing is there, or nothing that is a model.
        MalformedModel: a file contradicts its format, its size or itself.
        UnsupportedModel: a model this build cannot run.
        ModelError: it cannot be read.
    """
    try:
        path = model_path(path)
        return HFCheckpoint(path) if path.is_dir() else GGUFCheckpoint(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
