"""What an answer may say: a request's grammar, and which tokens it allows next.

Grammars are llguidance's, in its own JSON form; the server writes them, and has tried each in a process that it can
kill before one comes here. They are compiled on a thread, and masks are computed on another while the model runs: the
library lets go of the interpreter for both. Tokens are told to it as bytes, so an answer may be cut into tokens in any
way that the model likes. A mask depends on the grammar and on the answer so far alone: each answer has a grammar that
was compiled for it. Copies of one would share what its lexer has come to know, so that answers could fail by what
others had said, and its memory would grow without end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.detokenizer import Vocabulary
from engine.grammar_limits import limits
from engine.thinking import Border, border_of
from kernels.ops import F32

SLACK_S, TOKEN_S = 2.0, 5e-3
"""CPU time that an answer's grammar may take, and that for each of its tokens. Usual ones take some 10 us a token.
Without a limit an ambiguous one, whose time grows with the square of the answer's length, would hold up all others."""
MAX_BLANKS = 4
"""Tokens of whitespace that may come between thoughts and the answer: two line breaks, in two tokens each."""
_BLANKS = r"[\x20\x0A\x0D\x09]+"
_TEXT = r"[^\"\\\x00-\x1F\x7F\x{85}\x{2028}\x{2029}\x{feff}]"
_WORD = r"[^\"\\\x00-\x20\x7F\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}]"
SLICES = (
    _BLANKS,
    *(f"{_WORD}{{1,{length}}}" for length in (3, 6, 10)),
    *(f"{_TEXT}{{1,{length}}}" for length in (3, 6, 10, 15, 30)),
    f"{_TEXT}+",
)
"""Sets of tokens that the library allows at once where it sees that the grammar allows all of a set, instead of walking
through them: blanks, and what JSON's strings hold without an escape. By length, for texts that may have so many
characters more; words apart, for patterns without blanks; and without line separators, which ``.`` leaves out."""
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
BIAS = np.where(_BITS, 0, -np.inf).astype(np.float32)
"""What eight logits are raised by, for each byte of a mask: f32[256,8]."""

Words = npt.NDArray[np.uint32]


class GrammarFailed(Exception):
    """A grammar cannot be compiled; the message is for the client."""


class Allowed:
    """The tokens that may come next, one bit each, lowest bits first: u32[ceil(V/32)]."""

    __slots__ = ("_words",)

    def __init__(self, words: Words) -> None:
        self._words = words

    def __contains__(self, token_id: int) -> bool:
        """Whether a token may."""
        return bool(int(self._words[token_id >> 5]) >> (token_id & 31) & 1)

    def add(self, token_ids: Iterable[int]) -> None:
        """Let these come too."""
        for token_id in token_ids:
            self._words[token_id >> 5] |= np.uint32(1 << (token_id & 31))

    def restrict(self, row: F32) -> None:
        """Make the logits of all other tokens -inf, f32[V], in place; none of them may be +inf."""
        row += BIAS.take(self._words.view(np.uint8), axis=0).reshape(-1)[: len(row)]


