"""A tokenizer of 256 tokens, each one byte: enough for the engine, and its decoding is obvious."""

from __future__ import annotations


class ByteTokenizer:
    vocab_size = 256

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def is_special(self, token_id: int) -> bool:
        return False
