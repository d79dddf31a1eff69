"""What the ranks of a model say to each other about what to do; of results they speak by ``kernels.ascend.parallel``.

Rank 0 is the engine process. Each other rank gets one ``FollowerStart`` in msgpack, answers with ``LoadProgress`` and
``FollowerReady``, or ``EngineFailed`` at any time, and from then on gets orders: a step's inputs, or blocks to copy.
Orders are plain 32-bit integers, since there is one before each step.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np

from engine.config import CacheConfig, EngineConfig
from engine.types import EngineFailed, LoadProgress
from engine.wire import BadFrame, framed
from kernels.ops import I32, AttentionBatch, Parallel, StepInputs, StepLimits

STEP, COPIES = 1, 2
_STEP_HEAD = 5


class FollowerStart(msgspec.Struct, frozen=True, array_like=True):
    """Which part of which model to load, for what steps.

    Attributes:
        config: the engine's own.
        cache: as rank 0 has sized it; limits: of a step.
    """

    config: EngineConfig
    parallel: Parallel
    cache: CacheConfig
    limits: StepLimits


class FollowerReady(msgspec.Struct, frozen=True, array_like=True, tag="follower_ready"):
    """A rank has its part of the model, and waits for orders."""


FromFollower = LoadProgress | FollowerReady | EngineFailed
Order = StepInputs | list[tuple[int, int]]


def encode_step(inputs: StepInputs) -> bytes:
    """A step's inputs, i32 arrays of the shapes that ``StepInputs`` says, as a frame."""
    (q_starts, kv_lens, table), rows = inputs.attention, inputs.logit_rows
    head = np.array([STEP, len(inputs.token_ids), len(kv_lens), table.shape[1], len(rows)], dtype="<i4")
    arrays = (head, inputs.token_ids, inputs.positions, inputs.slots, q_starts, kv_lens, table, rows)
    return framed(b"".join([np.ascontiguousarray(array, dtype="<i4").tobytes() for array in arrays]))


def encode_copies(copies: list[tuple[int, int]]) -> bytes:
    """Blocks to copy, (from, to), as a frame."""
    return framed(np.array([COPIES, *(block for pair in copies for block in pair)], dtype="<i4").tobytes())


def decode_order(payload: bytes) -> Order:
    """What a frame of the two kinds says.

    Raises:
        BadFrame: it is none of them.
    """
    if len(payload) % 4 or len(payload) < 4:
        raise BadFrame(f"an order of {len(payload)} bytes")
    words = np.frombuffer(payload, dtype="<i4").astype(np.int32)
    if words[0] == COPIES and len(words) % 2:
        return [(source, target) for source, target in words[1:].reshape(-1, 2).tolist()]
    if words[0] == STEP and len(words) >= _STEP_HEAD:
        return _step(words)
    raise BadFrame(f"an order that begins with {words[0]}, of {len(words)} words")


def _step(words: I32) -> StepInputs:
    num_tokens, num_seqs, num_blocks, num_rows = words[1:_STEP_HEAD].tolist()
    sizes = (num_tokens, num_tokens, num_tokens, num_seqs + 1, num_seqs, num_seqs * num_blocks, num_rows)
    if min(sizes) < 0 or _STEP_HEAD + sum(sizes) != len(words):
        raise BadFrame(f"a step of {len(words)} words, but its head says {_STEP_HEAD + sum(sizes)}")
    ends = np.cumsum([_STEP_HEAD, *sizes])
    parts = [words[begin:end] for begin, end in pairwise(ends)]
    token_ids, positions, slots, q_starts, kv_lens, table, rows = parts
    where = AttentionBatch(q_starts, kv_lens, table.reshape(num_seqs, num_blocks))
    return StepInputs(token_ids, positions, slots, where, rows)
