"""Chat completions over ASGI: what reaches the engine, and what comes back."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from msgspec.structs import replace

from engine.types import FinishReason, TokenDelta, TokenLogprobs
from server.context import ChatPrompt
from server.conversation import Conversation
from server.generation import LONG_TEXT_CHARS
from tests.server.rig import CHAT, Rig, chat, error_of, events_of
from tests.support.fake_engine import (
    EOS,
    MODEL,
    NO_DETAILS,
    READY,
    VOCAB_SIZE,
    BytePrompts,
    FakeEngine,
    deltas_for,
    says,
)


async def test_a_whole_answer() -> None:
    rig = Rig(says("Grüß dich"))
    response = await rig.post(CHAT, chat("Hi"))
    assert response.status_code == 200
    body = response.json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1_700_000_000
    num_prompt, num_answer = len("user: Hi\n"), len("Grüß dich".encode())
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Grüß dich", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_answer,
            "total_tokens": num_prompt + num_answer,
            "prompt_tokens_details": {"cached_tokens": num_prompt // 2},
            "completion_tokens_details": NO_DETAILS,
        },
        "system_fingerprint": READY.fingerprint,
    }


async def test_every_sampling_field_reaches_the_engine() -> None:
    rig = Rig()
    fields: dict[str, Any] = {
        "max_tokens": 7,
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.75,
        "presence_penalty": -0.75,
        "logit_bias": {"5": -1.5, "6": 2},
        "seed": 2**64 - 1,
        "stop": ["x", "y"],
        "stop_token_ids": [1, 2],
        "min_tokens": 2,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 4,
    }
    assert (await rig.post(CHAT, chat(**fields))).status_code == 200
    (request,) = rig.engine.submitted
    sent = {name: getattr(request.sampling, name) for name in request.sampling.__struct_fields__}
    expected = fields | {
        "logit_bias": ((5, -1.5), (6, 2.0)),
        "stop": ("x", "y"),
        "stop_token_ids": (1, 2),
        "logprobs": 4,
        "choice": 0,
    }
    del expected["top_logprobs"]
    assert sent == expected
    assert request.prompt_ids == list(b"user: Hi\n")
    assert request.arrived_at_s > 0


async def test_defaults() -> None:
    rig = Rig()
    await rig.post(CHAT, chat())
    (request,) = rig.engine.submitted
    assert request.sampling.max_tokens == READY.max_model_len - len(request.prompt_ids)
    assert request.sampling.temperature == 1.0
    assert request.sampling.logprobs is None
    assert (request.priority, request.tenant) == (0, "")


async def test_without_a_seed_each_request_gets_another() -> None:
    rig = Rig()
    for _ in range(3):
        await rig.post(CHAT, chat())
    assert len({request.sampling.seed for request in rig.engine.submitted}) == 3


async def test_n_choices_share_the_seed_and_differ_in_their_choice() -> None:
    def numbered(request: Any) -> Any:
        return deltas_for(request, f"answer {request.sampling.choice}")

    rig = Rig(numbered)
    body = (await rig.post(CHAT, chat(n=3, seed=5))).json()
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [
        (0, "answer 0"),
        (1, "answer 1"),
        (2, "answer 2"),
    ]
    assert [(r.sampling.seed, r.sampling.choice) for r in rig.engine.submitted] == [(5, 0), (5, 1), (5, 2)]
    assert len({r.request_id for r in rig.engine.submitted}) == 3
    prompt = len(b"user: Hi\n")
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (prompt, 3 * len("answer 0"))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens_by_either_name(name: str) -> None:
    rig = Rig(says("abcdef"))
    body = (await rig.post(CHAT, chat(**{name: 3}))).json()
    assert body["choices"][0]["message"]["content"] == "abc"
    assert body["choices"][0]["finish_reason"] == "length"


async def test_both_names_of_max_tokens_may_agree() -> None:
    assert (await Rig().post(CHAT, chat(max_tokens=3, max_completion_tokens=3))).status_code == 200


async def test_the_developer_speaks_as_the_system_and_parts_are_joined() -> None:
    rig = Rig()
    parts = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    await rig.post(CHAT, chat() | {"messages": messages})
    assert bytes(rig.engine.submitted[0].prompt_ids) == b"system: Be brief.\nuser: one, two\n"


@pytest.mark.parametrize(
    ("tier", "priority", "shown"),
    [("auto", 0, "default"), ("default", 0, "default"), ("flex", 1, "flex"), ("priority", -1, "priority")],
)
async def test_service_tiers(tier: str, priority: int, shown: str) -> None:
    rig = Rig()
    body = (await rig.post(CHAT, chat(service_tier=tier))).json()
    assert body["service_tier"] == shown
    chunks = events_of((await rig.post(CHAT, chat(service_tier=tier, stream=True))).text)
    assert {chunk["service_tier"] for chunk in chunks[:-1]} == {shown}
    assert [request.priority for request in rig.engine.submitted] == [priority, priority]


async def test_logprobs() -> None:
    rig = Rig(says("é\n"))
    body = (await rig.post(CHAT, chat(logprobs=True, top_logprobs=2))).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert [(entry["token"], entry["bytes"]) for entry in content] == [
        (r"bytes:\xc3", [0xC3]),
        (r"bytes:\xa9", [0xA9]),
        ("\n", [0x0A]),
    ]
    assert [len(entry["top_logprobs"]) for entry in content] == [2, 2, 2]
    assert content[2]["top_logprobs"][1] == {"token": "\x0b", "logprob": -1.5, "bytes": [0x0B]}


async def test_logprobs_without_alternatives() -> None:
    body = (await Rig(says("a")).post(CHAT, chat(logprobs=True))).json()
    assert [entry["top_logprobs"] for entry in body["choices"][0]["logprobs"]["content"]] == [[]]


async def test_minus_infinity_is_sent_as_a_number_and_control_tokens_by_name() -> None:
    def script(request: Any) -> Any:
        entry = TokenLogprobs(EOS, float("-inf"), [(97, float("-inf"))])
        yield TokenDelta(request.request_id, [EOS], "", [entry], FinishReason.STOP)

    body = (await Rig(script).post(CHAT, chat(logprobs=True, top_logprobs=1))).json()
    (entry,) = body["choices"][0]["logprobs"]["content"]
    assert entry == {
        "token": "<eos>",
        "logprob": -9999.0,
        "bytes": None,
        "top_logprobs": [{"token": "a", "logprob": -9999.0, "bytes": [97]}],
    }


async def test_an_unknown_model_is_not_found_and_its_name_is_cut_and_escaped() -> None:
    response = await Rig().post(CHAT, chat() | {"model": "\x1b[31m" + "x" * 1_000_000})
    error = error_of(response, 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert r"\x1b[31mxxx" in error["message"]
    assert len(error["message"]) < 200


async def test_any_served_name_will_do_and_is_answered_by() -> None:
    body = (await Rig().post(CHAT, chat() | {"model": "alias/of-it"})).json()
    assert body["model"] == "alias/of-it"


class CountingPrompts(BytePrompts):
    """Counts what is tokenised."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def chat(self, conversation: Conversation) -> ChatPrompt:
        self.num_calls += 1
        return super().chat(conversation)


