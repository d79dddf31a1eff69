"""The official ``openai`` package against a real server: chat, streams, n, logprobs, stop, seed, usage, errors."""

from __future__ import annotations

import math

import openai
import pytest

from tests.support.server_process import running_server
from tests.support.tiny_models import GOLDEN

TINY = "tiny-qwen3-moe"
KEY = "sk-test-key"
QUESTION = [{"role": "user", "content": "Tell me something."}]


@pytest.fixture(scope="module")
def server():
    with running_server(str(GOLDEN / TINY), "--api-key", KEY, "--device", "reference") as made:
        yield made


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def ask(client, messages=QUESTION, **options):
    return client.chat.completions.create(model=TINY, messages=messages, **{"max_tokens": 12, **options})


def test_chat(client):
    answer = ask(client, temperature=0)
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert answer.model == TINY
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_adds_up_to_the_answer(client):
    whole = ask(client, seed=5, temperature=1.2, logprobs=True, top_logprobs=2)
    chunks = list(
        ask(
            client,
            seed=5,
            temperature=1.2,
            logprobs=True,
            top_logprobs=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *parts, last = chunks
    assert "".join(c.choices[0].delta.content or "" for c in parts) == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in parts if c.choices[0].finish_reason] == ["length"]
    logprobs = [token for c in parts if c.choices[0].logprobs for token in c.choices[0].logprobs.content]
    assert logprobs == whole.choices[0].logprobs.content
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.usage.prompt_tokens, 12)
    assert len({c.id for c in chunks}) == 1


def test_n_choices_differ_and_are_reproducible(client):
    first, second = (ask(client, n=3, seed=9, temperature=1.5) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]
    assert first.usage.completion_tokens == 36
    assert texts[0] == ask(client, seed=9, temperature=1.5).choices[0].message.content


def test_streamed_choices_are_told_apart(client):
    whole = ask(client, n=2, seed=3, temperature=1.5)
    texts = ["", ""]
    for chunk in ask(client, n=2, seed=3, temperature=1.5, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_logprobs(client):
    content = ask(client, temperature=0, logprobs=True, top_logprobs=5).choices[0].logprobs.content
    assert len(content) == 12
    for token in content:
        assert token.logprob == max(top.logprob for top in token.top_logprobs)
        assert token.token == token.top_logprobs[0].token
        shown = bytes(token.bytes).decode(errors="backslashreplace")
        assert token.token in {shown, f"bytes:{shown}"}  # part of a character is written as OpenAI does
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-6


def test_stop_ends_before_the_text(client):
    whole = ask(client, temperature=0).choices[0].message.content
    stop = whole[4:6]
    cut = ask(client, temperature=0, stop=[stop, "never said"]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_seed(client):
    def answer(seed):
        return ask(client, seed=seed, temperature=1.5).choices[0].message.content

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_the_second_time_the_prompt_is_cached(client):
    long = [{"role": "user", "content": "word " * 60}]
    cold, warm = (ask(client, long, temperature=0) for _ in range(2))
    assert warm.usage.prompt_tokens_details.cached_tokens > 200
    assert warm.choices[0].message.content == cold.choices[0].message.content


def test_extensions_through_extra_body(client):
    greedy = ask(client, temperature=0).choices[0].message.content
    assert ask(client, temperature=2, extra_body={"top_k": 1}).choices[0].message.content == greedy
    free = ask(client, extra_body={"ignore_eos": True, "min_tokens": 3}, max_tokens=30, temperature=2, seed=1)
    assert free.usage.completion_tokens == 30


def test_completions(client):
    answer = client.completions.create(model=TINY, prompt=["once", "twice"], max_tokens=5, temperature=0, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(len(choice.logprobs.tokens) == 5 for choice in answer.choices)
    ids = client.completions.create(model=TINY, prompt=[71, 78, 66, 68], max_tokens=5, temperature=0)
    assert ids.usage.prompt_tokens == 4
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(model=TINY, prompt="once", max_tokens=5, temperature=0, stream=True)
    )
    assert text == answer.choices[0].text


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == TINY
    assert client.models.retrieve(TINY).id == TINY


@pytest.mark.parametrize(
    ("options", "error", "param", "code"),
    [
        ({"temperature": 3}, openai.BadRequestError, "temperature", None),
        ({"max_tokens": 100000}, openai.BadRequestError, "messages", "context_length_exceeded"),
        ({"extra_body": {"n": True}}, openai.BadRequestError, "n", None),
        ({"extra_body": {"tempreature": 1}}, openai.BadRequestError, "tempreature", "unknown_parameter"),
        ({"store": True}, openai.BadRequestError, "store", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools[0].function", None),
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", None),
    ],
)
def test_errors_are_typed_and_name_the_field(client, options, error, param, code):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": TINY, "messages": QUESTION, "max_tokens": 5, **options})
    assert caught.value.param == param
    if code:
        assert caught.value.code == code
    assert ask(client).choices


def test_a_wrong_key(server):
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


async def test_many_clients_at_once_get_what_each_gets_alone(server, client):
    import asyncio

    prompts = [[{"role": "user", "content": f"number {i} " * (i % 7)}] for i in range(40)]
    alone = [ask(client, prompt, temperature=1, seed=i).choices[0].message.content for i, prompt in enumerate(prompts)]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as many:
        together = await asyncio.gather(
            *(
                many.chat.completions.create(model=TINY, messages=prompt, max_tokens=12, temperature=1, seed=i)
                for i, prompt in enumerate(prompts)
            )
        )
    assert [answer.choices[0].message.content for answer in together] == alone
