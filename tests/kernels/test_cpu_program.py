"""The native backend's programs: recorded, fused and shared out among threads, a step gives the same bits."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import numpy as np
import pytest

from engine.config import QUANTIZATIONS, CacheConfig
from engine.errors import UnsupportedModel
from engine.model_runner import ModelRunner
from engine.models.registry import model_class
from engine.weights.open import open_checkpoint
from engine.weights.quantised import quantised
from kernels.cpu import graph as g
from kernels.cpu.abi import MAX_COLUMNS, Op
from kernels.formats import WeightFormat
from kernels.ops import AttentionBatch, BackendOptions, BackendUnavailable, DrawParams, NoKernel, StepInputs, StepLimits
from kernels.resolve import BACKENDS
from kernels.spec import deviation, f32_tensor, random_tensor
from tests.support.backends import DEVICES
from tests.support.tiny_checkpoints import tiny_model
from tests.support.tiny_models import GOLDEN, TINY_MODELS

pytestmark = pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")

NUM_BLOCKS, BLOCK_SIZE = 16, 16
LENGTHS = ((70, 70), (33, 1), (20, 7))
"""(tokens in the cache, of which in this step)."""


def inputs_of(lengths):
    table = np.arange(NUM_BLOCKS, dtype=np.int32)[: 3 * 5].reshape(3, 5)[: len(lengths)]
    rng = np.random.default_rng(1)
    new = [count for _, count in lengths]
    positions = np.concatenate([np.arange(total - count, total) for total, count in lengths]).astype(np.int32)
    owners = np.repeat(np.arange(len(lengths)), new)
    starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
    return StepInputs(
        rng.integers(0, 256, len(positions)).astype(np.int32),
        positions,
        (table[owners, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE).astype(np.int32),
        AttentionBatch(starts, np.array([total for total, _ in lengths], dtype=np.int32), np.ascontiguousarray(table)),
        np.array([3, 69, *(starts[2:] - 1)], dtype=np.int32),
    )


def load_model(path, ops, max_model_len, quantization="none"):
    checkpoint = quantised(open_checkpoint(path), quantization)
    config = checkpoint.config
    return model_class(config.architecture)(config, checkpoint, ops, max_model_len, lambda _: None)


def recorded_calls(path, quantization="none"):
    """The native calls of a recorded step, and how many layers the model has."""
    ops = BACKENDS["cpu"](BackendOptions(threads=1))
    model = load_model(path, ops, 64, quantization)
    runner = ModelRunner(model, ops, CacheConfig(4, 16), StepLimits(32, 4, 64))
    return runner._step.program.ops, model.config.num_layers


def steps(path, threads, *, recorded, device="cpu", kind="auto", quantization="none"):
    """Logits of two steps: one fills the caches, one has chunks and decodes."""
    ops = BACKENDS[device](BackendOptions(threads=threads, kv_cache_dtype=kind))
    model = load_model(path, ops, 128, quantization)
    config = model.config
    fill = inputs_of([(total, total) for total, _ in LENGTHS])
    batches = [fill, inputs_of(LENGTHS)]
    if recorded:
        runner = ModelRunner(model, ops, CacheConfig(NUM_BLOCKS, BLOCK_SIZE), StepLimits(200, 8, 128))
        return [runner.forward(batch).logits.copy() for batch in batches]
    caches = [
        ops.memory.alloc_cache(NUM_BLOCKS, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        for _ in range(config.num_layers)
    ]
    return [ops.memory.download(model.forward(batch, caches)) for batch in batches]


@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.parametrize(
    "options", [*({"kind": kind} for kind in ("f32", "f16", "i16", "i8")), {"quantization": "w8a8"}], ids=repr
)
def test_a_recorded_step_is_what_its_operations_are(name, options):
    """Fused, with shared buffers: the same bits as one operation after the other."""
    for got, wanted in zip(
        steps(GOLDEN / name, 2, recorded=True, **options),
        steps(GOLDEN / name, 2, recorded=False, **options),
        strict=True,
    ):
        assert np.isfinite(wanted).all()
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_threads_change_nothing(name, quantization):
    path, options = GOLDEN / name, {"recorded": True, "quantization": quantization}
    alone = steps(path, 1, **options)
    for threads in (2, 3, 5):
        for got, wanted in zip(steps(path, threads, **options), alone, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_norms_rotations_and_activations_are_fused(tmp_path):
    tiny_model("MistralForCausalLM").save_pretrained(tmp_path)
    calls, num_layers = recorded_calls(tmp_path)
    assert Op.ROPE not in calls
    assert Op.SILU_MUL not in calls
    assert calls.count(Op.WRITE_KV) == num_layers


def test_gates_of_half_a_panel_are_multiplied_by_themselves():
    """The up projection would begin in the middle of a panel; such models have a call for each (and golden logits)."""
    calls, num_layers = recorded_calls(GOLDEN / "tiny-mistral")
    assert Op.SILU_LINEAR not in calls
    assert calls.count(Op.SILU_MUL) == num_layers


@pytest.mark.parametrize(
    ("architecture", "options"), [("MistralForCausalLM", {}), ("LlamaForCausalLM", {"mlp_bias": True})]
)
def test_fused_gates_of_w8a8_match_the_reference(architecture, options, tmp_path):
    """The committed tiny models have gates of half a panel, which are not fused."""
    tiny_model(architecture, vocab_size=256, **options).save_pretrained(tmp_path)
    calls, num_layers = recorded_calls(tmp_path, "w8a8")
    assert calls.count(Op.SILU_LINEAR) == num_layers
    shared = {"kind": "f32", "quantization": "w8a8"}
    fused = steps(tmp_path, 2, recorded=True, **shared)
    apart = steps(tmp_path, 2, recorded=False, **shared)
    reference = steps(tmp_path, 2, recorded=False, device="reference", **shared)
    for got, unfused, wanted in zip(fused, apart, reference, strict=True):
        np.testing.assert_array_equal(got, unfused)
        assert deviation(got, wanted) < 2**-8  # a value on the border of two integers may go either way


def test_a_value_is_quantised_where_it_is_made_if_that_sees_the_whole_row(tmp_path):
    """Norms and the gathering of rows do; attention and the gated product do not, and leave it to a call of its own."""
    tiny_model("MistralForCausalLM").save_pretrained(tmp_path)
    calls, num_layers = recorded_calls(tmp_path, "w8a8")
    assert Op.MARK not in calls
    before = [first for first, second in pairwise(calls) if second is Op.QUANTISE]
    assert before == [Op.ATTENTION, Op.SILU_LINEAR] * num_layers


def test_a_product_gets_its_input_in_every_form_it_needs():
    """Weights of all kinds side by side, as a program of one node and behind a norm that makes all forms itself."""
    ops = BACKENDS["cpu"](BackendOptions(threads=2))
    rng = np.random.default_rng(2)
    formats = (WeightFormat.Q8_0, WeightFormat.W8A8, WeightFormat.F32, WeightFormat.W8A8)
    parts = [random_tensor(rng, (16, 64), fmt) for fmt in formats]
    together, apart = ops.prepare_linear(parts, None), [ops.prepare_linear([part], None) for part in parts]
    x, norm = ops.memory.upload(rng.standard_normal((5, 64)).astype(np.float32)), np.ones(64, dtype=np.float32)
    ids = np.arange(5, dtype=np.int32)
    table = ops.prepare_linear([f32_tensor(ops.memory.download(x))], None)

    def forward(inputs):
        return ops.logits(ops.rms_norm(ops.embed(inputs.token_ids, table), norm, 1e-5), inputs.logit_rows, together)

    def twice(inputs):
        normed = ops.rms_norm(ops.embed(inputs.token_ids, table), norm, 1e-5)
        again = ops.linear(ops.linear(normed, together), together)
        return ops.logits(again, inputs.logit_rows, table)

    normed = ops.rms_norm(x, norm, 1e-5)
    wanted = np.concatenate([ops.memory.download(ops.linear(normed, each)) for each in apart], axis=1)
    again = ops.linear(ops.memory.upload(wanted), together)
    batch = AttentionBatch(np.array([0, 5], dtype=np.int32), np.array([5], dtype=np.int32), ids[None, :1])
    inputs = StepInputs(ids, ids, ids, batch, ids)
    np.testing.assert_array_equal(ops.record(forward, StepLimits(8, 8, 8))(inputs).logits, wanted)
    np.testing.assert_array_equal(
        ops.record(twice, StepLimits(8, 8, 8))(inputs).logits, ops.memory.download(ops.logits(again, ids, table))
    )


def test_a_step_larger_than_recorded_is_refused():
    ops = BACKENDS["cpu"](BackendOptions(threads=1))
    model = load_model(GOLDEN / "tiny-mistral", ops, 128)
    runner = ModelRunner(model, ops, CacheConfig(NUM_BLOCKS, BLOCK_SIZE), StepLimits(60, 8, 128))
    with pytest.raises(ValueError, match="larger"):
        runner.forward(inputs_of(LENGTHS))


def test_a_nan_reaches_the_rows_it_enters_and_no_other():
    ops = BACKENDS["cpu"](BackendOptions(threads=2))
    rng = np.random.default_rng(0)

    weight = ops.prepare_linear([random_tensor(rng, (48, 64), WeightFormat.Q4_1)], None)
    x = rng.standard_normal((9, 64)).astype(np.float32)
    clean = ops.memory.download(ops.linear(ops.memory.upload(x), weight)).copy()
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[4, 40] = bad
        got = ops.memory.download(ops.linear(ops.memory.upload(broken), weight))
        assert not np.isfinite(got[4]).any()
        np.testing.assert_array_equal(np.delete(got, 4, axis=0), np.delete(clean, 4, axis=0))


def test_views_keep_to_their_rows():
    value = g.Value(12, data=np.zeros((2, 12), dtype=np.float32))
    heads = g.Tensor(value, 0, (12,)).reshape(-1, 3, 4)
    assert (heads[:, 1:].first, heads[:, 1:].shape) == (4, (2, 4))
    with pytest.raises(ValueError, match="cannot become"):
        heads.reshape(2, 6)


def test_a_cache_of_another_kind_is_refused():
    with pytest.raises(BackendUnavailable, match="--kv-cache-dtype"):
        BACKENDS["cpu"](BackendOptions(kv_cache_dtype="fp8"))


def test_a_model_without_a_kernel_is_refused_by_name():
    ops = BACKENDS["cpu"](BackendOptions(threads=1))
    with pytest.raises(NoKernel, match="head size"):
        ops.memory.alloc_cache(4, 16, 1, 512)

    too_wide = random_tensor(np.random.default_rng(0), (1, MAX_COLUMNS + 32), WeightFormat.Q8_0)
    with pytest.raises(NoKernel, match="columns"):
        ops.prepare_linear([too_wide], None)


def test_the_widest_weight_has_room_for_wide_blocks():
    ops = BACKENDS["cpu"](BackendOptions(threads=1))
    rng = np.random.default_rng(0)
    weight = ops.prepare_linear([random_tensor(rng, (33, MAX_COLUMNS), WeightFormat.Q4_0)], None)
    x = rng.standard_cauchy((8, MAX_COLUMNS)).astype(np.float32)  # many blocks far above the mean
    together = ops.memory.download(ops.linear(ops.memory.upload(x), weight)).copy()
    alone = [ops.memory.download(ops.linear(ops.memory.upload(row[None]), weight))[0].copy() for row in x]
    np.testing.assert_array_equal(together, alone)


def test_loading_names_the_backend_that_can(monkeypatch):
    from kernels.cpu import memory
    from tests.support.tiny_models import tiny_engine

    monkeypatch.setattr(memory, "MAX_HEAD_DIM", 2)
    with pytest.raises(UnsupportedModel, match=r"cpu backend cannot run this model: .*--device reference can"):
        tiny_engine("tiny-mistral", device="cpu")


@pytest.mark.parametrize("kind", ["f32", "f16", "i16", "i8"])
@pytest.mark.parametrize("block_size", [16, 32])
def test_a_block_of_the_cache_is_copied_whole(kind, block_size):
    ops = BACKENDS["cpu"](BackendOptions(kv_cache_dtype=kind))
    cache = ops.memory.alloc_cache(4, block_size, 3, 64)
    k, v = np.random.default_rng(0).standard_normal((2, 4 * block_size, 3, 64)).astype(np.float32)
    upload = ops.memory.upload
    ops.write_kv(cache, upload(k), upload(v), np.arange(4 * block_size, dtype=np.int32))
    before = [half.copy() for half in ops.memory.read_cache(cache)]
    ops.memory.copy_block(cache, 1, 3)
    for half, old in zip(ops.memory.read_cache(cache), before, strict=True):
        assert np.array_equal(half, old[[0, 1, 2, 1]])
        assert not np.array_equal(old[1], old[3])


def test_the_cpu_time_of_all_threads_is_told():
    """Two threads that compute together take up to twice the time that passes; while nothing runs, none is added."""
    ops = BACKENDS["cpu"](BackendOptions(threads=2))
    assert ops.native_cpu_s() == 0.0
    logits = np.zeros((4, 1 << 16), dtype=np.float32)
    params = DrawParams(*(np.full(4, value) for value in (1.0, 0, 1.0, 0.0, 0.5)))
    process_s, before_s = time.process_time(), ops.native_cpu_s()
    for _ in range(20):
        ops.draw(logits.copy(), params)
    native_s = ops.native_cpu_s() - before_s
    assert 0.0 < native_s <= time.process_time() - process_s
    assert ops.native_cpu_s() - before_s == native_s


def test_the_time_of_native_calls_is_told():
    """Part of the time that passes, by the engine's clock; while nothing runs, none is added."""
    ops = BACKENDS["cpu"](BackendOptions(threads=1))
    assert ops.native_wall_s() == 0.0
    params = DrawParams(*(np.full(4, value) for value in (1.0, 0, 1.0, 0.0, 0.5)))
    began_s = time.monotonic()
    ops.draw(np.zeros((4, 1 << 16), dtype=np.float32), params)
    native_s = ops.native_wall_s()
    assert 0.0 < native_s <= time.monotonic() - began_s
    assert ops.native_wall_s() == native_s


def test_calls_that_one_thread_makes_alone_are_told():
    """Two threads on one processor wait for each other most of the time, so that soon one of them works alone."""
    params = DrawParams(*(np.full(4, value) for value in (1.0, 0, 1.0, 0.0, 0.5)))
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})  # of this thread, and of those that it will start
    try:
        two, one = (BACKENDS["cpu"](BackendOptions(threads=threads)) for threads in (2, 1))
        assert two.native_rested() == 0
        num_calls = 0
        while two.native_rested() == 0:
            two.draw(np.zeros((4, 64), dtype=np.float32), params)
            one.draw(np.zeros((4, 64), dtype=np.float32), params)
            num_calls += 1
    finally:
        os.sched_setaffinity(0, processors)
    assert num_calls > 3
    assert two.native_rested() == 1
    assert one.native_rested() == 0
