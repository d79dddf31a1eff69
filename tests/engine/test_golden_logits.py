"""The tiny committed models give the logits that transformers gave when they were made."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.backends import DEVICES
from tests.support.tiny_models import GOLDEN, TINY_MODELS, prompt_step, tiny_engine


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_golden_logits(name, device):
    golden = np.load(GOLDEN / name / "golden.npz")
    logits = (
        tiny_engine(name, device=device, kv_cache_dtype="f32")._runner.forward(prompt_step(golden["token_ids"])).logits
    )
    assert np.ptp(golden["logits"]) > 1
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)  # float32 on both sides
