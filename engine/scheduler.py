"""Which sequences run in the next step, and how many tokens of each.

Called by the engine, in one thread. The scheduler never estimates what the block pool will do: it allocates, and what
it got is the plan. Sequences are served in ``Sequence.order`` (priority, then arrival). The first in order can take
every other one's blocks, and a request that could not run alone in the pool is never accepted, so it always ends.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from engine.block_pool import BlockPool
from engine.config import SchedulerConfig
from engine.errors import ConfigError
from engine.sequence import Sequence


@dataclass(frozen=True)
class ScheduledSeq:
    """Run ``seq.token_ids[start : start + count]``; ``start == seq.num_computed``, and the blocks are there."""

    seq: Sequence
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether this computes the last token known, so that its logits give the next one."""
        return self.start + self.count == len(self.seq.token_ids)


class Scheduler:
    """Continuous batching with chunked prefill under a token budget.

    Running sequences that have one token to compute go first, then those in the middle of their prompt, then waiting
    ones. When a running sequence finds no block, the last in order gives up all of its own and waits again; its tokens
    are computed anew (or found in the prefix cache) when its turn comes, which cannot change what they are.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        if config.max_num_batched_tokens < config.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens ({config.max_num_batched_tokens}) must be at least --max-num-seqs "
                f"({config.max_num_seqs}): each running sequence needs one token a step."
            )
        self._config = config
        self._pool = pool
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.num_preemptions = 0

    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""
        insort(self.waiting, seq, key=_order)

    def remove(self, seq: Sequence, *, forget: bool = False) -> None:
        """Drop a sequence that has ended, in whatever state it is, and release its blocks."""
        (self.running if seq in self.running else self.waiting).remove(seq)
        self._pool.release(seq, forget=forget)

    def schedule(self) -> list[ScheduledSeq]:
        """Plan one step; an empty plan means that there is nothing to do."""
        plan: dict[Sequence, ScheduledSeq] = {}
        budget = self._config.max_num_batched_tokens
        preemptions_before = self.num_preemptions
        for seq in sorted(self.running, key=lambda seq: (seq.num_remaining > 1, seq.order)):
            count = min(seq.num_remaining, budget)
            if count == 0 or seq not in self.running:
                continue
            if self._make_room(seq, seq.num_computed + count, plan):
                plan[seq] = ScheduledSeq(seq, seq.num_computed, count)
                budget = self._config.max_num_batched_tokens - sum(s.count for s in plan.values())
        if self.num_preemptions == preemptions_before:  # what was just preempted must not come back at once
            self._admit(plan, budget)
        return list(plan.values())

    def _admit(self, plan: dict[Sequence, ScheduledSeq], budget: int) -> None:
        """Start waiting sequences in order, until one finds no room: none behind it may overtake it."""
        while self.waiting and budget > 0 and len(self.running) < self._config.max_num_seqs:
            seq = self.waiting[0]
            if not self._pool.admit(seq):
                return
            self.waiting.pop(0)
            self.running.append(seq)
            count = min(seq.num_remaining, budget)
            plan[seq] = ScheduledSeq(seq, seq.num_computed, count)
            budget -= count

    def _make_room(self, seq: Sequence, num_tokens: int, plan: dict[Sequence, ScheduledSeq]) -> bool:
        """Blocks for ``seq``, taken from the last in order if need be; False if that is ``seq`` itself."""
        while not self._pool.grow(seq, num_tokens):
            victim = max(self.running, key=_order)
            plan.pop(victim, None)
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


def _order(seq: Sequence) -> tuple[int, int]:
    return seq.order
