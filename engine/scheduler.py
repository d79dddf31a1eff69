"""Which sequences run in the next step, and how many tokens of each.

Called by the engine, in one thread. The scheduler never estimates what the block pool will do: it allocates, and what
it got is the plan. Sequences are served in ``Sequence.order`` (priority, then arrival). The first in order can take
every other one's blocks, and a request that could not run alone in the pool is never accepted, so it always ends.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from engine.block_pool import BlockPool
from engine.config import SchedulerConfig
from engine.errors import ConfigError
from engine.sequence import Sequence

_order = attrgetter("order")

ENOUGH_PER_WAITING = 8
"""A step whose prompts have so many tokens for each that waits, and ``enough_prompt_tokens``, begins no further one.

More would not make the step more efficient, and each prompt in a step waits for all of it: one after the other, half of
them have their first token in half the time, and the last one no later. Where many wait, several go together: one step
is a small part of the time they wait, and those that already decode, a token of each in every step, hold them up less
often.
"""

MOST_ROWS = 64
"""How many tokens of a prompt are scored in a step, at most: each takes 0.1 ms of a processor where the vocabulary has
49,152 tokens, and 0.3 ms where it has 151,936, and all who decode wait for them."""
LEFT_SHARE = 4
"""Prompts that are scored leave one in so many rows of logits to sequences that may begin in the same step."""


@dataclass(slots=True)
class ScheduledSeq:
    """Run ``seq.token_ids[start : start + count]``; ``start == seq.num_computed``, and the blocks are there.

    Attributes:
        completes: this computes the last token known, so its logits give the next one.
        num_scored: the logits behind so many of these tokens, before the last if it ``completes``, score the prompt.
        drafts: run these behind it, as if they were known; the logits of each tell whether the next one is right.
    """

    seq: Sequence
    start: int
    count: int
    completes: bool
    num_scored: int = 0
    drafts: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of logits that it takes, which are of its last tokens and its drafts."""
        return self.num_scored + self.completes + len(self.drafts)

    @property
    def is_prefill(self) -> bool:
        """Whether this is more than the one token of a decoding sequence."""
        return self.count > 1 or not self.completes


class _Plan:
    """A step in the making.

    Attributes:
        budget: tokens that may still be given to sequences.
        rows: of logits, that may still be given.
        prompt_tokens: of those given, to sequences in their prompt.
    """

    def __init__(self, budget: int, rows: int) -> None:
        self.budget = budget
        self.rows = rows
        self.prompt_tokens = 0
        self.scheduled: dict[Sequence, ScheduledSeq] = {}

    def add(self, added: ScheduledSeq) -> None:
        """Run a sequence that has room for it."""
        self.scheduled[added.seq] = added
        self.budget -= added.count
        self.rows -= added.num_scored + added.completes  # drafts come last
        if added.is_prefill:
            self.prompt_tokens += added.count

    def drop(self, seq: Sequence) -> None:
        """Do not run the sequence after all."""
        dropped = self.scheduled.pop(seq, None)
        if dropped is not None:
            self.budget += dropped.count
            self.rows += dropped.num_rows
            self.prompt_tokens -= dropped.count if dropped.is_prefill else 0


