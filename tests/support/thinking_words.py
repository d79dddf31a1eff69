"""A vocabulary in which a model can write the markers of thoughts in many ways: as one control token, or in pieces."""

from __future__ import annotations

THINK, END_THINK, END, PAD = "<think>", "</think>", "<end>", "<pad>"
_CONTROL = (THINK, END_THINK, END, PAD)
_BYTES = [*range(0x20, 0x7F), *b"\n\t\r", *"é\u2003".encode()]
_PIECES = [
    "<think", "think", "think>", "</", "nk>", "ink", "hink>", ">", "k>\n\n", ">\n\n", ">\n", ">a", "nk>b", "k> c",
    "</think", "<th", "</think>", "x</think>", "</think>a", "</think>\n", "\n\n", "  ", "\r\n", "ab", "c-", "a</", " <",
    "\n<think>", "<think>\n", "<think></think>", "</think></", "></think>", "\u2003", "\u2003<", "é", "bc",
]  # fmt: skip


class ThinkingWords:
    """Token ids 0 to 255; of several tokens with the same bytes the first is meant by ``ids_of``."""

    def __init__(self) -> None:
        tokens = [bytes([byte]) for byte in _BYTES] + [piece.encode() for piece in _PIECES]
        self.control = dict(zip(_CONTROL, range(len(tokens), 256), strict=False))
        tokens += [text.encode() for text in _CONTROL]
        self.tokens = tokens + [tokens[i % len(_BYTES)] for i in range(255 - len(tokens))] + [b""]
        self.eos_id = self.control[END]

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id in self.control.values()

    def ids_of(self, text: str) -> tuple[int, ...]:
        """Byte by byte."""
        return tuple(self.tokens.index(bytes([byte])) for byte in text.encode())

    def interesting(self) -> list[int]:
        """Ids of more than one byte, and of control tokens."""
        return list(range(len(_BYTES), len(_BYTES) + len(_PIECES) + len(_CONTROL)))
