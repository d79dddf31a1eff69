"""From scores to the next token.

Called by the engine once a step, with one row of scores for each sequence that wants a token. Each row is worked on
alone, so a token never depends on its neighbours in the batch. Random numbers are a pure function of (seed, choice,
number of tokens generated so far): a request that is preempted, resumed or run among others draws the same ones.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.types import SamplingParams, TokenLogprobs
from kernels.ops import F32, F64, I32, MOST_CANDIDATES, Candidates, DrawParams, Scores
from kernels.reference.sampling import draw_among, highest

Ids = npt.NDArray[np.intp]
Draw = Callable[[F32, DrawParams], I32]
"""A backend's ``draw``: f32[n,V] -> i32[n]."""
MAX_F32 = float(np.finfo(np.float32).max)
MAX_I32 = (1 << 31) - 1
UNIFORMS = 64
"""How many random numbers are made at once: a generator costs about 20 us, however many it makes."""


class Restriction(Protocol):
    """Which tokens may come next, as a grammar or thoughts have it."""

    def __contains__(self, token_id: int, /) -> bool:
        """Whether a token may."""

    def restrict(self, row: F32) -> None:
        """Make the logits of all others -inf, f32[V], in place."""


class Sampled(NamedTuple):
    """The next token of one sequence, with log probabilities if they were asked for."""

    token_id: int
    logprobs: TokenLogprobs | None


class _Tally:
    """How often each token has occurred, in the order in which they first did."""

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._places: dict[int, int] = {}
        self._ids = array("q")
        self._counts = array("d")
        for token_id in token_ids:
            self.note(token_id)

    def note(self, token_id: int) -> None:
        """Count one more."""
        place = self._places.setdefault(token_id, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token_id)
            self._counts.append(0.0)
        self._counts[place] += 1.0

    def ids(self) -> Ids:
        """The tokens that have occurred."""
        return np.array(self._ids)

    def counts(self) -> F64:
        """How often, in the same order."""
        return np.array(self._counts)


class SamplerState:
    """What the next token's distribution depends on besides the logits; one per sequence.

    Attributes:
        is_plain_greedy: the highest logit that is allowed is the next token, and nothing else is asked for.
        allowed: the tokens that the next one may be; None for all.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int]) -> None:
        self.params = params
        self.allowed: Restriction | None = None
        self.num_generated = 0
        self._seen = _Tally(prompt_ids if params.repetition_penalty != 1.0 else ())
        self._generated = _Tally(())
        self._bias = _summed(params.logit_bias)
        self._uniforms: list[float] = []
        self._uniforms_start = -UNIFORMS
        self._has_penalties = (
            params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        )
        self.is_plain_greedy = (
            params.temperature == 0.0
            and not self._has_penalties
            and not params.logit_bias
            and params.min_tokens == 0
            and params.logprobs is None
        )

    @property
    def adjusts(self) -> bool:
        """Whether the next token's logits are changed before one is chosen."""
        return (
            self._has_penalties
            or bool(self.params.logit_bias)
            or self.num_generated < self.params.min_tokens
            or self.allowed is not None
        )

    def is_decided_by(self, best: int) -> bool:
        """Whether the token with the highest logit is the next one, and nothing else is asked for."""
        return self.is_plain_greedy and (self.allowed is None or best in self.allowed)

    @property
    def needs_row(self) -> bool:
        """Whether the next token takes a whole row of logits, however it is chosen."""
        return self.params.logprobs is not None or self.adjusts

    def note(self, token_id: int) -> None:
        """Count a generated token."""
        self.num_generated += 1
        if self._has_penalties:
            self._generated.note(token_id)
            self._seen.note(token_id)

    def adjust(self, row: F32, eos_ids: Sequence[int]) -> None:
        """Add bias and penalties to a row of logits f32[V], in place and within float32; ban what may not come.

        An end that comes too early may come if nothing else is allowed.
        """
        params = self.params
        if params.logit_bias:
            ids, bias = self._bias
            _put(row, ids, row[ids] + bias)
        if params.repetition_penalty != 1.0:
            ids, penalty = self._seen.ids(), params.repetition_penalty
            logits = row[ids].astype(np.float64)
            _put(row, ids, np.where(logits > 0, logits / penalty, logits * penalty))
        if params.frequency_penalty or params.presence_penalty:
            ids = self._generated.ids()
            _put(row, ids, row[ids] - (params.frequency_penalty * self._generated.counts() + params.presence_penalty))
        if self.allowed is not None:
            self.allowed.restrict(row)
        if self.num_generated < params.min_tokens:
            ends = [*eos_ids, *params.stop_token_ids]
            logits_of_ends, row[ends] = row[ends], -np.inf
            if self.allowed is not None and row.max() == -np.inf:
                row[ends] = logits_of_ends

    def uniform(self) -> float:
        """The random number in [0, 1) of the token to come (Philox 4x64, counter-based).

        The counter is the number of tokens generated so far, and of the four words that it gives, the first is used.
        Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
        """
        place = self.num_generated - self._uniforms_start
        if not 0 <= place < UNIFORMS:
            place, self._uniforms_start = 0, self.num_generated
            key = np.array((self.params.seed % 2**64, self.params.choice), dtype=np.uint64)
            words = np.random.Philox(key=key, counter=self.num_generated).random_raw(4 * UNIFORMS)[::4]
            self._uniforms = ((words >> np.uint64(11)) * 2.0**-53).tolist()
        return self._uniforms[place]