class Scheduler:
    """Continuous batching with chunked prefill under a token budget.

    Running sequences that have one token to compute go first, then those in the middle of their prompt, then waiting
    ones, and then drafts. A prompt that is scored leaves a row of logits to each other sequence that runs, and some to
    those that wait.

    When a running sequence finds no block, the last in order gives up all of its own and waits again; its tokens are
    computed anew (or found in the prefix cache) when its turn comes, which cannot change what they are.

    Raises:
        ConfigError: a step may have fewer tokens than sequences.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        if config.max_num_batched_tokens < config.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens ({config.max_num_batched_tokens}) must be at least --max-num-seqs "
                f"({config.max_num_seqs}): each running sequence needs one token a step."
            )
        self._config = config
        self._max_rows = config.max_rows or config.max_num_seqs
        self._pool = pool
        self.running: list[Sequence] = []  # in order, as those that wait are
        self.waiting: list[Sequence] = []
        self.num_preemptions = 0

    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""
        insort(self.waiting, seq, key=_order)

    def remove(self, seq: Sequence, *, forget: bool = False) -> None:
        """Drop a sequence that has ended, in whatever state it is, and release its blocks.

        Raises:
            ValueError: it neither runs nor waits.
        """
        if seq in self.running:
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
        self._pool.release(seq, forget=forget)

    def schedule(self) -> list[ScheduledSeq]:
        """Plan one step; an empty plan means that there is nothing to do."""
        plan = _Plan(self._config.max_num_batched_tokens, self._max_rows)
        preemptions_before = self.num_preemptions
        decoding: list[Sequence] = []
        in_prompt: list[Sequence] = []
        for seq in self.running:
            (decoding if seq.num_remaining == 1 else in_prompt).append(seq)
        kept = len(self.running) + self._rows_for_waiting()
        for seq in decoding + in_prompt:
            kept -= 1
            if plan.budget == 0:
                break
            if self.num_preemptions > preemptions_before and seq not in self.running:
                continue
            next_ = _next_tokens(seq, plan.budget, plan.rows - kept)
            num_tokens = next_.start + next_.count
            if self._pool.grow(seq, num_tokens) or self._make_room(seq, num_tokens, plan):
                plan.add(next_)
        if self.num_preemptions == preemptions_before:  # what was just preempted must not come back at once
            self._admit(plan)
        scheduled = list(plan.scheduled.values())
        self._add_drafts(scheduled, plan)
        return scheduled

    def _admit(self, plan: _Plan) -> None:
        """Start waiting sequences in order, until one finds no room: none behind it may overtake it.

        One whose prompt another of its group is computing waits for that, and lets others by: it will find it computed,
        but for its last token, which others need not wait for.
        """
        if not self.waiting or len(self.running) >= self._config.max_num_seqs:
            return
        enough = max(self._config.enough_prompt_tokens, ENOUGH_PER_WAITING * len(self.waiting))
        computing = {seq.request.group for seq in self.running if seq.is_in_prompt}
        for seq in self.waiting.copy():
            is_full = len(self.running) >= self._config.max_num_seqs
            if is_full or plan.budget == 0 or plan.rows == 0 or plan.prompt_tokens >= enough:
                return
            group = seq.request.group
            if group and group in computing:
                continue
            if not self._pool.admit(seq):
                return
            self.waiting.remove(seq)
            insort(self.running, seq, key=_order)
            plan.add(_next_tokens(seq, plan.budget, plan.rows - self._rows_for_waiting()))
            if seq.num_remaining > 1:
                computing.add(group)

    def _rows_for_waiting(self) -> int:
        """Rows of logits that prompts which are scored leave for sequences that may begin in this step.

        Not for all that wait: they may find no blocks, and the longer prompts take, the more wait.
        """
        places = self._config.max_num_seqs - len(self.running)
        return min(places, len(self.waiting), self._max_rows // LEFT_SHARE)

    def _add_drafts(self, scheduled: list[ScheduledSeq], plan: _Plan) -> None:
        """Let sequences try what their predictions have next, in what is left: nobody's tokens, rows or blocks."""
        budget = min(plan.budget, plan.rows)
        hopeful = [each for each in scheduled if each.seq.prediction is not None and each.completes]
        for each in hopeful:
            length = len(each.seq.token_ids)
            each.drafts = each.seq.drafts(min(budget, self._pool.room_of(each.seq) - length))
            self._pool.grow(each.seq, length + len(each.drafts))
            budget -= len(each.drafts)

    def _make_room(self, seq: Sequence, num_tokens: int, plan: _Plan) -> bool:
        """Blocks for ``seq``, taken from the last in order if need be; False if that is ``seq`` itself."""
        while not self._pool.grow(seq, num_tokens):
            victim = self.running[-1]
            plan.drop(victim)
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._pool.release(seq)
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self.add(seq)


def _next_tokens(seq: Sequence, budget: int, rows: int) -> ScheduledSeq:
    """As many of the sequence's tokens as there are, or as the budget has, or as can be scored.

    Args:
        seq: has tokens to compute.
        budget: tokens it may have.
        rows: of logits, that it may have if it wants several; one it can always have.
    """
    remaining, scored = seq.num_remaining, seq.prompt_logprobs
    count = min(remaining, budget)
    if scored is None or not scored.num_left:
        return ScheduledSeq(seq, seq.num_computed, count, count == remaining)
    known = scored.num_known - seq.num_computed
    count = min(count, known + max(1, min(rows, MOST_ROWS)))
    completes = count == remaining
    return ScheduledSeq(seq, seq.num_computed, count, completes, max(0, count - known - completes))
