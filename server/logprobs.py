"""Tokens as the API shows them: as text, and with log probabilities in its two formats.

Called by the routes' formats with what the engine reports. Both formats name tokens by ``token_string``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Echo:
    """A prompt as it is shown before its answer.

    Attributes:
        text: of all its tokens but one that the tokenizer put before it, if ``hides_first``.
    """

    text: str
    token_ids: Sequence[int]
    hides_first: bool

    @classmethod
    def of(cls, prompt: str | Sequence[int], token_ids: Sequence[int], vocabulary: Vocabulary) -> Echo:
        """A prompt's; sent as a text, that of token ids is the same prompt where the tokenizer gives these ids."""
        if not isinstance(prompt, str):
            return cls(text_of(token_ids, vocabulary), token_ids, hides_first=False)
        first = token_ids[0] if token_ids else None
        is_added = (
            first is not None and vocabulary.is_special(first) and not prompt.startswith(vocabulary.token_text(first))
        )
        return cls(prompt, token_ids, is_added)


class TextLogprobsWriter:
    """The format of text completions, token by token; keeps the offset of the next token in the answer's text.

    With an ``echo`` the answer begins with its prompt, and the tokens with the prompt's.
    """

    def __init__(self, vocabulary: Vocabulary, echo: Echo | None = None) -> None:
        self._vocabulary = vocabulary
        self._echo = echo
        self._num_echoed = 0
        self._num_chars_begun = 0

    def write(self, entries: Sequence[TokenLogprobs], of_prompt: Sequence[TokenLogprobs] = ()) -> TextLogprobs:
        """Parallel lists for the next tokens: the prompt's, from its second on, and then the answer's."""
        out = TextLogprobs([], [], [], [])
        if self._echo is not None:
            self._write_prompt(out, self._echo, of_prompt)
        for entry in entries:
            is_shown = not self._vocabulary.is_special(entry.token_id)
            self._write_one(out, entry, is_shown=is_shown)
        return out

    def _write_prompt(self, out: TextLogprobs, echo: Echo, entries: Sequence[TokenLogprobs]) -> None:
        if not self._num_echoed:
            first = echo.token_ids[0]
            out.tokens.append(token_string(self._vocabulary, first))
            out.token_logprobs.append(None)
            out.top_logprobs.append(None)
            out.text_offset.append(self._offset_of(first, is_shown=not echo.hides_first))
            self._num_echoed = 1
        for entry in entries:
            self._write_one(out, entry, is_shown=True)
        self._num_echoed += len(entries)
        if self._num_echoed == len(echo.token_ids):
            self._num_chars_begun = len(echo.text)  # whatever the tokenizer made of it
            self._echo = None

    def _write_one(self, out: TextLogprobs, entry: TokenLogprobs, *, is_shown: bool) -> None:
        out.tokens.append(token_string(self._vocabulary, entry.token_id))
        out.token_logprobs.append(max(entry.logprob, LEAST_LOGPROB))
        out.top_logprobs.append(self._top(entry))
        out.text_offset.append(self._offset_of(entry.token_id, is_shown=is_shown))

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens by their strings, and the chosen one; of two with one string the likelier stays."""
        top: dict[str, float] = {}
        for token_id, logprob in entry.top:
            top.setdefault(token_string(self._vocabulary, token_id), max(logprob, LEAST_LOGPROB))
        if top:
            top.setdefault(token_string(self._vocabulary, entry.token_id), max(entry.logprob, LEAST_LOGPROB))
        return top

    def _offset_of(self, token_id: int, *, is_shown: bool) -> int:
        """Index of the character in which the token begins; then count the characters that begin in it."""
        raw = self._vocabulary.token_bytes(token_id) if is_shown else b""
        inside = bool(raw) and _continues(raw[0]) and self._num_chars_begun > 0
        offset = self._num_chars_begun - inside
        self._num_chars_begun += sum(not _continues(byte) for byte in raw)
        return offset


def _continues(byte: int) -> bool:
    """Whether the byte goes on with a UTF-8 character that began before it."""
    return byte & 0xC0 == 0x80
