"""The engine: an ordinary object whose ``step`` moves every running request by one batch.

``process.py`` calls it in a loop; tests call it directly. It owns the sequences; each accepted request ends in exactly
one delta with ``finish`` set, or in ``abort``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Protocol

from engine.batch import build_batch, sampled_rows
from engine.block_pool import BlockPool
from engine.config import CacheConfig, SchedulerConfig
from engine.detokenizer import IncrementalDetokenizer, Vocabulary
from engine.errors import ContextLengthExceeded, InvalidRequest
from engine.grammar import Allowed, AnswerGrammar, GrammarFailed, Grammars
from engine.sampler import PickedScores, Sampled, Sampler
from engine.scheduler import ScheduledSeq, Scheduler
from engine.sequence import Sequence
from engine.step_gaps import StepGaps
from engine.thinking import check_forced
from engine.types import EngineStats, ErrorInfo, FinishReason, GenerateRequest, StepOutput, TokenDelta
from kernels.ops import F32, I32, DrawParams, Scores, StepInputs

NUMERICAL_ERROR = ErrorInfo("numerical_error", "The model's output was not a number; the request cannot be answered.")

GRAMMAR_ERROR = "The answer cannot be held to its grammar ({}); make response_format, or the tools' schemas, simpler."

IDLE_WAIT_S = 0.01
"""How long a step waits for a grammar to be compiled, if there is nothing else to do."""
STATS_EVERY_S = 0.25
"""How old the statistics may be that the server has; those after the end of a request it has with that end."""


class Runner(Protocol):
    """What turns a batch into scores of the next tokens, and draws from them."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits; token ids lie below it."""

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy blocks of the cache, (from, to), one after the other."""

    def forward(self, batch: StepInputs) -> Scores:
        """Write the batch's keys and values, and score the next tokens of ``batch.logit_rows``.

        Batch-invariant. The scores hold until the next step.
        """

    def draw(self, logits: F32, params: DrawParams) -> I32:
        """One token a row, at random: f32[n,V] -> i32[n]. Batch-invariant; the logits may be overwritten."""

    def native_cpu_s(self) -> float:
        """CPU seconds that native code has spent in steps so far."""

    def native_wall_s(self) -> float:
        """Seconds that calls of native code have taken so far, by ``time.monotonic``; 0 without native code."""

    def native_rested(self) -> int:
        """Native calls so far that one of several threads made alone."""


class Engine:
    """Schedule, run, sample, emit.

    Args:
        eos_ids: tokens that end an answer.
        clock: monotonic seconds, the clock of ``GenerateRequest.arrived_at_s``.

    Raises:
        ConfigError: a step may have fewer tokens than sequences.
    """

    def __init__(
        self,
        runner: Runner,
        vocabulary: Vocabulary,
        eos_ids: tuple[int, ...],
        scheduler_config: SchedulerConfig,
        cache_config: CacheConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._vocabulary = vocabulary
        self._eos_ids = frozenset(eos_ids)
        self._max_model_len = scheduler_config.max_model_len
        self._clock = clock
        self._arrivals = 0
        self._prompt_tokens = self._generated_tokens = self._prefix_queried = self._prefix_hits = self._steps = 0
        self._gaps = StepGaps()
        self._next_stats_s = 0.0
        self.pool = BlockPool(cache_config)
        self.scheduler = Scheduler(scheduler_config, self.pool)
        self.sampler = Sampler(eos_ids, runner.draw)
        self.sequences: dict[str, Sequence] = {}
        self._grammars = Grammars(vocabulary, runner.vocab_size, eos_ids)
        self._compiling: dict[Sequence, Future[AnswerGrammar]] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.sequences)

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it can never be answered (ContextLengthExceeded: for its length); nothing has changed.
        """
        self._check(request)
        detokenizer = IncrementalDetokenizer(self._vocabulary, request.sampling.stop, request.shown_ids)
        if request.thoughts is not None:
            check_forced(request.thoughts, detokenizer.bytes_of)
        seq = Sequence(request, self._arrivals, detokenizer)
        self._arrivals += 1
        self._prompt_tokens += seq.num_prompt
        self.sequences[request.request_id] = seq
        if request.grammar:
            end = request.thoughts.end if request.thoughts else None
            self._compiling[seq] = self._grammars.open(request.grammar, end)
        else:
            self.scheduler.add(seq)

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""
        seq = self.sequences.pop(request_id, None)
        if seq is not None:
            compiling = self._compiling.pop(seq, None)
            if compiling is None:
                self.scheduler.remove(seq)
            else:
                compiling.cancel()
            self._next_stats_s = 0.0  # the next step says what has become free

    def step(self) -> StepOutput:
        """Compute one batch, and say what it added to each request.

        Batch-invariant: a request's tokens do not depend on what else runs. A NaN or an infinity among its logits ends
        the request they are of with FinishReason.ERROR, and no other.
        """
        refused = self._take_compiled() if self._compiling else []
        plan = self.scheduler.schedule()
        if not plan:
            self._gaps.idle()
            return StepOutput(refused, self.stats())
        now_s, num_open = self._clock(), len(self.sequences)
        for scheduled in plan:
            if scheduled.seq.admitted_at_s is None:
                self._note_admission(scheduled.seq, now_s)
        scores = self._scores(plan)
        drafted = [scheduled for scheduled in plan if scheduled.drafts]
        sampled = self._sampled(scores, plan, drafted)
        self._steps += 1
        now_s = self._clock()
        self._gaps.step(now_s, self._runner.native_wall_s())
        deltas = refused + (_score_prompts(scores, plan, sampled) if len(scores.best) > len(sampled) else [])
        tokens, emitted = iter(sampled), []
        for scheduled in plan:
            scheduled.seq.num_computed += scheduled.count
            if scheduled.completes:
                emitted.append(self._emit(scheduled.seq, next(tokens), now_s))
            elif scheduled.num_scored and not scheduled.seq.is_sound:
                deltas.append(self._break_off(scheduled.seq))
            else:
                self.pool.commit(scheduled.seq)
        deltas += emitted
        if drafted:
            self._take_drafts(scores, _tried(plan, deltas), deltas, now_s)
        if not self.has_work:
            self._gaps.idle()
        return StepOutput(deltas, self._news(now_s, len(self.sequences) < num_open))

    def _scores(self, plan: list[ScheduledSeq]) -> Scores:
        """Compute a step, and meanwhile what grammars allow to come next."""
        bound = [each.seq for each in plan if each.completes and each.seq.grammar is not None]
        masks = self._begin_masks(bound)
        self._runner.copy_blocks(self.pool.take_copies())
        scores = self._runner.forward(build_batch(plan, self.pool.block_size))
        _set_masks(bound, masks)
        return scores

    def _sampled(self, scores: Scores, plan: list[ScheduledSeq], drafted: list[ScheduledSeq]) -> list[Sampled | None]:
        """The next token of each sequence that has none left to compute; some may have drafts behind it."""
        states = [each.seq.sampler_state for each in plan if each.completes]
        for each in drafted:
            each.seq.note_tried(len(each.drafts))
        if len(scores.best) > len(states):
            scores = PickedScores(scores, [row for row, _ in sampled_rows(plan)])
        return self.sampler.sample(scores, states)

    def _take_drafts(self, scores: Scores, tried: list[_Tried], deltas: list[TokenDelta], now_s: float) -> None:
        """Go on with each sequence for as long as its drafts are the tokens that come, one token of each at a time.

        What fails is left to the next step, which computes the sequence's last token again, and says so.
        """
        going = [each for each in tried if each.goes_on(deltas)]
        while going:
            bound = [each.seq for each in going if each.seq.grammar is not None]
            _set_masks(bound, self._begin_masks(bound))
            for each in going:
                each.num_right += 1
            rows = PickedScores(scores, [each.row + each.num_right for each in going])
            sampled = self.sampler.sample(rows, [each.seq.sampler_state for each in going])
            came = [
                (each, token)
                for each, token in zip(going, sampled, strict=True)
                if token is not None and each.seq.grammar_failure is None
            ]
            for each, token in came:
                each.seq.num_computed += 1
                deltas[each.place] = _joined(deltas[each.place], self._emit(each.seq, token, now_s))
            going = [each for each, _ in came if each.goes_on(deltas)]
        for each in tried:
            self.pool.shrink(each.seq)

    def _begin_masks(self, bound: list[Sequence]) -> Future[list[Allowed | None]] | None:
        """Compute what the grammars of sequences, which all have one, allow to come next."""
        grammars = [seq.grammar for seq in bound if seq.grammar is not None]
        return self._grammars.begin_masks(grammars) if grammars else None

    def _take_compiled(self) -> list[TokenDelta]:
        """Queue the requests whose grammars are compiled, and end those whose are refused."""
        idle = len(self._compiling) == len(self.sequences)
        done, _ = wait(self._compiling.values(), timeout=IDLE_WAIT_S if idle else 0, return_when=FIRST_COMPLETED)
        refused = []
        for seq, opened in [pair for pair in self._compiling.items() if pair[1] in done]:
            del self._compiling[seq]
            failure = opened.exception()
            if failure is None:
                seq.hold_to(opened.result())
                self.scheduler.add(seq)
            elif isinstance(failure, GrammarFailed):
                del self.sequences[seq.request.request_id]
                refused.append(_failed(seq, ErrorInfo("invalid_grammar", GRAMMAR_ERROR.format(failure))))
            else:
                raise failure
        return refused

    def _news(self, now_s: float, ended: bool) -> EngineStats | None:
        """The statistics, if a request has ended or the last ones are old."""
        if not ended and now_s < self._next_stats_s:
            return None
        self._next_stats_s = now_s + STATS_EVERY_S
        return self.stats()

    def stats(self) -> EngineStats:
        """State now, and counters since the engine was made."""
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            blocks_free=self.pool.num_free,
            blocks_cached=self.pool.num_cached,
            blocks_used=self.pool.num_used,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            prefix_queried_tokens=self._prefix_queried,
            prefix_hit_tokens=self._prefix_hits,
            preemptions=self.scheduler.num_preemptions,
            steps=self._steps,
            native_cpu_s=self._runner.native_cpu_s(),
            native_wall_s=self._runner.native_wall_s(),
            gaps_s=self._gaps.total_s,
            gap_counts=tuple(self._gaps.counts),
            native_rested_calls=self._runner.native_rested(),
        )

    def _emit(self, seq: Sequence, token: Sampled | None, now_s: float) -> TokenDelta:
        """Append the token to its sequence; end the sequence if that ends it."""
        request_id = seq.request.request_id
        if token is None:
            return self._break_off(seq)
        if seq.grammar is not None and seq.grammar.failure is not None:
            self._end(seq)
            return _failed(seq, ErrorInfo("grammar_failed", GRAMMAR_ERROR.format(seq.grammar.failure)))
        self.pool.commit(seq)
        if not seq.wants_answer:
            seq.first_token_at_s = seq.last_token_at_s = now_s
            self._end(seq)
            return TokenDelta(request_id, [], "", finish=FinishReason.LENGTH, usage=seq.usage())
        self._generated_tokens += 1
        text, finish = seq.append(token.token_id, now_s, self._eos_ids.__contains__)
        logprobs = None if token.logprobs is None else [token.logprobs]
        if finish is None:
            return TokenDelta(request_id, [token.token_id], text, logprobs)
        self._end(seq)
        return TokenDelta(request_id, [token.token_id], text, logprobs, finish, seq.usage())

    def _break_off(self, seq: Sequence) -> TokenDelta:
        """End a sequence whose logits are no numbers; nobody finds what it has computed."""
        self._end(seq, forget=True)
        return _failed(seq, NUMERICAL_ERROR)

    def _end(self, seq: Sequence, *, forget: bool = False) -> None:
        self.scheduler.remove(seq, forget=forget)
        del self.sequences[seq.request.request_id]

    def _note_admission(self, seq: Sequence, now_s: float) -> None:
        seq.admitted(now_s, self.pool.why_missed(seq))
        self._prefix_queried += seq.num_prompt
        self._prefix_hits += seq.cached_tokens

    def _check(self, request: GenerateRequest) -> None:
        """Refuse what can never be answered."""
        vocab_size, sampling = self._runner.vocab_size, request.sampling
        if request.request_id in self.sequences:
            raise InvalidRequest("a request with this id is open already.", param="request_id")
        if not request.prompt_ids:
            raise InvalidRequest("the prompt has no tokens; send at least one.", param="prompt")
        if not all(0 <= token_id < vocab_size for token_id in request.prompt_ids):
            raise InvalidRequest(f"prompt token ids must be between 0 and {vocab_size - 1}.", param="prompt")
        if not all(0 <= token_id < vocab_size for token_id in request.prediction_ids):
            raise InvalidRequest(f"prediction token ids must be between 0 and {vocab_size - 1}.", param="prediction")
        if not all(0 <= token_id < vocab_size for token_id, _ in sampling.logit_bias):
            raise InvalidRequest(f"logit_bias token ids must be between 0 and {vocab_size - 1}.", param="logit_bias")
        if not all(0 <= token_id < vocab_size for token_id in sampling.stop_token_ids):
            raise InvalidRequest(f"stop_token_ids must be between 0 and {vocab_size - 1}.", param="stop_token_ids")
        longest = len(request.prompt_ids) + sampling.max_tokens
        most_fed = max(longest - 1, len(request.prompt_ids))  # an answer's last token is never fed back
        if longest > self._max_model_len or not self.pool.fits(most_fed):
            raise ContextLengthExceeded(
                f"The prompt has {len(request.prompt_ids)} tokens and the answer may have {sampling.max_tokens}, but "
                f"together they may have {self._max_model_len} at most; shorten the prompt or lower max_tokens.",
                param="prompt",
            )


