"""One request's state inside the engine.

Owned by ``Engine``; the scheduler moves ``num_computed``, the block pool the ``block_*`` lists. Invariants:
``0 <= num_computed <= len(token_ids)``, and the blocks hold at least ``num_computed`` tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from engine.detokenizer import IncrementalDetokenizer
from engine.grammar import AnswerGrammar
from engine.prediction import Prediction
from engine.prompt_logprobs import PromptLogprobs
from engine.sampler import SamplerState
from engine.thinking import Thinking
from engine.types import CacheMiss, FinishReason, GenerateRequest, Usage


class Sequence:
    """A prompt with the tokens generated so far.

    There is no prefill and no decode phase: ``num_computed`` of ``len(token_ids)`` tokens have their keys and values in
    the cache, and a step computes some more. When all are computed, the last one's logits give the next token.

    Attributes:
        order: (priority, arrival number); the scheduler serves the smallest first and preempts the largest.
        block_ids: the sequence's blocks, 32-bit integers, in order of position.
        block_hashes: the chained hashes of its full blocks, as far as they were needed.
        num_committed: how many of its blocks are offered to the prefix cache.
        grammar: how far its answer has come in a grammar that holds for the next token; None if none does.
        thinking: how far its answer has come in its thoughts; None if it can have none.
        prediction: how far its answer has come in what it was foretold to be, or None.
        prompt_logprobs: how far its prompt has been scored, or None.
        wants_answer: whether a token is wanted, and not the prompt alone.
        cached_tokens: prompt tokens found in the prefix cache at the first admission.
        cache_miss: why they were no more.
        admitted_at_s: first admission, monotonic seconds, as ``first_token_at_s`` and ``last_token_at_s``.
    """

    __slots__ = (
        "_waiting_grammar",
        "admitted_at_s",
        "block_hashes",
        "block_ids",
        "cache_miss",
        "cached_tokens",
        "detokenizer",
        "first_token_at_s",
        "grammar",
        "last_token_at_s",
        "num_committed",
        "num_computed",
        "num_preemptions",
        "num_prompt",
        "order",
        "prediction",
        "prompt_logprobs",
        "request",
        "sampler_state",
        "thinking",
        "token_ids",
        "wants_answer",
    )

    def __init__(self, request: GenerateRequest, arrival: int, detokenizer: IncrementalDetokenizer) -> None:
        self.request = request
        self.order = (request.priority, arrival)
        self.token_ids = list(request.prompt_ids)
        self.num_prompt = len(self.token_ids)
        self.num_computed = 0
        self.num_committed = 0
        self.block_ids = array("i")
        self.block_hashes: list[bytes] = []
        self.sampler_state = SamplerState(request.sampling, request.prompt_ids)
        self.detokenizer = detokenizer
        self.grammar: AnswerGrammar | None = None
        self.thinking = Thinking(request.thoughts) if request.thoughts else None
        self._waiting_grammar: AnswerGrammar | None = None
        if self.thinking is not None:
            self.sampler_state.allowed = self.thinking.allowed(None)
        self.prediction = Prediction(request.prediction_ids) if request.prediction_ids else None
        self.prompt_logprobs: PromptLogprobs | None = None
        if request.prompt_logprobs is not None:
            self.prompt_logprobs = PromptLogprobs(request.prompt_ids, request.prompt_logprobs)
        self.wants_answer = request.sampling.max_tokens > 0
        self.cached_tokens = 0
        self.cache_miss: CacheMiss | None = None
        self.num_preemptions = 0
        self.admitted_at_s: float | None = None
        self.first_token_at_s: float | None = None
        self.last_token_at_s = 0.0

    @property
    def num_remaining(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def is_in_prompt(self) -> bool:
        """Whether some of the prompt is still to be computed, for the first time or again."""
        return self.num_computed < self.num_prompt

    @property
    def is_sound(self) -> bool:
        """Whether the logits behind its prompt's tokens were numbers, as far as they were wanted."""
        return self.prompt_logprobs is None or self.prompt_logprobs.is_sound

    @property
    def num_findable(self) -> int:
        """Tokens whose keys and values will do, since no logits of theirs are wanted: the last one's always are."""
        scored = self.prompt_logprobs
        return scored.num_known if scored is not None and scored.num_left else len(self.token_ids) - 1

    @property
    def grammar_failure(self) -> str | None:
        """Why its answer can be held to its grammar no longer."""
        return None if self.grammar is None else self.grammar.failure

    def admitted(self, now_s: float, cache_miss: CacheMiss | None) -> None:
        """Note the first admission; later ones follow a preemption."""
        self.admitted_at_s = now_s
        self.cached_tokens = self.num_computed
        self.cache_miss = cache_miss

    def drafts(self, most: int) -> tuple[int, ...]:
        """Up to so many tokens that may come next, by the request's prediction; none that the answer may not have."""
        if self.prediction is None:
            return ()
        left = self.request.sampling.max_tokens - self.num_generated
        return self.prediction.drafts()[: max(0, min(most, left - 1))]  # the last token is not fed back

    def note_tried(self, count: int) -> None:
        """So many of ``drafts`` are tried, before the answer goes on."""
        if self.prediction is not None:
            self.prediction.note_tried(count)

    def hold_to(self, grammar: AnswerGrammar) -> None:
        """Hold the answer to a grammar: all of it, or what comes after its thoughts.

        Where thoughts are the model's to decide, it does so with the first token: one that is the start marker, or one
        of the grammar's.
        """
        thinking, thoughts = self.thinking, self.request.thoughts
        if thinking is None or thoughts is None:
            self.grammar = grammar
        elif thinking.must_think:
            self._waiting_grammar = grammar
            self.sampler_state.allowed = thinking.allowed(grammar.border)
        else:
            self.grammar = grammar
            starts = (i for i in thoughts.start_ids[:1] if self.detokenizer.bytes_of(i) == thoughts.start.encode())
            grammar.besides = frozenset(starts)

    def append(self, token_id: int, now_s: float, is_end: Callable[[int], bool]) -> tuple[str, FinishReason | None]:
        """Take the next token: the text it makes showable, and whether the answer ends here.

        Args:
            token_id: the sampled token.
            now_s: monotonic seconds.
            is_end: whether the model ends an answer with this token.
        """
        self.token_ids.append(token_id)
        self.sampler_state.note(token_id)
        if self.prediction is not None:
            self.prediction.note(token_id)
        if self.first_token_at_s is None:
            self.first_token_at_s = now_s
        self.last_token_at_s = now_s
        sampling = self.request.sampling
        is_forced = self.thinking is not None and self.thinking.is_forcing
        if not is_forced and (token_id in sampling.stop_token_ids or (not sampling.ignore_eos and is_end(token_id))):
            return self.detokenizer.flush(), FinishReason.STOP
        text = self.detokenizer.push(token_id, is_forced=is_forced)
        if self.thinking is not None and not self.thinking.is_over:
            is_answer = self._think(self.thinking, token_id)
        else:
            is_answer = True
        if self.detokenizer.stopped is not None:
            return text, FinishReason.STOP
        if self.grammar is not None and is_answer:
            self.grammar.accept(token_id)
            if self.grammar.is_complete:
                return text + self.detokenizer.flush(), FinishReason.STOP
        if self.num_generated >= sampling.max_tokens:
            return text + self.detokenizer.flush(), FinishReason.LENGTH
        return text, None

    def _think(self, thinking: Thinking, token_id: int) -> bool:
        """Go on by a token that may be a thought; returns whether it is the answer's instead."""
        grammar = self.grammar or self._waiting_grammar
        if self.grammar is not None and token_id not in self.grammar.besides:
            thinking.decline()
            return True
        thinking.take(self.detokenizer.bytes_of(token_id))
        if grammar is not None and not thinking.must_think:
            grammar.follow_thoughts()
            self.grammar, self._waiting_grammar = grammar, None
        else:
            self.grammar, self._waiting_grammar = None, grammar
        self.sampler_state.allowed = thinking.allowed(grammar.border if grammar else None)
        return False

    def usage(self) -> Usage:
        """What the request cost; complete once it has ended."""
        arrived = self.request.arrived_at_s
        admitted = self.admitted_at_s if self.admitted_at_s is not None else arrived
        first = self.first_token_at_s if self.first_token_at_s is not None else admitted
        return Usage(
            prompt_tokens=self.num_prompt,
            completion_tokens=self.num_generated,
            cached_tokens=self.cached_tokens,
            queue_s=max(0.0, admitted - arrived),
            prefill_s=first - admitted,
            decode_s=max(0.0, self.last_token_at_s - first),
            preemptions=self.num_preemptions,
            reasoning_tokens=self.thinking.num_tokens if self.thinking else 0,
            cache_miss=self.cache_miss,
            accepted_tokens=self.prediction.num_accepted if self.prediction else 0,
            rejected_tokens=self.prediction.num_rejected if self.prediction else 0,
        )