class PickedScores(NamedTuple):
    """``Scores`` of some of a step's rows: ``places`` are their numbers there, rising."""

    scores: Scores
    places: list[int]

    @property
    def best(self) -> I32:
        """See ``Scores.best``."""
        return self.scores.best[self.places]

    @property
    def highest(self) -> Callable[[Sequence[int], int], Candidates] | None:
        """See ``Scores.highest``."""
        highest = self.scores.highest
        return None if highest is None else lambda rows, count: highest([self.places[row] for row in rows], count)

    def rows(self, indices: Sequence[int]) -> F32:
        """See ``Scores.rows``."""
        return self.scores.rows([self.places[row] for row in indices])


class Sampler:
    """Chooses one token a row."""

    def __init__(self, eos_ids: Iterable[int], draw: Draw) -> None:
        self._eos_ids = sorted(eos_ids)
        self._draw = draw

    def sample(self, scores: Scores, states: Sequence[SamplerState]) -> list[Sampled | None]:
        """One token for each row; None where a logit is NaN or infinite, since no answer could be trusted.

        Asks for those rows of logits alone that it needs: a greedy one only with logprobs or if it is changed first; a
        drawn one whole unless top_k says how few of it count. Without top_k all of a row's logits are added up, which
        a device would do in an order of its own, that may depend on the batch.

        Shapes: R == len(states). Overwrites rows that ``scores`` gives.
        Batch-invariant: rows do not meet.
        """
        tokens = scores.best.tolist()
        special = [r for r, state in enumerate(states) if tokens[r] >= 0 and not state.is_decided_by(tokens[r])]
        raw = self._choose(tokens, scores, special, states) if special else {}
        out = [None if token < 0 else Sampled(token, None) for token in tokens]
        for r, logits in raw.items():
            out[r] = Sampled(tokens[r], logprobs_of(logits, tokens[r], states[r].params.logprobs or 0))
        return out

    def _choose(
        self, tokens: list[int], scores: Scores, rows: Sequence[int], states: Sequence[SamplerState]
    ) -> dict[int, F32]:
        """Set ``tokens`` of those rows that are not for the highest logit to decide; all that draw do so together.

        Gives the model's own logits f32[V] of rows that want logprobs.
        """
        raw: dict[int, F32] = {}
        drawing = [r for r in rows if states[r].params.temperature > 0.0]
        greedy = [r for r in rows if states[r].params.temperature == 0.0 and states[r].needs_row]
        if scores.highest is not None:
            drawing = self._draw_few(tokens, scores.highest, drawing, states)
        if drawing:
            logits = self._adjusted(scores, drawing, states, raw)
            drawn = self._draw(logits, _draw_params([states[r] for r in drawing]))
            for r, token in zip(drawing, drawn.tolist(), strict=True):
                tokens[r] = token
        if greedy:
            for r, row in zip(greedy, self._adjusted(scores, greedy, states, raw), strict=True):
                if states[r].adjusts:
                    tokens[r] = int(row.argmax())
        return raw

    def _draw_few(
        self,
        tokens: list[int],
        highest: Callable[[Sequence[int], int], Candidates],
        rows: Sequence[int],
        states: Sequence[SamplerState],
    ) -> list[int]:
        """Set ``tokens`` of those rows whose highest logits decide; gives the others, which are drawn from whole."""
        few = [r for r in rows if 0 < states[r].params.top_k < MOST_CANDIDATES and not states[r].needs_row]
        if not few:
            return list(rows)
        params = _draw_params([states[r] for r in few])
        drawn = draw_among(highest(few, int(params.top_k.max()) + 1), params, self._draw).tolist()
        decided = {r: token for r, token in zip(few, drawn, strict=True) if token >= 0}
        for r, token in decided.items():
            tokens[r] = token
        return [r for r in rows if r not in decided]

    def _adjusted(
        self, scores: Scores, rows: Sequence[int], states: Sequence[SamplerState], raw: dict[int, F32]
    ) -> F32:
        """Logits f32[n,V] of rows as tokens are chosen from them; ``raw`` keeps what is wanted of them as they were."""
        logits = scores.rows(rows)
        for i, r in enumerate(rows):
            state = states[r]
            adjusts = state.adjusts
            if state.params.logprobs is not None:
                raw[r] = logits[i].copy() if adjusts or state.params.temperature > 0.0 else logits[i]
            if adjusts:
                state.adjust(logits[i], self._eos_ids)
        return logits


