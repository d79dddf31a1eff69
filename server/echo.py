"""Prompts as text completions show them before their answers: text, tokens, and where in the text each token begins.

Called by the route of completions, on a thread where prompts are long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import combining

from engine.types import TokenLogprobs
from server.answers import TextLogprobs
from server.context import PromptEncoder, Vocabulary
from server.logprobs import text_of, utf8_decoder, write_one

Prompt = str | list[int]


@dataclass(frozen=True)
class Echo:
    """A prompt as it is shown.

    Attributes:
        offsets: of each token, the index of the character of ``text`` in which it begins; empty if nobody asks.
    """

    text: str
    token_ids: Sequence[int]
    offsets: Sequence[int] = ()

    def logprobs(self, start: int, entries: Sequence[TokenLogprobs], vocabulary: Vocabulary) -> TextLogprobs:
        """Parallel lists for the tokens from ``start`` on; the prompt's very first has no log probability."""
        out = TextLogprobs([], [], [], [])
        for place, entry in enumerate([None, *entries] if start == 0 else entries, start):
            write_one(out, self.token_ids[place], entry, self.offsets[place], vocabulary)
        return out


def echo_of(
    prompt: Prompt, token_ids: Sequence[int], encoder: PromptEncoder, vocabulary: Vocabulary, *, with_offsets: bool
) -> Echo:
    """How a prompt of these tokens is shown: a text as it was sent, else its tokens, control tokens by their names."""
    text = prompt if isinstance(prompt, str) else text_of(token_ids, vocabulary)
    if not with_offsets:
        return Echo(text, token_ids)
    if not isinstance(prompt, str):
        return Echo(text, token_ids, _offsets(token_ids, text, vocabulary))
    shown = encoder.text(prompt, add_special=False)
    starts = range(len(token_ids) - len(shown) + 1)
    before = next((i for i in starts if list(token_ids[i : i + len(shown)]) == shown), 0)
    own = token_ids[before : before + len(shown)]
    after = len(token_ids) - before - len(own)
    return Echo(text, token_ids, [0] * before + _offsets(own, text, vocabulary) + [len(text)] * after)


def _offsets(token_ids: Sequence[int], text: str, vocabulary: Vocabulary) -> list[int]:
    """Where tokens begin in a text that is theirs, but for spaces that a tokenizer adds and composed characters."""
    decoder, at, found = utf8_decoder(), 0, []
    for token_id in token_ids:
        found.append(at)
        for character in decoder.decode(vocabulary.token_bytes(token_id)):
            while text[at : at + 1] != character and combining(text[at : at + 1] or " "):
                at += 1
            if at < len(text) and (text[at] == character or character != " "):
                at += 1
    return found
