"""The official openai package as the judge, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from engine.types import GenerateRequest, TokenDelta
from tests.server.rig import Rig
from tests.support.fake_engine import MODEL, Die, Step, deltas_for, failure, says

KEY = "sk-test"
HI: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def rig() -> Rig:
    """A server with a key; tests set its script."""
    return Rig(says("Hello, wörld"), api_keys=(KEY,), max_waiting=4)


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    """The SDK, pointed at the server, without retries."""
    async with (
        rig.socket() as (host, port),
        AsyncOpenAI(api_key=KEY, base_url=f"http://{host}:{port}/v1", max_retries=0) as client,
    ):
        yield client


async def test_chat(client: AsyncOpenAI, rig: Rig) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI, temperature=0, seed=7, stop=["!"], n=2)
    assert [choice.message.content for choice in answer.choices] == ["Hello, wörld"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * len("Hello, wörld".encode())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer._request_id
    assert {(r.sampling.seed, r.sampling.stop) for r in rig.engine.submitted} == {(7, ("!",))}
    again = [*HI, answer.choices[0].message.model_dump(), *HI]
    assert (await client.chat.completions.create(model=MODEL, messages=again)).choices


async def test_chat_stream(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=HI,
        stream=True,
        stream_options={"include_usage": True},
        n=2,
        logprobs=True,
        top_logprobs=3,
    )
    texts, tokens, finish, usage = ["", ""], [0, 0], [None, None], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]  # type: ignore[call-overload]
            assert choice.logprobs is not None
            for entry in choice.logprobs.content or ():
                tokens[choice.index] += 1
                assert len(entry.top_logprobs) == 3
    assert texts == ["Hello, wörld"] * 2
    assert finish == ["stop"] * 2
    assert tokens == [len("Hello, wörld".encode())] * 2
    assert usage is not None
    assert usage.completion_tokens == sum(tokens)


async def test_the_streaming_helper(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=MODEL, messages=HI) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == "Hello, wörld"


async def test_logprobs(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=20)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert b"".join(bytes(entry.bytes or ()) for entry in content).decode() == "Hello, wörld"
    assert {len(entry.top_logprobs) for entry in content} == {20}


async def test_completions(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=3, logprobs=2, echo=None)
    assert [choice.text for choice in answer.choices] == ["Hel", "Hel"]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["H", "e", "l"], [0, 1, 2])
    stream = await client.completions.create(model=MODEL, prompt=[1, 2], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello, wörld"


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL, "alias/of-it"]
    assert (await client.models.retrieve("alias/of-it")).id == "alias/of-it"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-nothing")


async def test_bad_requests(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model=MODEL, messages=HI, store=True)
    assert (raised.value.param, raised.value.code, raised.value.type) == (
        "store",
        "unsupported_parameter",
        "invalid_request_error",
    )
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model=MODEL, messages=[*HI * 200])
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-nothing", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()


async def test_server_errors(client: AsyncOpenAI, rig: Rig) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=MODEL, messages=HI, n=5)
    rig.engine.script = lambda request: [failure(request, "numerical_error", "Not a number.")]
    with pytest.raises(openai.InternalServerError) as raised:
        await client.chat.completions.create(model=MODEL, messages=HI)
    assert (raised.value.status_code, raised.value.code) == (500, "numerical_error")
    rig.engine.script = lambda request: [Die()]
    with pytest.raises(openai.InternalServerError) as raised:
        await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    assert raised.value.status_code == 503


async def test_the_sdk_tries_again_when_an_engine_died(
    client: AsyncOpenAI, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("openai._base_client.anyio.sleep", sleep)
    lives = iter([[Die()]])
    rig.engine.script = lambda request: next(lives, None) or deltas_for(request, "Here again")
    answer = await client.with_options(max_retries=1).chat.completions.create(model=MODEL, messages=HI)
    assert answer.choices[0].message.content == "Here again"
    assert len(pauses) == 1
    assert 1 <= pauses[0] <= 30


@pytest.mark.parametrize("end", ["error", "death"])
async def test_a_stream_that_fails_raises(end: str, client: AsyncOpenAI, rig: Rig) -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        yield TokenDelta(request.request_id, [72], "H")
        yield Die() if end == "death" else failure(request, "numerical_error", "Not a number.")

    rig.engine.script = script
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    (choice,) = (await anext(stream)).choices
    assert (choice.delta.content, choice.finish_reason) == ("H", None)
    with pytest.raises(openai.APIError) as raised:
        await anext(stream)
    assert raised.value.code == {"error": "numerical_error", "death": "engine_restarted"}[end]


async def test_leaving_a_stream_aborts_it(client: AsyncOpenAI, rig: Rig) -> None:
    def script(request: GenerateRequest) -> Iterator[Step]:
        while True:
            yield TokenDelta(request.request_id, [72], "H")

    rig.engine.script = script
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    async for _ in stream:
        break
    await stream.close()
    while rig.engine.num_open:
        await asyncio.sleep(0.001)
    assert rig.engine.aborted