@dataclass(slots=True)
class _Tried:
    """Drafts of a sequence in a step.

    Attributes:
        row: of the logits behind its last token; those behind its drafts come next.
        place: of its delta among the step's.
        num_right: drafts that were the tokens that came.
    """

    seq: Sequence
    drafts: tuple[int, ...]
    row: int
    place: int
    num_right: int = 0

    def goes_on(self, deltas: list[TokenDelta]) -> bool:
        """Whether the token that came last is the next draft, and does not end the answer."""
        delta = deltas[self.place]
        return (
            delta.finish is None
            and self.num_right < len(self.drafts)
            and delta.token_ids[-1] == self.drafts[self.num_right]
        )


def _score_prompts(scores: Scores, plan: list[ScheduledSeq], sampled: list[Sampled | None]) -> list[TokenDelta]:
    """Log probabilities of prompts' tokens, where they are asked for, by the logits of a step.

    ``sampled`` are the tokens of those in the plan that ``completes``: none where a prompt's logits are no numbers.
    """
    deltas, start, place = [], 0, 0
    for each in plan:
        if each.num_scored and each.seq.prompt_logprobs is not None:
            found = each.seq.prompt_logprobs.take(scores, range(start, start + each.num_scored))
            if found:
                deltas.append(TokenDelta(each.seq.request.request_id, [], "", prompt_logprobs=found))
            elif each.completes:
                sampled[place] = None
        start, place = start + each.num_rows, place + each.completes
    return deltas


