"""What each token id stands for: the bytes behind a token.

Built by ``gguf_vocabulary`` and ``hf_vocabulary``, read by ``Tokenizer`` and, without one, by the engine. Invariants:
the table never changes what it answers, and joining the bytes of a sequence of ids gives the bytes of its text, so text
can be produced token by token. The leading space that SentencePiece vocabularies put before a word is kept: what a
model generates continues a prompt.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from engine.errors import UnsupportedModel

ToBytes = Callable[[str], bytes]


def _byte_level_alphabet() -> dict[int, str]:
    """Byte -> the character that stands for it in GPT-2 vocabularies.

    Printable Latin-1 stands for itself; the other 68 bytes, in order, for U+0100 and up.
    Source: Radford et al. 2019, the byte-level BPE of GPT-2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(moved)}


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()
_BYTE_LEVEL_CHARACTERS = frozenset(BYTE_LEVEL_ALPHABET.values())
_TO_LATIN1 = str.maketrans({character: chr(byte) for byte, character in BYTE_LEVEL_ALPHABET.items()})


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; one that is not written in the alphabet stands for itself."""
    if _BYTE_LEVEL_CHARACTERS.issuperset(token):
        return token.translate(_TO_LATIN1).encode("latin-1")
    return token.encode()


class TokenTable:
    """The bytes of every token id, one after the other in one piece of memory.

    A hundred thousand objects, one a token, would take ten times as much, in each of two processes.

    Args:
        tokens: the vocabulary by id, None where an id has no token.
        to_bytes: the vocabulary's own spelling -> bytes.
        verbatim: ids whose spelling is their text, whatever ``to_bytes`` says.
        special: ids of control tokens; they have bytes, but show nothing in an answer.
        hidden: ids that never show anything, such as padding of the vocabulary.

    Attributes:
        longest: bytes of the longest token.
    """

    def __init__(
        self,
        tokens: Sequence[str | None],
        to_bytes: ToBytes,
        *,
        verbatim: frozenset[int] = frozenset(),
        special: frozenset[int] = frozenset(),
        hidden: frozenset[int] = frozenset(),
    ) -> None:
        self.special = special
        pieces = [
            b"" if token is None or token_id in hidden else token.encode() if token_id in verbatim else to_bytes(token)
            for token_id, token in enumerate(tokens)
        ]
        self.longest = max(map(len, pieces), default=0)
        self._starts = array("I", accumulate(map(len, pieces), initial=0))
        self._bytes = b"".join(pieces)

    def __len__(self) -> int:
        """One more than the highest id."""
        return len(self._starts) - 1

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token, which adds nothing to an answer."""
        return token_id in self.special

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes, a control token's too; none for ids outside the vocabulary."""
        if not 0 <= token_id < len(self._starts) - 1:
            return b""
        return self._bytes[self._starts[token_id] : self._starts[token_id + 1]]


def decoder_bytes(decoder: Mapping[str, Any] | None) -> ToBytes:
    """How a ``tokenizer.json`` decoder spells bytes.

    Raises:
        UnsupportedModel: a decoder that does not work token by token, or one this build does not know.
    """
    steps = _flatten(decoder)
    kinds = [str(step.get("type")) for step in steps]
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}:
        return byte_level_bytes
    replacements = [_replacement(step, kind) for step, kind in zip(steps, kinds, strict=True)]
    if not {"Metaspace", "Replace"}.intersection(kinds):
        raise _unsupported(" + ".join(kinds) or "none")
    return _sentencepiece_bytes([pair for pair in replacements if pair], byte_fallback="ByteFallback" in kinds)


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _flatten(inner)]
    return [decoder]


def _replacement(step: Mapping[str, Any], kind: str) -> tuple[str, str] | None:
    """What a SentencePiece-style step puts for what, or None for a step that changes no single token."""
    match step:
        case {"type": "Metaspace", "replacement": str(old)}:
            return old, " "
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return old, new
        case {"type": "ByteFallback" | "Fuse"} | {"type": "Strip", "content": " ", "stop": 0}:
            return None
    raise _unsupported(kind)


def _sentencepiece_bytes(replacements: Sequence[tuple[str, str]], *, byte_fallback: bool) -> ToBytes:
    byte_tokens = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)} if byte_fallback else {}

    def to_bytes(token: str) -> bytes:
        if token in byte_tokens:
            return byte_tokens[token]
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes


def _unsupported(kind: str) -> UnsupportedModel:
    return UnsupportedModel(
        f'The tokenizer\'s decoder "{kind[:100]}" is not supported; ByteLevel and SentencePiece-style decoders are.'
    )
