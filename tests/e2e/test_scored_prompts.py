"""Log probabilities of prompts from a running server, as those who score given answers ask for them."""

from __future__ import annotations

import openai
import pytest

from engine.scheduler import MOST_ROWS
from tests.support.server_process import running_server

QUESTION = "The capital of France is"
ANSWER_TOKENS = 90
"""With the prompt more than are scored in a step."""


@pytest.fixture(scope="module")
def client(default_model):
    with running_server(str(default_model), "--max-model-len", "1024") as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        assert server.stop() == 0


def tokens_of(client, text):
    return client.post("/../tokenize", body={"prompt": text}, cast_to=dict)["tokens"]


@pytest.fixture(scope="module")
def generated(client):
    """An answer with its log probabilities, and the tokens of prompt and answer."""
    model = client.models.list().data[0].id
    prompt = tokens_of(client, QUESTION)
    none_ends = {"min_tokens": ANSWER_TOKENS}
    answer = client.completions.create(
        model=model, prompt=prompt, max_tokens=ANSWER_TOKENS, temperature=0, logprobs=3, extra_body=none_ends
    )
    (choice,) = answer.choices
    token_ids = [*prompt, *tokens_of(client, choice.text)]
    assert len(token_ids) == len(prompt) + ANSWER_TOKENS, "as the model wrote it, so the tokenizer reads it"
    return model, len(prompt), token_ids, choice


def test_a_token_has_the_log_probability_that_it_was_generated_with(client, generated):
    """To the last bit, however it is computed; and the tokens' places in the text are where they are."""
    model, num_prompt, token_ids, answer = generated
    scored = client.completions.create(model=model, prompt=token_ids, max_tokens=0, logprobs=3, echo=True)
    (choice,) = scored.choices
    assert (choice.text, choice.finish_reason) == (QUESTION + answer.text, "length")
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (len(token_ids), 0)
    found, wanted = choice.logprobs, answer.logprobs
    assert found.tokens[num_prompt:] == wanted.tokens
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[num_prompt:] == wanted.token_logprobs
    assert found.top_logprobs[num_prompt:] == wanted.top_logprobs
    ends = [*found.text_offset[1:], None]
    assert [choice.text[at:end] for at, end in zip(found.text_offset, ends, strict=True)] == found.tokens


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_adds_up_to_it(client, generated, n):
    model, _, token_ids, _ = generated
    wanted = {"model": model, "prompt": token_ids, "max_tokens": 4, "temperature": 0, "logprobs": 1, "echo": True}
    whole = client.completions.create(**wanted, n=n)
    texts, logprobs, most = [""] * n, [[] for _ in range(n)], 0
    for chunk in client.completions.create(**wanted, n=n, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs:
                logprobs[choice.index] += choice.logprobs.token_logprobs
                most = max(most, len(choice.logprobs.tokens))
    assert texts == [choice.text for choice in whole.choices]
    assert logprobs == [choice.logprobs.token_logprobs for choice in whole.choices]
    assert most <= 1 + MOST_ROWS < len(token_ids), "a long prompt comes in pieces, to every choice"


def test_it_is_said_why_the_cache_was_not_used(client, generated):
    model, _, token_ids, _ = generated
    answer = client.completions.create(
        model=model, prompt=token_ids, max_tokens=1, logprobs=0, echo=True, extra_body={"upwell": {"usage": True}}
    )
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.usage.upwell["cache_miss"] == "prompt_logprobs"
