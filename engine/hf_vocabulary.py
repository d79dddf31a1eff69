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
    tokens = _model_tokens(file.model)
    if not tokens:
        raise MalformedModel("tokenizer.json has no tokens at all.")
    added = _added_tokens(file.model, file.added_tokens or [])
    for token_id, (content, _) in added.items():
        _place(tokens, token_id, content)
    return HFVocabulary(
        tokens=tokens,
        special=frozenset(token_id for token_id, (_, special) in added.items() if special),
        verbatim=frozenset(added) if to_bytes is byte_level_bytes else frozenset(),
        to_bytes=to_bytes,
    )


def _model_tokens(model: _Model) -> list[str | None]:
    """The model's tokens by id; a list may have a token twice, and then both ids spell it."""
    if isinstance(model.vocab, list):
        return [token for token, _ in model.vocab]
    tokens: list[str | None] = []
    for token, token_id in model.vocab.items():
        _place(tokens, token_id, token)
    return tokens


def _added_tokens(model: _Model, tokens: list[_Added]) -> dict[int, tuple[str, bool]]:
    """Added tokens by id, each with whether it is special, which it is if any of its entries says so.

    The id is the model's own where it has the token (the last of a list that has it twice). All others are counted on
    from the size of the model's vocabulary, in order, whatever ids that has and whatever is written beside them.
    """
    ids = model.vocab if isinstance(model.vocab, dict) else {token: i for i, (token, _) in enumerate(model.vocab)}
    next_id = len(model.vocab)
    new: dict[str, int] = {}
    added: dict[int, tuple[str, bool]] = {}
    for token in tokens:
        if not token.content:
            continue
        token_id = ids.get(token.content, new.get(token.content))
        if token_id is None:
            token_id = new[token.content] = next_id
            next_id += 1
        _, special = added.get(token_id, ("", False))
        added[token_id] = (token.content, special or token.special)
    return added


def _place(tokens: list[str | None], token_id: int, token: str) -> None:
    """Put a token at its id.

    Raises:
        MalformedModel: there is another, or the id is none.
    """
    if not 0 <= token_id < _MAX_ID:
        raise MalformedModel(f"tokenizer.json has the token id {token_id}; ids are between 0 and {_MAX_ID - 1}.")
    tokens.extend([None] * (token_id + 1 - len(tokens)))
    if tokens[token_id] not in {None, token}:
        raise MalformedModel(f"tokenizer.json gives the id {token_id} to two tokens.")
    tokens[token_id] = token


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