def _tried(plan: list[ScheduledSeq], deltas: list[TokenDelta]) -> list[_Tried]:
    """The drafts of a step, whose last deltas are those of its sequences with none left to compute, one each."""
    rows = sampled_rows(plan)
    first = len(deltas) - len(rows)
    return [_Tried(each.seq, each.drafts, row, place) for place, (row, each) in enumerate(rows, first) if each.drafts]


def _set_masks(bound: list[Sequence], masks: Future[list[Allowed | None]] | None) -> None:
    """What may come next in each of these sequences, once that is computed."""
    if masks is not None:
        for seq, allowed in zip(bound, masks.result(), strict=True):
            seq.sampler_state.allowed = allowed


def _joined(first: TokenDelta, second: TokenDelta) -> TokenDelta:
    """Two deltas of a request as one; only the second may be its last."""
    logprobs = None if first.logprobs is None else [*first.logprobs, *(second.logprobs or ())]
    token_ids, text = first.token_ids + second.token_ids, first.text + second.text
    return TokenDelta(first.request_id, token_ids, text, logprobs, second.finish, second.usage, second.error)


def _failed(seq: Sequence, error: ErrorInfo) -> TokenDelta:
    """The last delta of a request that cannot be answered."""
    return TokenDelta(seq.request.request_id, [], "", finish=FinishReason.ERROR, usage=seq.usage(), error=error)
