"""The tiny committed models give the logits that transformers gave when they were made."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.ops import AttentionBatch, StepInputs
from tests.support.backends import DEVICES
from tests.support.tiny_models import GOLDEN, TINY_MODELS, tiny_engine


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_golden_logits(name, device):
    golden = np.load(GOLDEN / name / "golden.npz")
    count = len(golden["token_ids"])
    batch = StepInputs(
        token_ids=golden["token_ids"],
        positions=np.arange(count, dtype=np.int32),
        slots=np.arange(count, dtype=np.int32),
        attention=AttentionBatch(
            q_starts=np.array([0, count], dtype=np.int32),
            kv_lens=np.array([count], dtype=np.int32),
            block_table=np.arange(-(-count // 16), dtype=np.int32)[None],
        ),
        logit_rows=np.arange(0, count, 7, dtype=np.int32),
    )
    logits = tiny_engine(name, device=device, kv_cache_dtype="f32")._runner.forward(batch).logits
    assert np.ptp(golden["logits"]) > 1
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)  # float32 on both sides
