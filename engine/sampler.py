"""From logits to the next token.

Called by the engine once a step, with one row of logits for each sequence that wants a token. Each row is worked on
alone, in float64, in an order fixed by the vocabulary, so a token never depends on its neighbours in the batch. Random
numbers are a pure function of (seed, choice, number of tokens generated so far): a request that is preempted, resumed
or run among others draws the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.types import SamplingParams, TokenLogprobs

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Sampled:
    """The next token of one sequence, with log probabilities if they were asked for."""

    token_id: int
    logprobs: TokenLogprobs | None


class SamplerState:
    """What the next token's distribution depends on besides the logits; one per sequence."""

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int]) -> None:
        self.params = params
        self.num_generated = 0
        self._generated: Counter[int] = Counter()
        self._seen = set(prompt_ids) if params.repetition_penalty != 1.0 else set()
        self.is_plain_greedy = (
            params.temperature == 0.0
            and not params.logit_bias
            and params.repetition_penalty == 1.0
            and params.frequency_penalty == 0.0
            and params.presence_penalty == 0.0
            and params.min_tokens == 0
            and params.logprobs is None
        )

    def note(self, token_id: int) -> None:
        """Count a generated token."""
        self.num_generated += 1
        self._generated[token_id] += 1
        if self.params.repetition_penalty != 1.0:
            self._seen.add(token_id)

    def adjusted(self, logits: F64, eos_ids: Sequence[int]) -> F64:
        """Logits with bias, penalties and the ban on an early end; f64[V] to f64[V], the input left alone."""
        params = self.params
        out = logits.copy()
        for token_id, bias in params.logit_bias:
            out[token_id] += bias
        if self._seen:
            seen = np.fromiter(self._seen, dtype=np.intp)
            penalty = params.repetition_penalty
            out[seen] = np.where(out[seen] > 0, out[seen] / penalty, out[seen] * penalty)
        if self._generated and (params.frequency_penalty or params.presence_penalty):
            ids = np.fromiter(self._generated.keys(), dtype=np.intp)
            counts = np.fromiter(self._generated.values(), dtype=np.float64)
            out[ids] -= params.frequency_penalty * counts + params.presence_penalty
        if self.num_generated < params.min_tokens:
            out[[*eos_ids, *params.stop_token_ids]] = -np.inf
        return out

    def uniform(self) -> float:
        """The random number in [0, 1) of the token to come (Philox 4x64, counter-based).

        Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
        """
        key = (self.params.seed % 2**64, self.params.choice)
        bits = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=self.num_generated).random_raw()
        return float(int(bits) >> 11) * 2.0**-53


class Sampler:
    """Chooses one token a row."""

    def __init__(self, eos_ids: Iterable[int]) -> None:
        self._eos_ids = sorted(eos_ids)

    def sample(self, logits: F32, states: Sequence[SamplerState]) -> list[Sampled | None]:
        """One token for each row; None where a logit is NaN or infinite, since no answer could be trusted.

        Shapes: logits f32[B', V]; B' == len(states).
        Batch-invariant: rows do not meet.
        """
        best = logits.argmax(axis=1)
        return [self._sample_row(row, int(top), state) for row, top, state in zip(logits, best, states, strict=True)]

    def _sample_row(self, row: F32, top: int, state: SamplerState) -> Sampled | None:
        if not np.isfinite(row).all():
            return None
        if state.is_plain_greedy:
            return Sampled(top, None)
        logits = row.astype(np.float64)
        adjusted = state.adjusted(logits, self._eos_ids)
        if state.params.temperature == 0.0:
            token_id = int(adjusted.argmax())
        else:
            token_id = draw(adjusted, state.params, state.uniform())
        num_top = state.params.logprobs
        return Sampled(token_id, None if num_top is None else logprobs_of(logits, token_id, num_top))


def draw(logits: F64, params: SamplingParams, uniform: float) -> int:
    """One token from the distribution that temperature, top_k, top_p and min_p leave.

    Shapes: logits f64[V]; -inf means never. ``uniform`` in [0, 1) picks the token.
    """
    ids = highest(logits, params.top_k) if params.top_k else np.arange(len(logits))
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        weights = np.exp((logits[ids] - logits[ids].max()) / params.temperature)
    if params.top_p < 1.0:
        kept = nucleus(weights, params.top_p)
        ids, weights = ids[kept], weights[kept]
    if params.min_p > 0.0:
        kept = np.flatnonzero(weights >= params.min_p * weights.max())
        ids, weights = ids[kept], weights[kept]
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    if index == len(ids):  # rounding carried the product up to the total itself
        index = int(np.flatnonzero(weights)[-1])
    return int(ids[index])


def highest(values: F64, count: int) -> Ids:
    """Indices of the ``count`` highest values, highest first, the lower index first on a tie; all if fewer."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    if count < len(values):
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= threshold)
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def nucleus(weights: F64, top_p: float) -> Ids:
    """Indices of the smallest set of highest weights that holds at least ``top_p`` of the total, highest first."""
    goal = top_p * weights.sum()
    count = 64
    while True:  # nearly always few tokens suffice, so do not sort the whole vocabulary
        order = highest(weights, count)
        cumulative = np.cumsum(weights[order])
        if cumulative[-1] >= goal:
            return order[: int(np.searchsorted(cumulative, goal)) + 1]
        if count >= len(weights):
            return order
        count *= 16


def logprobs_of(logits: F64, token_id: int, num_top: int) -> TokenLogprobs:
    """Log probability of a token and of the ``num_top`` most likely ones under softmax(logits), f64[V]."""
    peak = logits.max()
    log_total = peak + np.log(np.exp(logits - peak).sum())
    top = highest(logits, num_top)
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(logits[token_id] - log_total),
        top=[(int(i), float(logits[i] - log_total)) for i in top],
    )
