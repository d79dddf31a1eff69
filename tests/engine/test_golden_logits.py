"""The tiny committed models give the logits that transformers gave when they were made."""

from __future__ import annotations

import numpy as np
import pytest

from engine.types import FinishReason, GenerateRequest, SamplingParams
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_log_probabilities_of_a_prompt_are_those_of_its_logits(name, device):
    golden = np.load(GOLDEN / name / "golden.npz")
    prompt = golden["token_ids"].tolist()
    engine = tiny_engine(name, device=device, kv_cache_dtype="f32", max_num_seqs=9, max_num_batched_tokens=23)
    engine.submit(GenerateRequest("r", prompt, SamplingParams(max_tokens=0), prompt_logprobs=3))
    deltas = []
    while engine.has_work:
        deltas += engine.step().deltas
    found = [entry for delta in deltas for entry in delta.prompt_logprobs or ()]
    assert [entry.token_id for entry in found] == prompt[1:]
    for place, logits in zip(range(0, len(prompt) - 1, 7), golden["logits"], strict=False):
        logprobs = logits - np.logaddexp.reduce(logits.astype(np.float64))
        entry = found[place]
        assert entry.logprob == pytest.approx(logprobs[entry.token_id], abs=2e-4)  # the logits' own, and their sum's
        assert [logprob for _, logprob in entry.top] == pytest.approx(np.sort(logprobs)[::-1][:3], abs=2e-4)
    last = deltas[-1]
    assert (last.token_ids, last.text, last.finish) == ([], "", FinishReason.LENGTH)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt), 0)
