"""Link 5: what the largest steps take of a device's memory, beside what steps of all kinds take when they run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kernels.ascend import attention
from kernels.ascend.attention import PlannedBatch
from kernels.ascend.backend import ops_on
from kernels.ascend.recorded import RecordedStep, uploaded
from kernels.ascend.rehearsal import rehearsed_bytes
from kernels.ascend.sampling import best_tokens
from kernels.ops import BackendOptions, NoKernel, StepLimits
from kernels.spec import f32_tensor
from tests.kernels.test_ascend_recorded import step
from tests.support.ascend_links import link
from tools.ascend.emulation.peak import peak_bytes
from tools.ascend.emulation.platform import emulated_platform

pytestmark = link(5)

HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 16, 2, 64, 500
LIMITS = StepLimits(max_tokens=200, max_rows=12, max_model_len=4096)
STEPS = {
    "one prompt": step([200], [200]),
    "the end of a long prompt": step([4096], [200]),
    "ends of two": step([4096, 4000], [130, 70]),
    "a mixture": step([4096] * 12, [189, *[1] * 11]),
    "prompts of all": step([100] * 12, [16] * 12),
    "decoding": step([4096] * 12, [1] * 12),
    "decoding of short ones": step([5] * 12, [1] * 12),
}


class Model:
    """A layer of attention and a head, over a cache of its own."""

    def __init__(self, options=None, window=None, blocks=400, group=1):
        self.platform = emulated_platform()
        ops = ops_on(self.platform, options or BackendOptions(dtype="float16", eager=True))
        weights = np.random.default_rng(0).standard_normal((VOCABULARY, HEADS * HEAD_DIM))
        embedding = ops.prepare_linear([f32_tensor(weights)], None)
        cache = ops.memory.alloc_cache(blocks, 128, KV_HEADS, HEAD_DIM)

        def forward(inputs):
            x = ops.embed(inputs.token_ids, embedding).reshape(-1, HEADS, HEAD_DIM)
            ops.write_kv(cache, x[:, :KV_HEADS], x[:, KV_HEADS : 2 * KV_HEADS], inputs.slots)
            q = x.repeat_interleave(group, dim=1, output_size=HEADS * group)
            attended = ops.paged_attention(q, cache, inputs.attention, HEAD_DIM**-0.5, window)[:, :HEADS]
            return ops.logits(attended.reshape(len(x), -1), inputs.logit_rows, embedding)

        self.forward, self.ops, self.cache = forward, ops, cache

    def taken(self, inputs):
        """By a step that runs eagerly, best tokens included."""
        kept = []

        def run():
            kept.append(self.forward(uploaded(self.platform.device, inputs)))
            kept.append(best_tokens(torch, kept[0]))

        with torch.inference_mode():
            self.forward(uploaded(self.platform.device, inputs))  # what is compiled the first time takes some
            return peak_bytes(run)

    def rehearsed(self, limits=LIMITS, *, eager=True):
        return rehearsed_bytes(self.platform, self.forward, limits, eager=eager)


@pytest.mark.parametrize("cache", ["auto", "i8"])
def test_no_step_takes_more_than_what_was_rehearsed(cache):
    model = Model(BackendOptions(dtype="float16", eager=True, kv_cache_dtype=cache))
    rehearsed = model.rehearsed()
    taken = {name: model.taken(inputs) for name, inputs in STEPS.items()}
    assert max(taken.values()) <= rehearsed, taken
    assert rehearsed <= 1.02 * max(taken.values()), "and the cache does not go short by what no step takes"


@pytest.mark.parametrize("most", [1, 20, 40, 60])
def test_no_step_takes_more_where_attention_takes_several_launches(monkeypatch, most):
    """As in long contexts; and with 40 and 60 tasks a launch, in those alone: short ones have 36 in all."""
    monkeypatch.setattr(attention, "MAX_TASKS", most)
    model = Model()
    rehearsed = model.rehearsed()
    taken = {name: model.taken(inputs) for name, inputs in STEPS.items()}
    assert max(taken.values()) <= rehearsed <= 1.02 * max(taken.values()), taken


def test_long_contexts_take_more_than_short_ones_and_a_window_ends_that():
    assert Model().rehearsed() > 1.5 * Model().rehearsed(dataclasses.replace(LIMITS, max_model_len=1024))
    windowed = Model(window=100)
    assert windowed.rehearsed() < 0.8 * Model().rehearsed()
    assert windowed.taken(STEPS["the end of a long prompt"]) <= windowed.rehearsed()


def test_prompts_that_are_shorter_than_a_step_fill_it_together():
    model = Model()
    limits = StepLimits(max_tokens=200, max_rows=12, max_model_len=60)
    mixed = [60, 60, 60, 12, *[1] * 8]
    assert model.rehearsed(limits) >= model.taken(step(mixed, mixed)) >= model.taken(step([60] * 3, [60] * 3))
    few = StepLimits(max_tokens=200, max_rows=2, max_model_len=60)
    assert model.rehearsed(few) < model.rehearsed(limits), "there are no more tokens than sequences have room for"
    assert model.rehearsed(StepLimits(1, 1, 1)) > 0


def test_graphs_keep_what_a_step_takes_and_share_their_logits():
    eager, graphs = (Model().rehearsed(eager=eager) for eager in (True, False))
    logits = 4 * LIMITS.max_rows * VOCABULARY
    assert graphs - eager >= Model().taken(STEPS["decoding"]) + logits
    model = Model(BackendOptions(dtype="float16"))
    recorded = model.ops.record(model.forward, LIMITS)
    assert isinstance(recorded, RecordedStep)
    large, small = recorded(STEPS["decoding"]), recorded(step([700, 3], [1, 1]))
    assert large._logits.data_ptr() == small._logits.data_ptr()
    assert len(large._logits) == LIMITS.max_rows


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("max_model_len", [1, 4096])
def test_both_kernels_are_launched_before_there_is_a_cache(monkeypatch, eager, max_model_len):
    """A device compiles each when it is first launched, which no request is to wait for."""
    launched = []
    real = PlannedBatch.plans
    monkeypatch.setattr(PlannedBatch, "plans", lambda self, *given: launched.append(given[0]) or real(self, *given))
    model = Model(BackendOptions(dtype="float16", eager=eager))
    limits = dataclasses.replace(LIMITS, max_model_len=max_model_len)
    assert model.ops.memory.spare_bytes(model.forward, limits) > 0
    assert launched == [1 if max_model_len == 1 else 64 // (HEADS // KV_HEADS), 1]


@pytest.mark.parametrize("eager", [False, True])
def test_what_cannot_be_served_is_found_out_before_there_is_a_cache(eager):
    model = Model(BackendOptions(dtype="float16", eager=eager), group=4)
    with pytest.raises(NoKernel, match="32 heads of queries share a head of keys"):
        model.ops.memory.spare_bytes(model.forward, LIMITS)
