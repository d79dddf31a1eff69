"""The default model's greedy answers against transformers on the same weights, which it unpacks itself."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from engine.config import EngineConfig
from engine.loading import load_engine
from engine.tokenizer import load_tokenizer
from engine.types import GenerateRequest, SamplingParams

QUESTIONS = [
    "What is the capital of France?",
    "Explain photosynthesis in two sentences.",
    "Write a haiku about the sea.",
    "List three uses for a paperclip.",
    "Translate 'good morning' into Spanish.",
    "What is 12 times 12?",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
    "What are the primary colours?",
    "Summarise the plot of Cinderella.",
    "How do I boil an egg?",
    "Name five animals that live in the ocean.",
    "What is the difference between weather and climate?",
    "Tell me a joke about computers.",
    "How far away is the moon?",
    "Write a short letter to a friend about spring.",
    "What does HTTP stand for?",
    "Describe a sunset to someone who cannot see.",
    "What year did the Second World War end?",
    "Continue the sequence: 1, 1, 2, 3, 5, 8,",
]
NEW_TOKENS = 64
NEAR_TIE = 1e-3
"""Where the judge's own two best logits lie this close, float32 rounding decides, and either token is right."""


@pytest.fixture(scope="module")
def answers(default_model):
    """(prompt ids, 64 generated ids) for each question, all run together in one engine."""
    engine, _ = load_engine(EngineConfig(model_path=str(default_model), device="reference"), lambda *_: None)
    tokenizer = load_tokenizer(default_model)
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    prompts = {}
    for question in QUESTIONS:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompts[question] = tokenizer.encode(text, add_special=False)
        engine.submit(GenerateRequest(question, prompts[question], sampling))
    generated = {question: [] for question in QUESTIONS}
    while engine.has_work:
        for delta in engine.step().deltas:
            generated[delta.request_id] += delta.token_ids
    return [(prompts[question], generated[question]) for question in QUESTIONS]


@pytest.fixture(scope="module")
def judge(default_model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        return transformers.AutoModelForCausalLM.from_pretrained(
            default_model.parent, gguf_file=default_model.name, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def test_greedy_answers_equal_the_judges(answers, judge):
    """Up to a near-tie, each token is the one the judge prefers after the same tokens; so its greedy answer is ours."""
    num_compared = 0
    for prompt, generated in answers:
        assert len(generated) == NEW_TOKENS
        with torch.no_grad():
            logits = judge(torch.tensor([prompt + generated])).logits[0, len(prompt) - 1 : -1].numpy()
        for step, (row, token_id) in enumerate(zip(logits, generated, strict=True)):
            best, second = np.sort(row)[[-1, -2]]
            if token_id != int(row.argmax()):
                assert best - second < NEAR_TIE, f"token {step} of prompt {len(prompt)} tokens long"
                break
            num_compared += 1
    assert num_compared > 20 * NEW_TOKENS, "too many near-ties to say that the answers agree"


ANSWER = """
import sys
from engine.config import EngineConfig
from engine.loading import load_engine
from engine.types import GenerateRequest, SamplingParams

engine, _ = load_engine(EngineConfig(model_path=sys.argv[1], device="reference"), lambda *_: None)
sampling = SamplingParams(max_tokens=6, seed=4, logprobs=3, ignore_eos=True)
for name, prompt in {"short": range(300, 311), "long": range(1000, 1150)}.items():
    engine.submit(GenerateRequest(name, list(prompt), sampling))
while engine.has_work:
    for delta in engine.step().deltas:
        print(delta.request_id, delta.token_ids, delta.logprobs)
"""


def test_answers_do_not_depend_on_the_number_of_threads(default_model):
    outputs = set()
    for threads in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", ANSWER, str(default_model)],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.count("short") == 6
        outputs.add(done.stdout)
    assert len(outputs) == 1
