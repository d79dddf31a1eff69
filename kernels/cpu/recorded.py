"""Programs, run: the threads that do it, and a forward pass that is one program.

When a step begins, Python's code and data are out of the caches: the weights have just been there. So a recorded step
has the native struct of its inputs ready and copies arrays to where that points, which touches less than to ask for
their addresses, and what it gives back are the views that it gave the step before.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cpu.abi import Batch, Library
from kernels.cpu.lowering import Program
from kernels.cpu.memory import address
from kernels.ops import BackendUnavailable, HostScores, Scores, StepInputs, StepLimits

I32 = np.dtype(np.int32)


class Runner:
    """The library and its threads: for one call at a time, in the process that made it; others raise a ValueError.

    Attributes:
        wall_s: seconds that ``run`` and ``call`` have taken so far.

    Raises:
        BackendUnavailable: so many threads cannot be started.
    """

    def __init__(self, library: Library, threads: int) -> None:
        pool = library.pool_new(threads)
        if pool is None:
            raise BackendUnavailable(f"--threads: {threads} threads cannot be started.")
        self.threads = threads
        self.wall_s = 0.0
        self._library = library
        self._pool = pool
        weakref.finalize(self, library.pool_free, pool)

    def cpu_s(self) -> float:
        """CPU seconds of all threads in programs so far."""
        return 1e-9 * self._library.pool_cpu(self._pool)

    def rested(self) -> int:
        """Programs that the caller has run alone, since the other threads did not get a processor."""
        return self._library.pool_rested(self._pool)

    def run(self, program: Program, batch: Batch) -> None:
        """Run a program to its end.

        Raises:
            ValueError: the batch leads out of what the program reads; nothing has run.
        """
        self._run(program.address, program.num_calls, batch)

    def call(self, instructions: npt.NDArray[Any], batch: Batch) -> None:
        """Run instructions that are not part of a program. Raises as ``run`` does."""
        self._run(address(instructions), len(instructions), batch)

    def _run(self, instructions: int, count: int, batch: Batch) -> None:
        began_s = time.monotonic()
        self._library.run(self._pool, instructions, count, ctypes.byref(batch))
        self.wall_s += time.monotonic() - began_s

    def profile(self, instructions: npt.NDArray[Any], batch: Batch, nanoseconds: npt.NDArray[np.int64]) -> None:
        """Run instructions, adding to ``nanoseconds`` i64[n] what each of them took. Raises as ``run`` does."""
        count = len(instructions)
        self._library.profile(self._pool, address(instructions), count, ctypes.byref(batch), address(nanoseconds))


class RecordedStep:
    """A forward pass as one program, for one thread: a call writes its inputs where the last one's lie.

    Batch-invariant, as the operations are.

    Raises:
        ValueError: it does not end in logits.
    """

    def __init__(self, program: Program, runner: Runner, limits: StepLimits) -> None:
        if program.logits is None:
            raise ValueError("a forward pass ends in logits")
        self.program = program
        self.runner = runner
        self._logits = program.logits
        self._scores = HostScores(self._logits, program.best)
        self._limits = limits
        tokens, rows = limits.max_tokens, limits.max_rows
        sizes = (tokens, tokens, tokens, rows + 1, rows, rows, 0)
        arrays = [np.zeros(size, dtype=np.int32) for size in sizes]
        self._token_ids, self._positions, self._slots, self._q_starts, self._kv_lens, self._rows, self._table = arrays
        self._batch = Batch(0, 0, 0, 0, *map(address, (*arrays[:5], self._table, self._rows)))

    def __call__(self, inputs: StepInputs) -> Scores:
        """Run it; the scores are views that hold until the next step.

        Raises:
            ValueError: the step is larger than what was recorded for, or an input is not i32 of its shape, or leads
                out of the embedding, the cache, the rotations or the step.
        """
        num_rows = len(inputs.logit_rows)
        self.runner.run(self.program, self.batch(inputs))
        if num_rows != len(self._scores.best):
            self._scores = HostScores(self._logits[:num_rows], self.program.best[:num_rows])
        return self._scores

    def batch(self, inputs: StepInputs) -> Batch:
        """The struct of a step's inputs, which holds a copy of them until the next one is asked for.

        Raises:
            ValueError: the step is larger than what was recorded for, or an input is not i32 of its shape.
        """
        token_ids, positions, slots, (q_starts, kv_lens, table), rows = inputs
        num_tokens, num_seqs, num_rows = len(token_ids), len(kv_lens), len(rows)
        if num_tokens > self._limits.max_tokens or max(num_seqs, num_rows) > self._limits.max_rows:
            raise ValueError(f"a step of {num_tokens} tokens and {num_rows} rows is larger than {self._limits}")
        for name, array, shape in (
            ("token_ids", token_ids, (num_tokens,)), ("positions", positions, (num_tokens,)),
            ("slots", slots, (num_tokens,)), ("q_starts", q_starts, (num_seqs + 1,)), ("kv_lens", kv_lens, (num_seqs,)),
            ("block_table", table, (num_seqs, *table.shape[1:2])), ("logit_rows", rows, (num_rows,)),
        ):  # fmt: skip
            if array.shape != shape or array.dtype != I32:
                raise ValueError(f"{name} must be int32{list(shape)}, but is {array.dtype}{list(array.shape)}")
        batch = self._batch
        if table.size > len(self._table):
            self._table = np.zeros(2 * table.size, dtype=np.int32)
            batch.block_table = address(self._table)
        self._token_ids[:num_tokens] = token_ids
        self._positions[:num_tokens] = positions
        self._slots[:num_tokens] = slots
        self._q_starts[: num_seqs + 1] = q_starts
        self._kv_lens[:num_seqs] = kv_lens
        self._rows[:num_rows] = rows
        self._table[: table.size] = table.reshape(-1)
        batch.num_tokens, batch.num_seqs, batch.num_rows = num_tokens, num_seqs, num_rows
        batch.max_blocks = table.shape[1]
        return batch
