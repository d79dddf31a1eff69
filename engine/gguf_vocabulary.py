"""The vocabulary in a GGUF file's metadata: what each token id stands for.

Read by ``GGUFCheckpoint`` for the engine, which only turns ids into text, and by ``gguf_tokenizer``, which adds how
text becomes ids. Only byte-level BPE (``tokenizer.ggml.model`` = ``gpt2``) is known.
Source: the GGUF specification ("Tokenizer").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import MalformedModel, UnsupportedModel
from engine.token_table import TokenTable, byte_level_bytes

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
_TOKEN_TYPES = range(1, 7)
_INTEGERS = frozenset("bBhHiIqQ")
"""Formats of memoryviews."""


@dataclass(frozen=True)
class GGUFVocabulary:
    """The tokens of a file by id, and which ids are of a kind of their own.

    Attributes:
        special: control tokens.
        added: those, and tokens that users defined; their spelling is their text.
        hidden: never show anything.
    """

    tokens: list[str]
    special: frozenset[int]
    added: frozenset[int]
    hidden: frozenset[int]

    def table(self) -> TokenTable:
        """The bytes of every token."""
        return TokenTable(self.tokens, byte_level_bytes, verbatim=self.added, special=self.special, hidden=self.hidden)


def read_vocabulary(metadata: Mapping[str, object]) -> GGUFVocabulary:
    """The vocabulary that a GGUF file describes.

    Args:
        metadata: key -> str, number, list[str] or memoryview of numbers.

    Raises:
        UnsupportedModel: not byte-level BPE.
        MalformedModel: none, or arrays that contradict each other.
    """
    _check_model(metadata)
    tokens = strings(metadata, "tokens")
    kinds = _token_types(metadata, len(tokens))
    special = frozenset(i for i, kind in enumerate(kinds) if kind in {_CONTROL, _UNKNOWN})
    return GGUFVocabulary(
        tokens=tokens,
        special=special,
        added=special.union(i for i, kind in enumerate(kinds) if kind == _USER_DEFINED),
        hidden=frozenset(i for i, kind in enumerate(kinds) if kind == _UNUSED),
    )


def _check_model(metadata: Mapping[str, object]) -> None:
    model = optional_text(metadata, "tokenizer.ggml.model")
    if model is None:
        raise MalformedModel("The GGUF file has no tokenizer (tokenizer.ggml.model is missing).")
    if model != "gpt2":
        raise UnsupportedModel(
            f'The GGUF file\'s tokenizer is of kind "{model[:40]}", which cannot be rebuilt exactly, only "gpt2" can; '
            "serve the model's Hugging Face folder with its tokenizer.json instead."
        )


def strings(metadata: Mapping[str, object], name: str) -> list[str]:
    """One of the tokenizer's arrays of texts.

    Raises:
        MalformedModel: it is missing, empty or not of texts.
    """
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise MalformedModel(f"The GGUF file's tokenizer.ggml.{name} is not a list of texts.")
    return value


def _token_types(metadata: Mapping[str, object], count: int) -> list[int]:
    value = metadata.get("tokenizer.ggml.token_type")
    if value is None:
        return [1] * count
    if not isinstance(value, memoryview) or value.format not in _INTEGERS:
        raise MalformedModel("The GGUF file's tokenizer.ggml.token_type is not a list of integers.")
    if len(value) != count:
        raise MalformedModel(
            f"The GGUF file has {count} tokens, but {len(value)} entries in tokenizer.ggml.token_type."
        )
    types: list[int] = value.tolist()
    if not set(types) <= set(_TOKEN_TYPES):
        raise MalformedModel("The GGUF file's tokenizer.ggml.token_type holds a kind of token that does not exist.")
    return types


def optional_text(metadata: Mapping[str, object], key: str) -> str | None:
    """A text that may be missing.

    Raises:
        MalformedModel: it is something other than a text.
    """
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise MalformedModel(f"The GGUF file's {key} is not a text.")
    return value
