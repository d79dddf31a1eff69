"""A step as it is run: inputs uploaded at once, decoding captured as graphs, scores that stay on the device.

Graphs are for steps in which each sequence has one query, one for each bucket of so many sequences. A step with fewer
is padded out by rows that decode the token 0 in a block of the cache that belongs to no sequence: they are computed as
all rows are, and as all rows they change no other. A step that only tries drafts is made one of them: each token is the
query of a sequence of its own. What is no such step, or too long for a graph's plan, runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.ascend.attention import DevicePlan, PlannedBatch, plan_arrays
from kernels.ascend.plan import BLOCK_SIZE, SPLIT, plan_attention
from kernels.ascend.platform import Graph, Platform
from kernels.ascend.sampling import DeviceScores, best_tokens, fetched
from kernels.ops import I32, AttentionBatch, Scores, StepInputs, StepLimits

Tensor = Any
BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)
"""Sequences of a graph. From one to the next there are fewer than ``BLOCK_SIZE``, since padding has a block."""
ALIGNMENT = 128
"""Parts of an upload begin at multiples of so many words: 512 bytes, as device memory does."""


class Upload:
    """Named i32 arrays that travel to the device together."""

    def __init__(self, device: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        import torch  # noqa: PLC0415

        at, words = {}, 0
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            at[name] = slice(words, words + size)
            words += -(-size // ALIGNMENT) * ALIGNMENT
        self._host = torch.zeros(words, dtype=torch.int32)
        self._device = torch.zeros(words, dtype=torch.int32, device=device)
        array = self._host.numpy()
        self.host: dict[str, I32] = {name: array[part].reshape(shapes[name]) for name, part in at.items()}
        self.device = {name: self._device[part].reshape(shapes[name]) for name, part in at.items()}

    def send(self) -> None:
        """Copy the host's arrays to the device's."""
        self._device.copy_(self._host)


def uploaded(device: Any, inputs: StepInputs) -> StepInputs:
    """A step's NumPy arrays on the device."""
    q_starts, kv_lens, block_table = inputs.attention
    arrays = {name: getattr(inputs, name) for name in ("token_ids", "positions", "slots", "logit_rows")}
    arrays["block_table"] = block_table
    upload = Upload(device, {name: array.shape for name, array in arrays.items()})
    for name, array in arrays.items():
        upload.host[name][:] = array
    upload.send()
    at = upload.device
    batch = PlannedBatch(q_starts, kv_lens, at["block_table"])
    return StepInputs(at["token_ids"], at["positions"], at["slots"], batch, at["logit_rows"])


def one_query_each(inputs: StepInputs) -> StepInputs:
    """A step whose every token's logits are wanted, with each token as the one query of a sequence.

    All keys and values of a layer are written before any is read, so a token finds those of the step before it.
    """
    q_starts, _, block_table = inputs.attention
    ends = np.arange(len(inputs.positions) + 1, dtype=np.int32)
    tables = np.repeat(block_table, np.diff(q_starts), axis=0)
    return inputs._replace(attention=AttentionBatch(ends, inputs.positions + np.int32(1), tables))


def most_captured(limits: StepLimits) -> int:
    """Sequences of the largest graph."""
    return min(limits.max_rows, limits.max_tokens, BUCKETS[-1])


