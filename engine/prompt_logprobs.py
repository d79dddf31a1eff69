"""Log probabilities of a prompt's tokens, each after those before it.

Owned by a ``Sequence`` whose request asks for them. The logits behind one token tell how likely the next one was, so
the first token has none, and the last one's logits are the answer's. They are computed with the prompt, as many at a
time as a step has rows of logits to spare, and once: after a preemption only those are computed that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.sampler import logprobs_of
from engine.types import TokenLogprobs
from kernels.ops import Scores


class PromptLogprobs:
    """How far a prompt has been scored.

    Attributes:
        num_known: tokens before the one that is scored next; the logits behind them have been used.
        is_sound: none of the logits was a NaN or an infinity.
    """

    def __init__(self, prompt_ids: Sequence[int], num_top: int) -> None:
        """With so many of the likeliest tokens beside each."""
        self._prompt_ids = prompt_ids
        self._num_top = num_top
        self.num_known = 0
        self.is_sound = True

    @property
    def num_left(self) -> int:
        """Tokens that are still to be scored."""
        return len(self._prompt_ids) - 1 - self.num_known

    def take(self, scores: Scores, rows: range) -> list[TokenLogprobs]:
        """The next tokens' log probabilities, by the rows of a step that lie behind the tokens before them.

        None of them if one of the logits is no number.
        """
        tokens = self._prompt_ids[self.num_known + 1 : self.num_known + 1 + len(rows)]
        self.num_known += len(rows)
        if (scores.best[rows.start : rows.stop] < 0).any():
            self.is_sound = False
            return []
        return [logprobs_of(row, token, self._num_top) for row, token in zip(scores.rows(rows), tokens, strict=True)]
