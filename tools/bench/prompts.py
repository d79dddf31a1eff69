"""Prompts of an exact number of tokens, as text, so that every server has the same work.

A hundred successive seeds differ from the first word on, so that no prompt finds another's prefix in a cache.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from engine.tokenizer import Tokenizer

_WORDS = (  # noqa: SIM905  (fifty lines of a list read worse)
    "river stone market engine garden winter signal copper window letter forest bridge number planet island "
    "doctor kitchen mirror harbor valley thunder basket candle pocket saddle ribbon meadow tunnel anchor "
    "carpet feather hammer jacket ladder magnet needle orange pepper quartz rocket silver ticket umbrella "
    "velvet wagon yellow zebra artist butter cotton desert"
).split()
_FILLERS = (" a", "a")
"""Mostly one token each, the second one where characters are; makes up what whole words leave short."""


@dataclass(frozen=True)
class Prompt:
    """A text and the ids that the model's tokenizer makes of it."""

    text: str
    ids: list[int]


class PromptMaker:
    """Makes prompts with one model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def make(self, num_tokens: int, seed: int, prefix: str = "") -> Prompt:
        """A prompt of exactly ``num_tokens`` tokens, those of ``prefix`` included.

        Raises:
            RuntimeError: no such text was found.
        """
        rng = random.Random(seed)  # noqa: S311  (not for secrets)
        text = prefix + ("\n" if prefix else "") + _first_word(seed)
        ids = self._encode(text)
        while len(ids) < num_tokens:
            missing = num_tokens - len(ids)
            longer = text + "".join(f" {rng.choice(_WORDS)}" for _ in range(max(1, missing // 4)))
            if len(self._encode(longer)) > num_tokens:
                return self._filled(text, num_tokens, missing)
            text, ids = longer, self._encode(longer)
        return Prompt(text, ids)

    def _filled(self, text: str, num_tokens: int, missing: int) -> Prompt:
        for filler in _FILLERS:
            filled = text + filler * missing
            ids = self._encode(filled)
            if len(ids) == num_tokens:
                return Prompt(filled, ids)
        raise RuntimeError(f"found no prompt of {num_tokens} tokens with this tokenizer")

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=True)


def _first_word(seed: int) -> str:
    word = _WORDS[seed % len(_WORDS)]
    return word.capitalize() if seed // len(_WORDS) % 2 else word
