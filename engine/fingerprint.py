"""What an engine's tokens depend on beside the request, as one short word: the ``system_fingerprint`` of its answers.

Called once by ``loading``. The same model, code and options give the same word after every start and on every machine.

It sees: every byte of the small files of a model (configuration, tokenizer, template) and of the heads of its files of
weights, and pieces of the rest of these, evenly spread; the sources of engine and kernels; what the backend says it was
built of (``BackendInfo.build``); NumPy's version; and the options that change what is computed. It does not see weights
that were changed between the pieces in a file of the same size, names and places of files, nor what cannot change a
token: threads, sizes of the cache and of steps.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.weights.locate import model_path
from kernels.ops import BackendInfo

HEAD_BYTES = 16 << 20
"""Read whole of every file: more than the head of any file of weights, its vocabulary included."""
PIECE_BYTES = 4096
MAX_PIECES = 512
"""Of a file behind its head. At some 80 us each from an SSD, the 15 files of a model of 60 GB take 0.6 s."""
DIGEST_BYTES = 6

_SMALL_FILES = frozenset(
    {
        "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json",
    }
)  # fmt: skip
_SOURCES = (Path(__file__).parent, Path(__file__).parents[1] / "kernels")


def fingerprint(config: EngineConfig, backend: BackendInfo) -> str:
    """``fp_`` and twelve hexadecimal digits.

    Raises:
        ModelError: a file of the model cannot be read.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in _parts(config, backend):
        digest.update(b"%d:" % len(part))  # so that no two lists of parts are the same bytes
        digest.update(part)
    return f"fp_{digest.hexdigest()}"


def _parts(config: EngineConfig, backend: BackendInfo) -> Iterator[bytes]:
    options = (
        config.quantization,
        config.attention_scores,
        config.prompt_attention,
        config.tensor_parallel_size,
        config.eager,
        backend.name,
        backend.arithmetic.activations,
        backend.arithmetic.cache,
        backend.build,
        np.__version__,
    )
    yield repr(options).encode()
    for folder in _SOURCES:
        for path in sorted(folder.rglob("*.py")):
            yield path.relative_to(folder).as_posix().encode()
            yield path.read_bytes()
    try:
        yield from _model(model_path(Path(config.model_path)))
    except OSError as error:
        raise ModelError(f"{config.model_path} cannot be read: {error.strerror}.") from None


def _model(path: Path) -> Iterator[bytes]:
    if not path.is_dir():
        yield from _seen_of(path)
        return
    for file in sorted(path.iterdir()):
        if file.name in _SMALL_FILES or file.suffix == ".safetensors":
            yield file.name.encode()
            yield from _seen_of(file)


def _seen_of(path: Path) -> Iterator[bytes]:
    """A file's size, its head, and pieces of the rest."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        yield b"%d" % size
        yield file.read(HEAD_BYTES)
        for place in places(size):
            file.seek(place)
            yield file.read(PIECE_BYTES)


def places(size: int) -> Iterable[int]:
    """Where the pieces of a file of ``size`` bytes begin: evenly spread, the last one at its end."""
    rest = size - HEAD_BYTES
    if rest <= 0:
        return ()
    count = min(MAX_PIECES, -(-rest // PIECE_BYTES))
    last = max(size - PIECE_BYTES, HEAD_BYTES)
    return (HEAD_BYTES + (last - HEAD_BYTES) * i // max(count - 1, 1) for i in range(count))
