"""Which file or folder is the model, of what lies at a path. Called by ``store`` and by ``open``."""

from __future__ import annotations

from pathlib import Path

from engine.errors import ModelNotFound, UnsupportedModel
from engine.weights.gguf import GGUF_MAGIC
from engine.weights.mapped import shown


def model_path(path: Path) -> Path:
    """The model at ``path``: a Hugging Face folder, or a GGUF file, also if it is the only one in a folder.

    Raises:
        ModelNotFound: nothing is there, or nothing that is a model.
        UnsupportedModel: a file in another format.
        OSError: it cannot be read.
    """
    if path.is_dir():
        return _model_in(path)
    if not path.is_file():
        raise ModelNotFound(f"There is no model at {path}.")
    if path.suffix == ".safetensors":
        raise UnsupportedModel(f"{path} is one file of a model; give the folder that holds its config.json.")
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise UnsupportedModel(f"{path} is not a GGUF file; a model is one of those, or a Hugging Face folder.")
    return path


def _model_in(folder: Path) -> Path:
    if (folder / "config.json").exists():
        return folder
    found = sorted(path for path in folder.iterdir() if path.suffix == ".gguf")
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(shown(path.name) for path in found[:10])
        raise ModelNotFound(f"{folder} holds {len(found)} .gguf files; name one of them: {names}.")
    raise ModelNotFound(f"{folder} holds neither a config.json nor a .gguf file.")
