"""Tokens as the API shows them: as text, and with log probabilities in its two formats.

Called by the routes' formats with what the engine reports. Both formats name tokens by ``token_string``.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from engine.types import TokenLogprobs
from server.answers import ChatLogprobs, ChatTokenLogprob, TextLogprobs, TopLogprob
from server.context import Vocabulary

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def token_string(vocabulary: Vocabulary, token_id: int) -> str:
    r"""The token's text; a token that is not whole UTF-8 is spelled ``bytes:\xe2\x82``, as OpenAI does."""
    if vocabulary.is_special(token_id):
        return vocabulary.token_text(token_id)
    raw = vocabulary.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def text_of(token_ids: Iterable[int], vocabulary: Vocabulary) -> str:
    """The text of tokens, control tokens by their names; what is not valid UTF-8 becomes U+FFFD."""
    return b"".join(map(vocabulary.token_bytes, token_ids)).decode(errors="replace")


def chat_logprobs(entries: Sequence[TokenLogprobs], vocabulary: Vocabulary) -> ChatLogprobs:
    """The format of chat answers."""
    content = []
    for entry in entries:
        top = [TopLogprob(*_named(vocabulary, token_id, logprob)) for token_id, logprob in entry.top]
        content.append(ChatTokenLogprob(*_named(vocabulary, entry.token_id, entry.logprob), top))
    return ChatLogprobs(content)


def _named(vocabulary: Vocabulary, token_id: int, logprob: float) -> tuple[str, float, list[int] | None]:
    raw = vocabulary.token_bytes(token_id)
    return token_string(vocabulary, token_id), max(logprob, LEAST_LOGPROB), list(raw) or None


def utf8_decoder() -> codecs.IncrementalDecoder:
    """Gives the text of bytes that come in pieces, as ``text_of`` gives it of all."""
    return codecs.getincrementaldecoder("utf-8")("replace")


class TextLogprobsWriter:
    """The format of text completions, token by token; keeps the offset of the next token in the answer's text."""

    def __init__(self, vocabulary: Vocabulary, start: int = 0) -> None:
        """For an answer that begins so many characters after the beginning of the text."""
        self._vocabulary = vocabulary
        self._num_chars = start
        self._decoder = utf8_decoder()

    def write(self, entries: Sequence[TokenLogprobs]) -> TextLogprobs:
        """Parallel lists for the next tokens of the answer."""
        out = TextLogprobs([], [], [], [])
        for entry in entries:
            write_one(out, entry.token_id, entry, self._num_chars, self._vocabulary)
            if not self._vocabulary.is_special(entry.token_id):
                self._num_chars += len(self._decoder.decode(self._vocabulary.token_bytes(entry.token_id)))
        return out


def write_one(
    out: TextLogprobs, token_id: int, entry: TokenLogprobs | None, offset: int, vocabulary: Vocabulary
) -> None:
    """Append a token; one that begins its text has no log probability, and so no ``entry``."""
    out.tokens.append(token_string(vocabulary, token_id))
    out.token_logprobs.append(None if entry is None else max(entry.logprob, LEAST_LOGPROB))
    out.top_logprobs.append(None if entry is None else _top(entry, vocabulary))
    out.text_offset.append(offset)


def _top(entry: TokenLogprobs, vocabulary: Vocabulary) -> dict[str, float]:
    """The likeliest tokens by their strings, and the chosen one; of two with one string the likelier stays."""
    top: dict[str, float] = {}
    for token_id, logprob in entry.top:
        top.setdefault(token_string(vocabulary, token_id), max(logprob, LEAST_LOGPROB))
    if top:
        top.setdefault(token_string(vocabulary, entry.token_id), max(entry.logprob, LEAST_LOGPROB))
    return top


def joined(first: TextLogprobs, second: TextLogprobs) -> TextLogprobs:
    """The tokens of both."""
    return TextLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )
