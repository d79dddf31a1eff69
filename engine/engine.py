"""The engine: an ordinary object whose ``step`` moves every running request by one batch.

``process.py`` calls it in a loop; tests call it directly. It owns the sequences; each accepted request ends in exactly
one delta with ``finish`` set, or in ``abort``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from engine.batch import build_batch
from engine.block_pool import BlockPool
from engine.config import CacheConfig, SchedulerConfig
from engine.detokenizer import IncrementalDetokenizer, Vocabulary
from engine.errors import ContextLengthExceeded, InvalidRequest
from engine.grammar import AnswerGrammar, GrammarFailed, Grammars
from engine.sampler import Sampled, Sampler
from engine.scheduler import ScheduledSeq, Scheduler
from engine.sequence import Sequence
from engine.step_gaps import StepGaps
from engine.thinking import check_forced
from engine.types import EngineStats, ErrorInfo, FinishReason, GenerateRequest, StepOutput, TokenDelta
from kernels.ops import F32, I32, DrawParams, Scores, StepInputs

NUMERICAL_ERROR = ErrorInfo("numerical_error", "The model's output was not a number; the request cannot be answered.")

GRAMMAR_ERROR = "The answer cannot be held to its grammar any longer ({}); make the grammar simpler."

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
            if self._compiling.pop(seq, None) is None:
                self.scheduler.remove(seq)
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
        sampled = iter(self._sampled(plan))
        self._steps += 1
        now_s = self._clock()
        self._gaps.step(now_s, self._runner.native_wall_s())
        deltas = refused
        for scheduled in plan:
            scheduled.seq.num_computed += scheduled.count
            if scheduled.completes:
                deltas.append(self._emit(scheduled.seq, next(sampled), now_s))
            else:
                self.pool.commit(scheduled.seq)
        if not self.has_work:
            self._gaps.idle()
        return StepOutput(deltas, self._news(now_s, len(self.sequences) < num_open))

    def _sampled(self, plan: list[ScheduledSeq]) -> list[Sampled | None]:
        """Compute a step, and the next token of each sequence that has none left to compute."""
        ready = [scheduled.seq for scheduled in plan if scheduled.completes]
        bound = [(seq, seq.grammar) for seq in ready if seq.grammar is not None]
        masks = self._grammars.begin_masks([grammar for _, grammar in bound]) if bound else None
        self._runner.copy_blocks(self.pool.take_copies())
        scores = self._runner.forward(build_batch(plan, self.pool.block_size))
        if masks is not None:
            for (seq, _), allowed in zip(bound, masks.result(), strict=True):
                seq.sampler_state.allowed = allowed
        return self.sampler.sample(scores, [seq.sampler_state for seq in ready])

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
                refused.append(_failed(seq, ErrorInfo("invalid_grammar", str(failure), "response_format")))
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
            self._end(seq, forget=True)
            return _failed(seq, NUMERICAL_ERROR)
        if seq.grammar is not None and seq.grammar.failure is not None:
            self._end(seq)
            return _failed(seq, ErrorInfo("grammar_failed", GRAMMAR_ERROR.format(seq.grammar.failure)))
        self.pool.commit(seq)
        self._generated_tokens += 1
        text, finish = seq.append(token.token_id, now_s, self._eos_ids.__contains__)
        logprobs = None if token.logprobs is None else [token.logprobs]
        if finish is None:
            return TokenDelta(request_id, [token.token_id], text, logprobs)
        self._end(seq)
        return TokenDelta(request_id, [token.token_id], text, logprobs, finish, seq.usage())

    def _end(self, seq: Sequence, *, forget: bool = False) -> None:
        self.scheduler.remove(seq, forget=forget)
        del self.sequences[seq.request.request_id]

    def _note_admission(self, seq: Sequence, now_s: float) -> None:
        seq.admitted(now_s)
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
        if not all(0 <= token_id < vocab_size for token_id, _ in sampling.logit_bias):
            raise InvalidRequest(f"logit_bias token ids must be between 0 and {vocab_size - 1}.", param="logit_bias")
        if not all(0 <= token_id < vocab_size for token_id in sampling.stop_token_ids):
            raise InvalidRequest(f"stop_token_ids must be between 0 and {vocab_size - 1}.", param="stop_token_ids")
        longest = len(request.prompt_ids) + sampling.max_tokens
        if longest > self._max_model_len or not self.pool.fits(longest - 1):  # the last token is never fed back
            raise ContextLengthExceeded(
                f"The prompt has {len(request.prompt_ids)} tokens and the answer may have {sampling.max_tokens}, but "
                f"together they may have {self._max_model_len} at most; shorten the prompt or lower max_tokens.",
                param="prompt",
            )


def _failed(seq: Sequence, error: ErrorInfo) -> TokenDelta:
    """The last delta of a request that cannot be answered."""
    return TokenDelta(seq.request.request_id, [], "", finish=FinishReason.ERROR, usage=seq.usage(), error=error)
