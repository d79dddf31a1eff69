"""Text completions over ASGI."""

from __future__ import annotations

from typing import Any

import pytest

from engine.types import FinishReason, GenerateRequest, TokenDelta, TokenLogprobs
from tests.server.rig import TEXT, Rig, error_of, events_of, text
from tests.support.fake_engine import MODEL, NO_DETAILS, READY, BytePrompts, deltas_for, says


async def test_a_whole_answer() -> None:
    body = (await Rig(says("abc")).post(TEXT, text("Once"))).json()
    assert body.pop("id").startswith("cmpl-")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 3,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": NO_DETAILS,
        },
    }


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [b"ab"]),
        (["a", "bc"], [b"a", b"bc"]),
        ([97, 98], [b"ab"]),
        ([[97], [98, 99]], [b"a", b"bc"]),
    ],
)
async def test_the_four_kinds_of_prompt(prompt: Any, prompts: list[bytes]) -> None:
    rig = Rig()
    body = (await rig.post(TEXT, text(prompt))).json()
    assert [bytes(request.prompt_ids) for request in rig.engine.submitted] == prompts
    assert [choice["index"] for choice in body["choices"]] == list(range(len(prompts)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))


async def test_n_choices_of_several_prompts_are_in_order_of_prompts() -> None:
    def echo(request: GenerateRequest) -> Any:
        return deltas_for(request, f"{bytes(request.prompt_ids).decode()}{request.sampling.choice}")

    body = (await Rig(echo).post(TEXT, text(["a", "b"], n=2, best_of=2))).json()
    assert [choice["text"] for choice in body["choices"]] == ["a0", "a1", "b0", "b1"]
    assert body["usage"]["prompt_tokens"] == 2


async def test_each_prompt_gets_what_is_left_of_its_context() -> None:
    rig = Rig()
    await rig.post(TEXT, text(["a", "bcd"]))
    assert [r.sampling.max_tokens for r in rig.engine.submitted] == [READY.max_model_len - 1, READY.max_model_len - 3]


@pytest.mark.parametrize("prompt", ["x" * 1024, ["a", "x" * 1024], [1] * 1024, [[1], [1] * 1024], "x" * 100_000])
async def test_a_prompt_that_cannot_fit(prompt: Any) -> None:
    rig = Rig()
    error = error_of(await rig.post(TEXT, text(prompt)), 400)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert rig.engine.submitted == []


async def test_logprobs_in_the_older_format() -> None:
    body = (await Rig(says("aé€b")).post(TEXT, text(logprobs=2))).json()
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [
        "a",
        r"bytes:\xc3",
        r"bytes:\xa9",
        r"bytes:\xe2",
        r"bytes:\x82",
        r"bytes:\xac",
        "b",
    ]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 2, 2, 3]
    assert logprobs["token_logprobs"][0] == pytest.approx(-0.597)
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}


async def test_logprobs_of_zero_reports_the_tokens_alone() -> None:
    body = (await Rig(says("a")).post(TEXT, text(logprobs=0))).json()
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{}]


async def test_the_chosen_token_is_among_the_top_even_if_it_is_unlikely() -> None:
    def script(request: GenerateRequest) -> Any:
        entry = TokenLogprobs(97, -7.0, [(98, -0.5), (98, -0.75)])
        yield TokenDelta(request.request_id, [97], "a", [entry], FinishReason.STOP)

    body = (await Rig(script).post(TEXT, text(logprobs=2))).json()
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"b": -0.5, "a": -7.0}]


async def test_a_stream() -> None:
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events_of((await Rig(says("ab")).post(TEXT, text(**fields))).text)
    assert done == "[DONE]"
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "b", "logprobs": None, "finish_reason": "stop"}],
    ]
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 6)
    assert {chunk["object"] for chunk in [*chunks, usage]} == {"text_completion"}


async def test_equal_prompts_without_a_seed_get_seeds_of_their_own() -> None:
    rig = Rig()
    await rig.post(TEXT, text(prompt=["once"] * 4))
    assert len({request.sampling.seed for request in rig.engine.submitted}) == 4
    rig = Rig()
    await rig.post(TEXT, text(prompt=["once"] * 4, seed=7))
    assert {request.sampling.seed for request in rig.engine.submitted} == {7}


async def test_the_longest_text_is_bounded_by_the_longest_token() -> None:
    rig = Rig(max_chars_per_token=64)
    assert (await rig.post(TEXT, text(prompt="x" * (64 * READY.max_model_len + 1)))).status_code == 400
    tokens_of_64 = BytePrompts()
    tokens_of_64.text = lambda prompt: [1] * -(-len(prompt) // 64)
    rig = Rig(max_chars_per_token=64, prompts=tokens_of_64)
    assert (await rig.post(TEXT, text(prompt=" " * (60 * READY.max_model_len), max_tokens=1))).status_code == 200
