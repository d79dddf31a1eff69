"""A recorded step of few sequences, whose long contexts several threads share out by segments of 512 tokens."""

from __future__ import annotations

import numpy as np
import pytest

from engine.config import CacheConfig
from engine.model_runner import ModelRunner
from engine.models.registry import model_class
from engine.weights.open import open_checkpoint
from kernels.cpu.library import load_library
from kernels.cpu.recorded import Runner
from kernels.ops import AttentionBatch, BackendOptions, StepInputs, StepLimits
from kernels.resolve import BACKENDS
from kernels.spec import f32_tensor
from tests.support.backends import DEVICES
from tests.support.tiny_models import GOLDEN

pytestmark = pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")

CONTEXTS = (700, 1023, 513, 40, 600, 1000, 520, 900)
BLOCK_SIZE, MAX_BLOCKS = 16, 64
TABLE = np.arange(len(CONTEXTS) * MAX_BLOCKS, dtype=np.int32).reshape(len(CONTEXTS), MAX_BLOCKS)


def new_tokens(sequences, counts):
    """The last tokens of these sequences, so many of each."""
    positions = [
        np.arange(CONTEXTS[s] - n, CONTEXTS[s], dtype=np.int32) for s, n in zip(sequences, counts, strict=True)
    ]
    slots = [TABLE[s, p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for s, p in zip(sequences, positions, strict=True)]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ids = np.concatenate([(7 * p + 31 * s) % 256 for s, p in zip(sequences, positions, strict=True)]).astype(np.int32)
    kv_lens = np.array([CONTEXTS[s] for s in sequences], dtype=np.int32)
    batch = AttentionBatch(starts, kv_lens, np.ascontiguousarray(TABLE[list(sequences)]))
    return StepInputs(ids, np.concatenate(positions), np.concatenate(slots), batch, starts[1:] - 1)


class Recorded:
    """One recorded step of the model, whose every run gets threads that have not waited for each other yet.

    A pool whose threads wait for a busy machine leaves work to the caller alone, and then nothing is shared out; the
    first run of a new pool is by all.
    """

    def __init__(self, threads, kind):
        ops = BACKENDS["cpu"](BackendOptions(threads=threads, kv_cache_dtype=kind))
        checkpoint = open_checkpoint(GOLDEN / "tiny-qwen3-moe")
        config = checkpoint.config
        assert not any(config.windows)
        model = model_class(config.architecture)(config, checkpoint, ops, 1024, lambda _: None)
        self.pieces = config.num_kv_heads
        self._threads = threads
        self._runner = ModelRunner(model, ops, CacheConfig(TABLE.size, BLOCK_SIZE), StepLimits(1024, 16, 1024))
        for sequence, count in enumerate(CONTEXTS):
            self.run(new_tokens([sequence], [count]))

    def run(self, inputs):
        step = self._runner._step
        step.runner = Runner(load_library(), self._threads)
        return step(inputs).logits.copy()


def attend_recorded(threads, heads, kv_heads, kv_lens, max_model_len, window=None):
    """One token of each sequence through a recorded step of attention alone: its result, and whether it was shared out.

    All blocks of a sequence are one block, so that no context is too long for a test.
    """
    rng = np.random.default_rng(4)
    ops = BACKENDS["cpu"](BackendOptions(threads=threads, kv_cache_dtype="i8"))
    num_seqs, dim = len(kv_lens), 128
    cache = ops.memory.alloc_cache(1, BLOCK_SIZE, kv_heads, dim)
    shape = (BLOCK_SIZE, kv_heads, dim)
    k, v = (ops.memory.upload(rng.standard_normal(shape).astype(np.float32)) for _ in "kv")
    ops.write_kv(cache, k, v, np.arange(BLOCK_SIZE, dtype=np.int32))
    table = ops.prepare_linear([f32_tensor(rng.standard_normal((num_seqs, heads * dim)))], None)
    scores = ops.prepare_linear([f32_tensor(rng.standard_normal((16, heads * dim)))], None)

    def forward(inputs):
        q = ops.embed(inputs.token_ids, table).reshape(-1, heads, dim)
        out = ops.paged_attention(q, cache, inputs.attention, dim**-0.5, window)
        return ops.logits(out.reshape(-1, heads * dim), inputs.logit_rows, scores)

    step = ops.record(forward, StepLimits(num_seqs, num_seqs, max_model_len))
    blocks = np.zeros((num_seqs, -(-max(kv_lens) // BLOCK_SIZE)), dtype=np.int32)
    ids, lens = np.arange(num_seqs, dtype=np.int32), np.array(kv_lens, dtype=np.int32)
    batch = AttentionBatch(np.arange(num_seqs + 1, dtype=np.int32), lens, blocks)
    logits = step(StepInputs(ids, lens - 1, ids, batch, ids)).logits.copy()
    return logits, bool(step.program.partial.any())


@pytest.mark.parametrize(
    ("threads", "heads", "kv_heads", "kv_lens", "window"),
    [
        pytest.param(3, 32, 8, [100_000], None, id="long"),
        pytest.param(3, 8, 2, [3000] * 5, None, id="as many sequences as are shared out"),
        pytest.param(4, 6, 3, [9000, 513, 8999], 1300, id="windows"),
    ],
)
def test_whatever_a_step_was_recorded_for_is_shared_out(threads, heads, kv_heads, kv_lens, window):
    together, is_shared = attend_recorded(threads, heads, kv_heads, kv_lens, max(kv_lens), window)
    alone, alone_is_shared = attend_recorded(1, heads, kv_heads, kv_lens, max(kv_lens), window)
    assert (is_shared, alone_is_shared) == (True, False)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("kind", ["f32", "i16"])
@pytest.mark.parametrize("threads", [3, 4])
def test_more_sequences_after_fewer_are_what_they_are_on_one_thread(threads, kind):
    """Pieces (sequences times heads of keys) cross 8 and then more, as many as these threads share out at most."""
    shared, alone = Recorded(threads, kind), Recorded(1, kind)
    most = (4 * threads - 1) // shared.pieces
    assert most * shared.pieces > 8
    for count in (2, most, 1, most - 1, 3, most, most + 1, 2):
        inputs = new_tokens(range(count), [1] * count)
        np.testing.assert_array_equal(shared.run(inputs), alone.run(inputs))
