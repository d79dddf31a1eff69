"""Thoughts of an answer: where they begin and end, how long they may be, and what may come while they last.

Each ``Sequence`` whose request has ``Thoughts`` owns one ``Thinking``. It reads the bytes that the answer shows, so a
marker may be one control token or be cut over several plain ones, and it finds the same border as the server, which
splits the text. What it forces or bans depends on the answer's own tokens alone.
"""

from __future__ import annotations

import enum
from codecs import utf_8_decode
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from engine.detokenizer import StopMatcher, Vocabulary
from engine.errors import InvalidRequest
from engine.types import Thoughts
from kernels.ops import F32

BLANKS = b" \t\r\n"
"""What may stand around the markers, and come between thoughts and an answer."""


class Only:
    """One token must come next. As ``grammar.Allowed``."""

    __slots__ = ("_token_id",)

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id

    def __contains__(self, token_id: int) -> bool:
        """Whether it is this one."""
        return token_id == self._token_id

    def restrict(self, row: F32) -> None:
        """Make the logits of all other tokens -inf, f32[V], in place."""
        logit = row[self._token_id]
        row.fill(-np.inf)
        row[self._token_id] = logit


class AllBut:
    """Some tokens must not come next. As ``grammar.Allowed``."""

    __slots__ = ("_ids", "_token_ids")

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._token_ids = frozenset(token_ids)
        self._ids = np.array(sorted(self._token_ids), dtype=np.intp)

    def __contains__(self, token_id: int) -> bool:
        """Whether it is none of them."""
        return token_id not in self._token_ids

    def restrict(self, row: F32) -> None:
        """Make their logits -inf, f32[V], in place."""
        row[self._ids] = -np.inf


class Border(NamedTuple):
    """What tokens mean between thoughts and an answer that is held to a grammar.

    Attributes:
        before: what may come in thoughts, by how many bytes of the end marker they end with. Neither the end of the
            answer, nor a token that has the end marker's end and then something of the answer.
        blanks: tokens of whitespace, which models write before the answer, and which is no part of it.
    """

    before: tuple[AllBut, ...]
    blanks: frozenset[int]


def border_of(end: str, vocabulary: Vocabulary, vocab_size: int, eos_ids: Iterable[int]) -> Border:
    """The border that an end marker makes; reads the whole vocabulary."""
    marker = _as_characters(end.encode())
    shown = [(i, vocabulary.token_bytes(i)) for i in range(vocab_size) if not vocabulary.is_special(i)]
    last = end.encode()[-1:]
    longer = [(i, _as_characters(data)) for i, data in shown if last in data[:-1]]
    before = tuple(
        AllBut([*eos_ids, *(i for i, text in longer if _goes_on(marker, num_matched, text))])
        for num_matched in range(len(marker))
    )
    return Border(before, frozenset(i for i, data in shown if data and not data.strip(BLANKS)))


def _goes_on(marker: str, num_matched: int, text: str) -> bool:
    """Whether a text completes a marker of which so much is there, and has more than whitespace after it."""
    matcher = StopMatcher((marker,))
    matcher.feed(marker[:num_matched])
    found = matcher.feed(text)
    return found is not None and bool(text[found[0] :].encode("latin-1").strip(BLANKS))


def check_forced(thoughts: Thoughts, bytes_of: Callable[[int], bytes]) -> None:
    """Hold the tokens that may be forced against the markers.

    Args:
        thoughts: the markers, and tokens for them.
        bytes_of: what a token shows.

    Raises:
        InvalidRequest: they would not begin or end thoughts.
    """
    start, end = (b"".join(map(bytes_of, ids)).strip(BLANKS) for ids in (thoughts.start_ids, thoughts.end_ids))
    if thoughts.start_ids and start != thoughts.start.encode():
        raise InvalidRequest("The tokens that begin thoughts are not their start marker.", param="thinking")
    if thoughts.end_ids and end != thoughts.end.encode():
        raise InvalidRequest("The tokens that end thoughts are not their end marker.", param="thinking")


class _Phase(enum.Enum):
    UNDECIDED = enum.auto()
    """The answer has nothing yet but whitespace, or part of the start marker."""
    THOUGHTS = enum.auto()
    ANSWER = enum.auto()


class Thinking:
    """How far one answer has come in its thoughts.

    Attributes:
        num_tokens: of the answer, up to the end of its thoughts with their markers; 0 if it has none.
    """

    def __init__(self, thoughts: Thoughts) -> None:
        self._start, self._end_ids, self._budget = thoughts.start, thoughts.end_ids, thoughts.budget
        self._end = StopMatcher((_as_characters(thoughts.end.encode()),))
        self._phase = _Phase.THOUGHTS if thoughts.is_open else _Phase.UNDECIDED
        self._head = b""
        self._num_taken = self._num_thought = 0
        self._forced = list(reversed(thoughts.start_ids)) if thoughts.is_forced else []
        self.num_tokens = 0
        self._hold_to_budget()

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is a thought, as far as is known."""
        return self._phase is _Phase.THOUGHTS

    @property
    def is_over(self) -> bool:
        """Whether the next token is the answer's, and all after it."""
        return self._phase is _Phase.ANSWER and not self._forced

    @property
    def is_forcing(self) -> bool:
        """Whether the next token is not the model's to choose."""
        return bool(self._forced)

    @property
    def must_think(self) -> bool:
        """Whether there are thoughts, or will be."""
        return self.is_thinking or self.is_forcing

    def decline(self) -> None:
        """The answer has no thoughts."""
        self._phase = _Phase.ANSWER

    def allowed(self, border: Border | None) -> Only | AllBut | None:
        """What the next token may be.

        Args:
            border: that of a grammar which holds the answer; None if it may say anything.
        """
        if self._forced:
            return Only(self._forced[-1])
        if border is not None and self.is_thinking:
            return border.before[self._end.num_matched]
        return None

    def take(self, data: bytes) -> None:
        """The next token, by the bytes that it shows; not the one that ends the answer."""
        self._num_taken += 1
        if self._forced:
            self._forced.pop()
        if self.is_thinking:
            self._think(data)
            self._num_thought += 1
        elif self._phase is _Phase.UNDECIDED:
            self._begin(data)
        self._hold_to_budget()

    def _begin(self, data: bytes) -> None:
        """Up to where it is certain whether the start marker comes first."""
        self._head += data
        text, num_decoded = utf_8_decode(self._head, "replace", False)
        text = text.lstrip()
        if text.startswith(self._start):
            start = self._start.encode()
            rest = self._head[self._head.index(start) + len(start) :]
            self._phase, self._head = _Phase.THOUGHTS, b""
            self._think(rest)
        elif not text:
            self._head = self._head[num_decoded:]
        elif not self._start.startswith(text):
            self._phase, self._head = _Phase.ANSWER, b""

    def _think(self, data: bytes) -> None:
        """Up to the end marker."""
        self.num_tokens = self._num_taken
        if self._end.feed(_as_characters(data)) is not None:
            self._phase = _Phase.ANSWER

    def _hold_to_budget(self) -> None:
        if self.is_thinking and not self._forced and self._budget is not None and self._num_thought >= self._budget:
            self._forced = list(reversed(self._end_ids))


def _as_characters(data: bytes) -> str:
    """One character for each byte, for ``StopMatcher``.

    In UTF-8 a text lies in another where its bytes lie in the other's, wherever the tokens cut its characters.
    """
    return data.decode("latin-1")