class GraphBatch(PlannedBatch):
    """The attention of a bucket: plans of a fixed size, in memory that each step fills anew."""

    def __init__(self, *_: Tensor) -> None:
        super().__init__()
        self.decodes = True
        rows, blocks = self.block_table.shape
        self._most_tasks = rows * -(-blocks * BLOCK_SIZE // SPLIT)
        self._by_window: dict[int, Upload] = {}
        self._lens = np.ones(rows, dtype=np.int32)

    def plans(self, queries: int, window: int, most_tasks: int) -> list[DevicePlan]:
        """The one launch, for a window that the model has; memory for it is taken as it is first asked for."""
        del queries
        if window not in self._by_window:
            tasks = min(self._most_tasks, most_tasks)
            shapes = {"tiles": (6, len(self._lens)), "tasks": (3, tasks), "counts": (2,)}
            self._by_window[window] = Upload(self.block_table.device, shapes)
            self._send(window)
        return [DevicePlan(**self._by_window[window].device, rows=slice(0, len(self._lens)))]

    def fill(self, kv_lens: I32) -> bool:
        """Send the plans of rows with one query each, i32[rows]; False if one is too large for its memory."""
        self._lens = kv_lens
        return all(map(self._send, self._by_window))

    def _send(self, window: int) -> bool:
        q_starts, upload = np.arange(len(self._lens) + 1, dtype=np.int32), self._by_window[window]
        tiles, tasks, counts = plan_arrays(plan_attention(q_starts, self._lens, window=window))
        if tasks.shape[1] > upload.host["tasks"].shape[1]:
            return False
        upload.host["tiles"][:] = tiles
        upload.host["tasks"][:, : tasks.shape[1]] = tasks
        upload.host["counts"][:] = counts
        upload.send()
        return True


@dataclass(frozen=True)
class Bucket:
    """A captured step of so many sequences, its inputs, and the best tokens i32[rows] that it finds."""

    rows: int
    inputs: Upload
    attention: GraphBatch
    graph: Graph
    best: Tensor


class RecordedStep:
    """The forward pass: captured for decoding, eager for all else. For one thread.

    Batch-invariant, as the operations are.
    """

    def __init__(
        self,
        platform: Platform,
        forward: Callable[[StepInputs], Tensor],
        limits: StepLimits,
        padding_block: int,
        *,
        eager: bool,
    ) -> None:
        """Capture a graph for each bucket, the largest first, so that the others find its memory.

        A sequence has at least one block of its own, so there are no more of them than the cache has blocks.
        """
        import torch  # noqa: PLC0415

        self._torch, self._platform, self._forward = torch, platform, forward
        self._limits, self._padding_block = limits, padding_block
        most = min(most_captured(limits), padding_block)
        sizes = [] if eager else [most, *(size for size in reversed(BUCKETS) if size < most)]
        self._pool: Any = None
        self._logits: Tensor = None
        with torch.inference_mode():
            self._buckets = [self._captured(size) for size in sizes][::-1]

    def __call__(self, inputs: StepInputs) -> Scores:
        """Run a step on NumPy arrays.

        Raises:
            ValueError: it is larger than what was recorded for.
        """
        num_tokens, num_seqs = len(inputs.token_ids), len(inputs.attention.kv_lens)
        if num_tokens > self._limits.max_tokens or max(num_seqs, len(inputs.logit_rows)) > self._limits.max_rows:
            raise ValueError(f"a step of {num_tokens} tokens and {num_seqs} sequences is larger than {self._limits}")
        if len(inputs.logit_rows) == num_tokens > num_seqs:
            inputs = one_query_each(inputs)
        with self._torch.inference_mode():
            bucket = self._filled(inputs)
            if bucket is None:
                logits = self._forward(uploaded(self._platform.device, inputs))
                if not len(inputs.logit_rows):  # in the middle of prompts: nothing is waited for
                    return DeviceScores(logits, np.zeros(0, dtype=np.int32))
                return DeviceScores(logits, fetched(best_tokens(self._torch, logits)))
            bucket.graph.replay()
            rows = inputs.logit_rows
            return DeviceScores(self._logits, fetched(bucket.best)[rows], rows)

    def _filled(self, inputs: StepInputs) -> Bucket | None:
        """The smallest graph for a step, with the step's inputs in its memory; None if there is none."""
        attention = inputs.attention
        num_seqs, num_blocks = attention.block_table.shape
        bucket = next((bucket for bucket in self._buckets if bucket.rows >= num_seqs), None)
        if bucket is None or not (np.diff(attention.q_starts) == 1).all():
            return None
        host, rows = bucket.inputs.host, bucket.rows
        padding = np.arange(rows - num_seqs)
        if num_blocks > host["block_table"].shape[1]:
            return None
        if not bucket.attention.fill(np.concatenate([attention.kv_lens, np.ones(len(padding), dtype=np.int32)])):
            return None
        for name, pads in (("token_ids", 0), ("positions", 0), ("slots", self._padding_block * BLOCK_SIZE + padding)):
            host[name][:num_seqs] = getattr(inputs, name)
            host[name][num_seqs:] = pads
        host["block_table"][:num_seqs, :num_blocks] = attention.block_table
        host["block_table"][num_seqs:, 0] = self._padding_block
        bucket.inputs.send()
        return bucket

    def _captured(self, rows: int) -> Bucket:
        """Run a step of padding alone, which takes what memory it needs, and capture another."""
        torch, device = self._torch, self._platform.device
        shapes = dict.fromkeys(("token_ids", "positions", "slots", "logit_rows"), (rows,))
        blocks = -(-self._limits.max_model_len // BLOCK_SIZE)
        inputs = Upload(device, {**shapes, "block_table": (rows, blocks)})
        inputs.host["slots"][:] = (self._padding_block + 1) * BLOCK_SIZE - 1 - np.arange(rows)  # all empty yet
        inputs.host["logit_rows"][:] = np.arange(rows)
        inputs.host["block_table"][:] = self._padding_block
        inputs.send()
        attention = GraphBatch(None, None, inputs.device["block_table"])
        graph = self._platform.new_graph()
        logits = self._forward(self._graph_inputs(inputs, attention))
        if self._logits is None:
            self._logits = logits
        self._platform.synchronize()
        with self._platform.capture(graph, self._pool):
            logits = self._forward(self._graph_inputs(inputs, attention))
            best = best_tokens(torch, logits)
            self._logits[:rows].copy_(logits)
        del logits  # or no other graph can use its memory
        self._pool = graph.pool() if self._pool is None else self._pool
        return Bucket(rows, inputs, attention, graph, best)

    def _graph_inputs(self, inputs: Upload, attention: GraphBatch) -> StepInputs:
        at = inputs.device
        positions = at["positions"].view(-1)  # a new tensor, so that what is looked up by it is looked up anew
        return StepInputs(at["token_ids"], positions, at["slots"], attention, at["logit_rows"])
