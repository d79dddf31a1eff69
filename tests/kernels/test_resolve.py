"""Choosing a backend: by name, or the first that works, with the reasons why others do not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.loading import load_engine, size_cache
from kernels import resolve as module
from kernels.cpu.library import find_library
from kernels.ops import BackendOptions, BackendUnavailable, StepLimits
from kernels.reference.backend import reference_ops
from kernels.resolve import BACKENDS, resolve
from tests.support.tiny_models import GOLDEN


def no_compiler(_options):
    raise BackendUnavailable("there is no compiler.")


@pytest.fixture
def two_backends(monkeypatch):
    monkeypatch.setattr(module, "BACKENDS", {"native": no_compiler, "reference": reference_ops})


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "ascend"])
def test_each_backend_runs_here_or_says_why_not(backend):
    try:
        ops = resolve(backend, BackendOptions()).ops
    except BackendUnavailable as error:
        if backend != "cpu" or find_library():
            raise
        pytest.skip(str(error))
    assert ops.info.name == backend


def test_ascend_does_not_run_here_and_says_why_not():
    """No machine of these tests has an NPU, and what stands in for one in another test is not one either."""
    with pytest.raises(BackendUnavailable, match=r"upwell doctor|is a stub of the Ascend driver"):
        resolve("ascend", BackendOptions())


def test_auto_takes_the_first_that_works_and_says_why(two_backends):
    resolved = resolve("auto", BackendOptions())
    assert resolved.ops.info.name == "reference"
    assert set(resolved.provenance.values()) == {"reference"}
    assert resolved.notes == ("native: there is no compiler.",)
    _, ready = load_engine(EngineConfig(model_path=str(GOLDEN / "tiny-mistral")), lambda *_: None)
    assert ready.backend.startswith("reference (NumPy ")
    assert ready.backend.endswith("not native: there is no compiler.")


def test_a_backend_that_was_named_is_not_replaced(two_backends):
    with pytest.raises(BackendUnavailable, match="no compiler"):
        resolve("native", BackendOptions())
    assert resolve("reference", BackendOptions()).notes == ()


def test_when_none_works_all_reasons_are_given(two_backends):
    with pytest.raises(BackendUnavailable, match=r"no compiler.*--kv-cache-dtype i16"):
        resolve("auto", BackendOptions(kv_cache_dtype="i16"))


def test_a_name_that_is_none_gets_the_choices(two_backends):
    with pytest.raises(BackendUnavailable, match=r"--device abacus.*native, reference"):
        resolve("abacus", BackendOptions())


def test_block_sizes_are_what_the_backend_can_use(monkeypatch):
    ops = reference_ops(BackendOptions())
    picky = dataclasses.replace(ops, memory=dataclasses.replace(ops.memory, block_multiple=16))
    monkeypatch.setattr(module, "BACKENDS", {"picky": lambda _options: picky})
    config = EngineConfig(model_path=str(GOLDEN / "tiny-mistral"), block_size=8)
    with pytest.raises(ConfigError, match="--block-size must be a multiple of 16"):
        load_engine(config, lambda *_: None)
    load_engine(EngineConfig(model_path=config.model_path, block_size=32), lambda *_: None)


def test_a_cache_is_as_large_as_its_tokens():
    from engine.weights.open import open_checkpoint

    model = open_checkpoint(GOLDEN / "tiny-mistral").config
    ops = reference_ops(BackendOptions())
    token = model.num_layers * 2 * 4 * model.num_kv_heads * model.head_dim
    cache, _ = size_cache(EngineConfig(model_path="", kv_cache_bytes=7 * 16 * token + 1), model, ops)
    assert cache.num_blocks == 7


@pytest.mark.parametrize(
    ("wanted", "flag"),
    [({"num_blocks": 1 << 31}, "--num-blocks"), ({"kv_cache_bytes": 1 << 60, "max_num_seqs": 1 << 40}, "--kv-cache")],
)
def test_a_cache_beyond_the_machines_memory_is_refused_by_its_flag(wanted, flag):
    from engine.weights.open import open_checkpoint

    model = open_checkpoint(GOLDEN / "tiny-mistral").config
    with pytest.raises(ConfigError, match=rf"memory .*: \d+ blocks at most; lower {flag}"):
        size_cache(EngineConfig(model_path="", **wanted), model, reference_ops(BackendOptions()))


def test_a_step_is_recorded_once_and_scored():
    calls = []

    def forward(inputs):
        calls.append(inputs)
        return np.array([[1.0, 3.0, 3.0], [0.0, np.inf, 1.0], [np.nan, 0.0, 1.0]], dtype=np.float32)

    step = reference_ops(BackendOptions()).record(forward, StepLimits(4, 4, 4))
    scores = step("inputs")
    assert calls == ["inputs"]
    assert scores.best.tolist() == [1, -1, -1]
    assert scores.best.dtype == np.int32
    assert scores.logits[0].tolist() == [1, 3, 3]
