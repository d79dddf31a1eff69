"""The small byte-level vocabulary of tests/golden/tokens_tiny_bpe.json, as GGUF metadata and as tokenizers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


@cache
def golden_table(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"tokens_{name}.json").read_text(encoding="utf-8"))


def metadata(pre: str = "gpt-2", **changes: object) -> dict[str, object]:
    """What a GGUF file with that vocabulary holds; ``changes`` go by the last part of a key, None takes it out."""
    table = golden_table("tiny_bpe")
    values: dict[str, object] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": list(table["tokens"]),
        "merges": list(table["merges"]),
        "token_type": np.array(table["token_types"], dtype=np.int32).data,
        "bos_token_id": table["tokens"].index("<|bos|>"),
        "eos_token_id": table["tokens"].index("<|end|>"),
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


@cache
def tiny_tokenizer(pre: str = "gpt-2") -> Tokenizer:
    return Tokenizer.from_gguf(metadata(pre))


CONTROL, USER_DEFINED = 3, 4
"""Kinds of tokens in GGUF files."""


def with_control_tokens(texts: list[str], pre: str = "gpt-2", kind: int = CONTROL) -> Tokenizer:
    """The tiny tokenizer with more control tokens, or tokens of another kind, at the end of its vocabulary."""
    data = metadata(pre)
    tokens, kinds = data["tokenizer.ggml.tokens"], data["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, memoryview)
    data["tokenizer.ggml.tokens"] = [*tokens, *texts]
    data["tokenizer.ggml.token_type"] = np.array([*kinds, *[kind] * len(texts)], dtype=np.int32).data
    return Tokenizer.from_gguf(data)


def encode_client_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that all comes from a client, by the way that the messages of a chat go."""
    guarded = tokenizer.guard(text)
    return tokenizer.encode_rendered(guarded.value, guarded.mark)