def _summed(logit_bias: Iterable[tuple[int, float]]) -> tuple[Ids, F64]:
    """Token ids, each once, and the bias of each."""
    total: dict[int, float] = {}
    for token_id, bias in logit_bias:
        total[token_id] = total.get(token_id, 0.0) + bias
    return np.array(list(total), dtype=np.intp), np.array(list(total.values()), dtype=np.float64)


def _put(row: F32, ids: Ids, logits: F64) -> None:
    """Store logits in a row; what float32 cannot hold becomes the last number that it can."""
    row[ids] = np.maximum(np.minimum(logits, MAX_F32), -MAX_F32)


def _draw_params(states: Sequence[SamplerState]) -> DrawParams:
    """The parameters of rows that draw, and their random numbers."""
    params = [state.params for state in states]
    return DrawParams(
        temperature=np.array([p.temperature for p in params], dtype=np.float64),
        top_k=np.array([min(p.top_k, MAX_I32) for p in params], dtype=np.int32),
        top_p=np.array([p.top_p for p in params], dtype=np.float64),
        min_p=np.array([p.min_p for p in params], dtype=np.float64),
        uniform=np.array([state.uniform() for state in states], dtype=np.float64),
    )


def logprobs_of(logits: F32, token_id: int, num_top: int) -> TokenLogprobs:
    """Natural log probability of a token and of the ``num_top`` likeliest under softmax(logits), f32[V], in float64."""
    peak = float(logits.max())
    shares = logits.astype(np.float64)
    shares -= peak
    log_total = peak + float(np.log(np.exp(shares, out=shares).sum()))
    top = highest(logits, num_top).tolist()
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(logits[token_id]) - log_total,
        top=[(i, float(logits[i]) - log_total) for i in top],
    )
