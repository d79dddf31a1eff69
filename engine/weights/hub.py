"""Models from Hugging Face and ModelScope, through their own clients, which are optional extras.

Used by ``store``. Of a repository only weights in safetensors or GGUF, JSON and tokenizer files are fetched, and only
from its top folder: never code, never pickles.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, ModelError, ModelNotFound, UnsupportedModel
from engine.weights.cache import NO_ROOM, Say
from engine.weights.mapped import shown

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

_EXTRAS = {"hf": ("huggingface_hub", "hf"), "modelscope": ("modelscope.hub.api", "modelscope")}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_BESIDE = {"tokenizer.model", "merges.txt", "vocab.txt", "chat_template.jinja"}


def fetch_repository(hub: str, repository: str, folder: Path, say: Say) -> list[Path]:
    """Fetch what a model needs into ``folder``; files that are already whole there are not fetched again.

    Args:
        hub: ``hf`` or ``modelscope``.
        repository: ``ORG/NAME``.
        folder: where the files go.
        say: told what is fetched.

    Raises:
        ConfigError: the hub's client is not installed.
        ModelNotFound: no such repository, or no weights we read in it.
        UnsupportedModel: several GGUF files.
        ModelError: the hub cannot be reached, or refuses.
        OSError: there is no room.
    """
    client = _client(hub)
    say(f"Fetching {repository} from {'Hugging Face' if hub == 'hf' else 'ModelScope'}.")
    try:
        names = (_fetch_hf if hub == "hf" else _fetch_modelscope)(client, repository, folder)
    except (ModelError, ConfigError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        raise _failure(repository, error) from error
    return [folder / name for name in names]


def choose_files(repository: str, names: Iterable[str]) -> list[str]:
    """Which files of a repository to fetch: all safetensors, or else its only GGUF, and the small files beside them.

    Raises:
        ModelNotFound: there are no weights in a format we read.
        UnsupportedModel: several GGUF files.
    """
    plain = sorted(name for name in names if _PLAIN_NAME.fullmatch(name))
    weights = [n for n in plain if n.endswith(".safetensors") and not n.startswith("consolidated")]
    if not weights:
        weights = [name for name in plain if name.endswith(".gguf")]
        if len(weights) > 1:
            listed = ", ".join(weights[:20])
            raise UnsupportedModel(
                f"{repository} holds {len(weights)} GGUF files; fetch the one you want by hand and name it: {listed}."
            )
        if weights:
            return weights
        raise ModelNotFound(f"{repository} holds neither .safetensors nor .gguf files.")
    return weights + [name for name in plain if name.endswith(".json") or name in _BESIDE]


def _client(hub: str) -> Any:
    module, extra = _EXTRAS[hub]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"{hub}: models need an extra that is not installed; install it with: pip install 'upwell[{extra}]'."
        ) from None


def _fetch_hf(client: Any, repository: str, folder: Path) -> list[str]:
    info = client.HfApi().model_info(repository)
    names = choose_files(repository, [file.rfilename for file in info.siblings or ()])
    client.snapshot_download(repository, revision=info.sha, local_dir=folder, allow_patterns=names)
    return names


def _fetch_modelscope(client: Any, repository: str, folder: Path) -> list[str]:
    files = client.HubApi().get_model_files(repository, recursive=False)
    names = choose_files(repository, [str(file["Path"]) for file in files])
    download = importlib.import_module("modelscope.hub.snapshot_download").snapshot_download
    download(repository, local_dir=str(folder), allow_patterns=names)
    return names


def _failure(repository: str, error: Exception) -> ModelError:
    """What a client's error means, in one line. The clients have no errors in common but their names and texts."""
    text = " ".join(str(error).split()) or type(error).__name__
    kind = ModelNotFound if "NotFound" in type(error).__name__ else ModelError
    return kind(f"{repository} could not be fetched: {shown(text, 300)}.")
