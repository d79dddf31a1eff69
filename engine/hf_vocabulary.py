"""The vocabulary in a ``tokenizer.json``: what each token id stands for.

Read by ``HFCheckpoint`` for the engine, which only turns ids into text, and by ``hf_tokenizer``, which holds it against
what the ``tokenizers`` library makes of the same file. Added tokens get their ids as that library gives them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import MalformedModel, ModelNotFound
from engine.token_table import ToBytes, TokenTable, byte_level_bytes, decoder_bytes

_MAX_ID = 1 << 24


class _Model(msgspec.Struct):
    """By token, or, of a unigram model, pairs of token and score in the order of ids."""

    vocab: dict[str, int] | list[tuple[str, float]]


class _Added(msgspec.Struct):
    content: str
    special: bool = False


class _File(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] | None = None
    decoder: dict[str, Any] | None = None


def read_tokenizer_json(folder: Path) -> str:
    """The text of a folder's ``tokenizer.json``.

    Raises:
        ModelNotFound: there is none.
        MalformedModel: it is not UTF-8, or cannot be read.
    """
    source = read_text(folder / "tokenizer.json")
    if source is None:
        raise ModelNotFound(
            f"{folder.name} has no tokenizer.json; save the model's fast tokenizer there (a SentencePiece "
            "tokenizer.model alone is not read)."
        )
    return source


@dataclass(frozen=True)
class HFVocabulary:
    """The tokens of a file by id, None where an id has none, and how they spell bytes.

    Attributes:
        special: ids of control tokens.
        verbatim: ids whose spelling is their text.
    """

    tokens: list[str | None]
    special: frozenset[int]
    verbatim: frozenset[int]
    to_bytes: ToBytes

    def table(self) -> TokenTable:
        """The bytes of every token."""
        return TokenTable(self.tokens, self.to_bytes, verbatim=self.verbatim, special=self.special)


def read_vocabulary(source: str) -> HFVocabulary:
    """The vocabulary of a ``tokenizer.json``.

    Raises:
        MalformedModel: it cannot be read or contradicts itself.
        UnsupportedModel: a decoder that this build does not know.
    """
    try:
        file = msgspec.json.decode(source, type=_File)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedModel(f"tokenizer.json cannot be read: {str(error)[:200]}.") from error
    to_bytes = decoder_bytes(file.decoder)
    vocabulary = _vocabulary(file.model)
    added = _added_ids(vocabulary, file.added_tokens or [])
    return HFVocabulary(
        tokens=_by_id(vocabulary | {token.content: token_id for token_id, token in added.items()}),
        special=frozenset(token_id for token_id, token in added.items() if token.special),
        verbatim=frozenset(added) if to_bytes is byte_level_bytes else frozenset(),
        to_bytes=to_bytes,
    )


def _vocabulary(model: _Model) -> dict[str, int]:
    if isinstance(model.vocab, dict):
        return model.vocab
    return {token: token_id for token_id, (token, _) in enumerate(model.vocab)}


def _added_ids(vocabulary: dict[str, int], tokens: list[_Added]) -> dict[int, _Added]:
    """Added tokens by id: the vocabulary's own where it has the token, else the next beyond it, in order."""
    next_id = len(vocabulary)
    ids: dict[str, int] = {}
    added: dict[int, _Added] = {}
    for token in tokens:
        if not token.content:
            continue
        token_id = vocabulary.get(token.content, ids.get(token.content, next_id))
        ids[token.content] = token_id
        added[token_id] = token
        next_id = max(next_id, token_id + 1)
    return added


def _by_id(vocabulary: dict[str, int]) -> list[str | None]:
    size = max(vocabulary.values(), default=-1) + 1
    if not 0 < size <= _MAX_ID or min(vocabulary.values()) < 0:
        raise MalformedModel(f"tokenizer.json has token ids up to {size - 1}, negative ones, or no tokens at all.")
    tokens: list[str | None] = [None] * size
    for token, token_id in vocabulary.items():
        if tokens[token_id] is not None:
            raise MalformedModel(f"tokenizer.json gives the id {token_id} to two tokens.")
        tokens[token_id] = token
    return tokens


def read_text(path: Path) -> str | None:
    """The file's text, or None if there is no such file.

    Raises:
        MalformedModel: it is not UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MalformedModel(f"{path.name} cannot be read as UTF-8 text.") from error
