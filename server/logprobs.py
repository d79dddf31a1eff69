"""Tokens as the API shows them: as text, and with log probabilities in its two formats.

Called by the routes' formats with what the engine reports. Both formats name tokens by ``token_string``.
"""

from __future__ import annotations

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


class TextLogprobsWriter:
    """The format of text completions, token by token; keeps the offset of the next token in the answer's text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._num_chars_begun = 0

    def write(self, entries: Sequence[TokenLogprobs]) -> TextLogprobs:
        """Parallel lists for the next tokens of the answer."""
        out = TextLogprobs([], [], [], [])
        for entry in entries:
            logprob = max(entry.logprob, LEAST_LOGPROB)
            token = token_string(self._vocabulary, entry.token_id)
            out.tokens.append(token)
            out.token_logprobs.append(logprob)
            out.top_logprobs.append(self._top(entry))
            out.text_offset.append(self._offset_of(entry.token_id))
        return out

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens by their strings, and the chosen one; of two with one string the likelier stays."""
        top: dict[str, float] = {}
        for token_id, logprob in entry.top:
            top.setdefault(token_string(self._vocabulary, token_id), max(logprob, LEAST_LOGPROB))
        if top:
            top.setdefault(token_string(self._vocabulary, entry.token_id), max(entry.logprob, LEAST_LOGPROB))
        return top

    def _offset_of(self, token_id: int) -> int:
        """Index of the character in which the token begins; then count the characters that begin in it."""
        raw = b"" if self._vocabulary.is_special(token_id) else self._vocabulary.token_bytes(token_id)
        inside = bool(raw) and _continues(raw[0]) and self._num_chars_begun > 0
        offset = self._num_chars_begun - inside
        self._num_chars_begun += sum(not _continues(byte) for byte in raw)
        return offset


def _continues(byte: int) -> bool:
    """Whether the byte goes on with a UTF-8 character that began before it."""
    return byte & 0xC0 == 0x80
