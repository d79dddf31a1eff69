"""Predictions as texts, by the default model's own tokenizer, which cuts them into tokens apart from the prompt."""

from __future__ import annotations

import httpx
import pytest

from tests.support.server_process import running_server

MESSAGES = [{"role": "user", "content": "Write a Python function that reverses a string."}]


@pytest.fixture(scope="module")
def client(default_model):
    with (
        running_server(str(default_model), "--served-model-name", "it") as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield client


def answer(client, path, **fields):
    """The text of an answer, and its usage."""
    asked = {"model": "it", "max_tokens": 64, "seed": 7, **fields}
    response = client.post(path, json=asked)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return text, response.json()["usage"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "temperature": 0}),
        ("/v1/chat/completions", {"messages": MESSAGES, "temperature": 1, "top_p": 0.9}),
        ("/v1/completions", {"prompt": "def reverse(text):\n    ", "temperature": 0}),
        ("/v1/completions", {"prompt": "The harbour town had", "temperature": 1}),
    ],
)
def test_most_of_a_right_text_comes(client, path, asked):
    """Also if it begins in another way, which shifts where tokens begin.

    Where that is, and where the answer is cut short, a few tokens are others: of 64, fewer than a fifth.
    """
    text, usage = answer(client, path, **asked)
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 0
    for foretold in (text, f"Well,{text}", text[3:], text + " And more."):
        helped, usage = answer(client, path, **asked, prediction={"type": "content", "content": foretold})
        assert helped == text
        assert usage["completion_tokens_details"]["accepted_prediction_tokens"] >= 0.8 * usage["completion_tokens"]
