"""Each architecture against transformers, on tiny random checkpoints that transformers saved."""

from __future__ import annotations

import numpy as np
import pytest
import transformers as tf

from tests.support.backends import DEVICES
from tests.support.judge import OurModel, judged_logits, make_checkpoint

ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPE_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
ROPE_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}

MODELS = {
    "llama": (tf.LlamaConfig, {}),
    "llama tied": (tf.LlamaConfig, {"tie_word_embeddings": True}),
    "llama with biases": (tf.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama with explicit head_dim": (tf.LlamaConfig, {"head_dim": 32}),
    "llama3 rope": (tf.LlamaConfig, {"rope_parameters": ROPE_LLAMA3}),
    "linear rope": (tf.LlamaConfig, {"rope_parameters": ROPE_LINEAR}),
    "yarn rope": (tf.LlamaConfig, {"rope_parameters": ROPE_YARN}),
    "yarn rope, attention_factor": (tf.LlamaConfig, {"rope_parameters": {**ROPE_YARN, "attention_factor": 1.3}}),
    "mistral": (tf.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "mistral with a window": (tf.MistralConfig, {"sliding_window": 9, "head_dim": 16}),
    "qwen2": (tf.Qwen2Config, {}),
    "qwen2 with a window on some layers": (
        tf.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "qwen3": (tf.Qwen3Config, {"head_dim": 32}),
    "qwen3 with attention bias": (tf.Qwen3Config, {"head_dim": 32, "attention_bias": True}),
    "seed-oss": (tf.SeedOssConfig, {"head_dim": 32, "num_attention_heads": 10, "num_key_value_heads": 1}),
    "qwen3-moe": (tf.Qwen3MoeConfig, {**MOE, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3-moe, not normalised": (tf.Qwen3MoeConfig, {**MOE, "head_dim": 32, "norm_topk_prob": False}),
    "qwen3-moe, some layers dense": (
        tf.Qwen3MoeConfig,
        {**MOE, "head_dim": 32, "norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
}
TOLERANCE = 1e-4  # both sides compute in float32; the logits are of order 1 to 10


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: name.replace(" ", "_"))
def judged(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    config_class, options = MODELS[request.param]
    return folder, make_checkpoint(config_class, folder, **options)


@pytest.mark.parametrize("device", DEVICES)
def test_prefill_and_decode_logits(judged, device):
    folder, judge = judged
    token_ids = np.random.default_rng(1).integers(3, 199, 90).tolist()
    wanted = judged_logits(judge, token_ids)
    assert np.ptp(wanted) > 1, "logits too flat to tell a right model from a wrong one"
    ours = OurModel(folder, device)
    chunks = [ours.run(token_ids[start : start + 37]) for start in (0, 37)]
    decoded = [ours.run([token_id]) for token_id in token_ids[74:]]
    np.testing.assert_allclose(np.concatenate([*chunks, *decoded]), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_tokens(judged, device):
    folder, judge = judged
    prompt = np.random.default_rng(2).integers(3, 199, 21).tolist()
    ours = OurModel(folder, device)
    logits, answer = ours.run(prompt), []
    for _ in range(40):
        answer.append(int(logits[-1].argmax()))
        logits = ours.run(answer[-1:])
    # Fed our own answer, the judge must choose each of its tokens too: then its greedy answer is the same.
    judged_choice = judged_logits(judge, prompt + answer)[len(prompt) - 1 : -1].argmax(axis=1)
    assert answer == judged_choice.tolist()