class AnswerGrammar:
    """How far one answer has come in its grammar. For one thread at a time.

    Attributes:
        border: between the answer and thoughts that may come before it; None if there are none.
        besides: tokens that may come next although the grammar does not have them, which are no part of the answer.
        is_complete: nothing may follow what the answer has.
        failure: why the library has given up; nothing is known of what may come then.
    """

    def __init__(self, matcher: Any, border: Border | None = None) -> None:
        self._matcher = matcher
        self._num_blanks = 0
        self._left_s = SLACK_S
        self.border = border
        self.besides: frozenset[int] = frozenset()
        self.is_complete = False
        self.failure: str | None = None

    def follow_thoughts(self) -> None:
        """The thoughts before the answer have ended; a little whitespace may come before it."""
        if self.border is not None:
            self.besides = self.border.blanks

    def allowed(self, vocab_size: int) -> Allowed | None:
        """What may come next; None after a failure."""
        words = np.zeros(-(-vocab_size // 32), dtype=np.uint32)
        began_s = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._left_s -= time.thread_time() - began_s
        if self._has_failed():
            return None
        allowed = Allowed(words)
        allowed.add(self.besides)
        return allowed

    def accept(self, token_id: int) -> None:
        """Go on by a token that was allowed, and does not end the answer."""
        if token_id in self.besides:
            self._num_blanks += 1
            if self._num_blanks == MAX_BLANKS:
                self.besides = frozenset()
            return
        self.besides = frozenset()
        began_s = time.thread_time()
        self._matcher.consume_token(token_id)
        self._left_s += TOKEN_S - (time.thread_time() - began_s)
        self.is_complete = not self._has_failed() and self._matcher.is_stopped()

    def _has_failed(self) -> bool:
        if self.failure is None and self._matcher.is_error():  # it looks as if it had stopped, too
            self.failure = _first_line(self._matcher.get_error())
        elif self.failure is None and self._left_s < 0:
            self.failure = "it takes too much time"
        return self.failure is not None


class Grammars:
    """Compiles grammars and computes masks, for one engine.

    The library's view of the vocabulary is made when the first grammar comes: it takes some hundred bytes a token.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._vocabulary, self._vocab_size, self._eos_ids = vocabulary, vocab_size, sorted(eos_ids)
        self._tokenizer: Any = None
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._borders: dict[str, Border] = {}

    def open(self, text: str, end: str | None = None) -> Future[AnswerGrammar]:
        """A grammar for a new answer, once it is compiled; its exception is a ``GrammarFailed``.

        Args:
            text: the grammar.
            end: what ends thoughts that may come before the answer.
        """
        return self._compiling.submit(self._opened, text, end)

    def begin_masks(self, grammars: Sequence[AnswerGrammar]) -> Future[list[Allowed | None]]:
        """What may come next in each answer, as ``AnswerGrammar.allowed``, while the caller does something else."""
        return self._masking.submit(self._masks, grammars)

    def close(self) -> None:
        """End the threads, once they have done what they do."""
        self._compiling.shutdown(wait=False, cancel_futures=True)
        self._masking.shutdown(wait=False, cancel_futures=True)

    def _opened(self, text: str, end: str | None) -> AnswerGrammar:
        matcher = self._compiled(text)
        return AnswerGrammar(matcher, None if end is None else self._border(end))

    def _border(self, end: str) -> Border:
        """Kept for ever: a model has one end marker, or few."""
        if end not in self._borders:
            self._borders[end] = border_of(end, self._vocabulary, self._vocab_size, self._eos_ids)
        return self._borders[end]

    def _compiled(self, text: str) -> Any:
        from llguidance import LLMatcher, LLTokenizer  # noqa: PLC0415

        if self._tokenizer is None:
            tokens: Any = _Tokens(self._vocabulary, self._vocab_size, self._eos_ids)
            self._tokenizer = LLTokenizer(tokens, eos_token=self._eos_ids, slices=list(SLICES))
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits())
        if matcher.is_error():
            raise GrammarFailed(_first_line(matcher.get_error()))
        return matcher

    def _masks(self, grammars: Sequence[AnswerGrammar]) -> list[Allowed | None]:
        return [grammar.allowed(self._vocab_size) for grammar in grammars]


class _Tokens:
    """A vocabulary as llguidance takes it.

    It asks for tokens of a text where a grammar forces one, which the grammars that come here forbid by ``no_forcing``.
    """

    is_tokenizer_wrapper = True

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.tokens = [vocabulary.token_bytes(i) for i in range(vocab_size)]
        self.special_token_ids = [i for i in range(vocab_size) if vocabulary.is_special(i)]
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = None

    def __call__(self, _text: str | bytes) -> list[int]:
        raise AssertionError("a grammar without no_forcing")


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0][:500]
