"""A model without weights, exact, that finds every mistake in slots, blocks and schedules.

A KV slot stores its token id. The next token is a hash of the whole context, read back through the block table: a wrong
slot, a block that two sequences share by mistake, a stale or lost one, all change the answer, and ``expected_tokens``
knows the right one from the request alone.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from engine.config import CacheConfig
from kernels.ops import Scores, StepInputs
from kernels.reference import sampling

VOCAB_SIZE = 256
_NEVER_WRITTEN = -7


class EchoRunner:
    """Implements ``engine.Runner``."""

    vocab_size = VOCAB_SIZE
    draw = staticmethod(sampling.draw)
    native_cpu_s = float
    native_wall_s = float
    native_rested = int

    def __init__(self, cache: CacheConfig) -> None:
        self._block_size = cache.block_size
        self._slots = np.full((cache.num_blocks, cache.block_size), _NEVER_WRITTEN, dtype=np.int32)
        self.num_batches = self.most_tokens = self.most_rows = 0

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        for source, target in copies:
            self._slots[target] = self._slots[source]

    def forward(self, batch: StepInputs) -> Scores:
        self.num_batches += 1
        self.most_tokens = max(self.most_tokens, len(batch.token_ids))
        self.most_rows = max(self.most_rows, len(batch.logit_rows))
        where = batch.attention
        assert len(set(batch.slots.tolist())) == len(batch.slots), "two tokens of a batch share a slot"
        self._slots.reshape(-1)[batch.slots] = batch.token_ids
        owners = np.searchsorted(where.q_starts, batch.logit_rows, side="right") - 1
        logits = np.zeros((len(batch.logit_rows), VOCAB_SIZE), dtype=np.float32)
        for row, (owner, query) in enumerate(zip(owners, batch.logit_rows, strict=True)):
            length = int(batch.positions[query]) + 1
            blocks = where.block_table[owner, : -(-length // self._block_size)]
            assert (blocks >= 0).all(), "a token's context reaches past its blocks"
            context = self._slots[blocks].reshape(-1)[:length]
            logits[row] = logits_after(context)
        return sampling.scores_of(logits)


def logits_after(context: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """f32[VOCAB_SIZE]: one clear favourite, the rest falling away from it."""
    favourite = zlib.crc32(context.tobytes()) % VOCAB_SIZE
    return _LOGITS[favourite]


_DISTANCE = (np.arange(VOCAB_SIZE)[None, :] - np.arange(VOCAB_SIZE)[:, None]) % VOCAB_SIZE
_LOGITS = -(_DISTANCE / np.float32(3)).astype(np.float32)
_LOGITS.flags.writeable = False


def expected_tokens(prompt_ids: list[int], count: int) -> list[int]:
    """What a greedy request must answer."""
    context = list(prompt_ids)
    for _ in range(count):
        context.append(int(logits_after(np.array(context, dtype=np.int32)).argmax()))
    return context[len(prompt_ids) :]
