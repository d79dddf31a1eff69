"""``--quantization``: which weights it touches, what they become, and that wrong values are refused."""

from __future__ import annotations

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.loading import load_engine
from engine.weights.open import open_checkpoint
from engine.weights.quantised import quantised
from engine.weights.shapes import expected_shapes
from kernels.formats import WeightFormat
from kernels.quantise import to_w8a8
from tests.support.backends import DEVICES
from tests.support.tiny_models import GOLDEN, TINY_MODELS

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_linear_layers_are_quantised_and_nothing_else(name):
    stored = open_checkpoint(GOLDEN / name)
    made = quantised(stored, "w8a8")
    total, found = 0, set()
    for tensor, shape in expected_shapes(made.config).items():
        raw, was = made.tensor(tensor), stored.tensor(tensor)
        total += raw.nbytes
        assert raw.shape == shape
        part, suffix = tensor.split(".")[-2:]
        if part in LINEAR and suffix == "weight":
            found.add(part)
            assert raw.format is WeightFormat.W8A8
            np.testing.assert_array_equal(raw.data, to_w8a8(was).data)
        else:
            assert (raw.format, raw.data.tobytes()) == (was.format, was.data.tobytes())
    assert found == LINEAR
    assert made.total_bytes == total < stored.total_bytes


def test_none_takes_the_weights_as_stored():
    stored = open_checkpoint(GOLDEN / "tiny-mistral")
    assert quantised(stored, "none") is stored


@pytest.mark.parametrize("device", DEVICES)
def test_loading_counts_what_it_lays_out(device):
    seen = []
    config = EngineConfig(model_path=str(GOLDEN / "tiny-qwen3-moe"), device=device, quantization="w8a8")
    _, ready = load_engine(config, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (ready.weights_bytes, ready.weights_bytes)


@pytest.mark.parametrize("device", DEVICES)
def test_a_name_that_is_none_is_refused_with_the_choices(device):
    config = EngineConfig(model_path=str(GOLDEN / "tiny-mistral"), device=device, quantization="fp8")
    with pytest.raises(ConfigError, match=r"--quantization must be one of none, w8a8, but is fp8\."):
        load_engine(config, lambda *_: None)