@pytest.mark.parametrize(
    ("num_chars", "max_tokens", "tokenised"),
    [
        (1024 * 16, None, True),
        (1024 * 16 + 1, None, False),
        (7_000_000, None, False),
        (1017, 1, True),
        (1000, 18, True),
    ],
)
async def test_what_cannot_fit_is_refused_before_it_is_handed_over(
    num_chars: int, max_tokens: int | None, tokenised: bool
) -> None:
    prompts = CountingPrompts()
    rig = Rig(prompts=prompts)
    error = error_of(await rig.post(CHAT, chat("x" * num_chars, max_tokens=max_tokens)), 400)
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert str(READY.max_model_len) in error["message"]
    assert rig.engine.submitted == []
    assert prompts.num_calls == tokenised


async def test_the_longest_prompt_and_the_longest_answer_that_fit() -> None:
    overhead = len("user: \n")
    rig = Rig(says("abc"))
    assert (await rig.post(CHAT, chat("x" * (1024 - overhead - 1)))).status_code == 200
    assert rig.engine.submitted[-1].sampling.max_tokens == 1
    assert (await rig.post(CHAT, chat("", max_tokens=1024 - overhead))).status_code == 200


async def test_a_long_text_is_tokenised_off_the_event_loop() -> None:
    threads = []

    class Watching(BytePrompts):
        def chat(self, conversation: Conversation) -> ChatPrompt:
            threads.append(threading.current_thread() is threading.main_thread())
            return ChatPrompt([1])

    rig = Rig(engine=FakeEngine(ready=replace(READY, max_model_len=1 << 20)), prompts=Watching())
    await rig.post(CHAT, chat("x" * (LONG_TEXT_CHARS - 100)))
    await rig.post(CHAT, chat("x" * (LONG_TEXT_CHARS + 1)))
    assert threads == [True, False]


async def test_token_ids_are_held_against_the_models_vocabulary() -> None:
    for fields in ({"stop_token_ids": [VOCAB_SIZE]}, {"logit_bias": {str(VOCAB_SIZE): 1}}):
        error = error_of(await Rig().post(CHAT, chat(**fields)), 400)
        assert "from 0 to 257" in error["message"]
