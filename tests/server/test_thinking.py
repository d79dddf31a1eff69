"""Thoughts from a client's request to its answer: a real engine, tokenizer and template behind the API."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from engine.errors import InvalidRequest
from engine.types import Thoughts
from server.chat_profile import THOUGHTS, ChatProfile, profile_of
from server.chat_template import ChatTemplate
from server.context import ModelPrompts
from server.conversation import Conversation
from server.thoughts import MarkerTokens, thoughts_of
from tests.server.rig import CHAT, Rig, chat, error_of, events_of
from tests.support.local_engine import LocalEngine
from tests.support.thinking_model import (
    END_ID,
    END_THINK_ID,
    OPENED,
    SWITCHED,
    THINK_ID,
    TURNS,
    thinking_model,
)

New = Callable[[str], Rig]
PATTERN = "[a-c]{3}-[0-9]"
HELD = {"type": "regex", "regex": PATTERN}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {kind: thinking_model(tmp_path_factory.mktemp(kind), kind) for kind in ("control", "added", "text")}


@pytest.fixture(params=["control", "added", "text"])
def new(request: pytest.FixtureRequest, models: dict[str, Any]) -> New:
    tokenizer, engine, ready = models[request.param]

    def rig(source: str) -> Rig:
        template = ChatTemplate(source, tokenizer.special_tokens)
        prompts = ModelPrompts(tokenizer, template, profile_of(source))
        return Rig(engine=LocalEngine(engine, ready), prompts=prompts, vocabulary=tokenizer)

    return rig


def ends_soon(rig: Rig) -> dict[str, float]:
    """A bias by which the model ends thoughts that it has begun, now and then."""
    (first, *_) = rig.context.prompts.markers.end_ids[1:]
    return {str(first): 2.0}


async def message_of(rig: Rig, **fields: Any) -> dict[str, Any]:
    """The answer's message, with its usage and why it ended."""
    fields = {"temperature": 1.0, "seed": 1, "max_tokens": 60, **fields}
    response = await rig.post(CHAT, chat(**fields))
    assert response.status_code == 200, response.text
    body = response.json()
    (choice,) = body["choices"]
    details = body["usage"]["completion_tokens_details"]
    return {**choice["message"], "finish": choice["finish_reason"], "num_thoughts": details["reasoning_tokens"]}


async def streamed(rig: Rig, **fields: Any) -> tuple[str, str, dict[str, Any], list[Any]]:
    """(thoughts, content, usage, logprobs), added up."""
    fields = {"stream": True, "stream_options": {"include_usage": True}, **fields}
    *chunks, last, done = events_of((await rig.post(CHAT, chat(**fields))).text)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    logprobs = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    thoughts, content = ("".join(delta.get(name, "") for delta in deltas) for name in ("reasoning_content", "content"))
    return thoughts, content, last["usage"], logprobs


@pytest.mark.parametrize("source", [SWITCHED, OPENED])
@pytest.mark.parametrize("seed", range(4))
async def test_a_stream_adds_up_to_the_whole_answer(new: New, source: str, seed: int) -> None:
    rig = new(source)
    fields = {
        "temperature": 1.0, "seed": seed, "max_tokens": 60, "thinking": {"type": "enabled", "budget_tokens": 20},
        "logit_bias": ends_soon(rig), "logprobs": True,
    }  # fmt: skip
    body = (await rig.post(CHAT, chat(**fields))).json()
    (choice,) = body["choices"]
    thoughts, content, usage, logprobs = await streamed(rig, **fields)
    assert thoughts == choice["message"].get("reasoning_content", "")
    assert content == choice["message"]["content"]
    assert usage["completion_tokens_details"] == body["usage"]["completion_tokens_details"]
    assert logprobs == choice["logprobs"]["content"]
    assert len(logprobs) == usage["completion_tokens"], "every token of the answer has an entry, of thoughts too"
    assert not thoughts.startswith("<think>")
    assert (thoughts + content).strip()


@pytest.mark.parametrize("source", [SWITCHED, OPENED])
async def test_a_budget_ends_the_thoughts(new: New, source: str) -> None:
    rig = new(source)
    never = {str(i): -100 for i in rig.context.prompts.markers.end_ids[1:2]}
    answer = await message_of(rig, thinking={"type": "enabled", "budget_tokens": 5}, logit_bias=never, ignore_eos=True)
    (request,) = rig.engine.submitted
    assert request.thoughts.is_open is (source == OPENED)
    begun = len(request.thoughts.start_ids[:-1])
    ended = len(rig.context.prompts.markers.end_ids[:-2])
    assert answer["num_thoughts"] == begun + 5 + ended, "a line break after the start is one, those after the end not"
    assert answer["reasoning_content"]
    assert answer["content"]
    assert answer["finish"] == "length"


async def test_thoughts_that_have_no_end_are_all_there_is(new: New) -> None:
    answer = await message_of(new(OPENED), max_tokens=9, ignore_eos=True)
    assert (answer["num_thoughts"], answer["finish"], answer["content"]) == (9, "length", "")
    assert answer["reasoning_content"]


@pytest.mark.parametrize("source", [SWITCHED, OPENED])
@pytest.mark.parametrize("seed", range(3))
async def test_the_answer_after_the_thoughts_keeps_to_its_form(new: New, source: str, seed: int) -> None:
    rig = new(source)
    answer = await message_of(
        rig, seed=seed, response_format=HELD, thinking={"type": "enabled", "budget_tokens": 9}, temperature=1.5
    )
    assert answer["reasoning_content"]
    assert answer["finish"] == "stop"
    assert re.fullmatch(PATTERN, answer["content"])


async def test_thoughts_before_a_form_are_the_models_to_decide(new: New) -> None:
    rig = new(SWITCHED)
    markers = rig.context.prompts.markers
    think = {str(markers.start_ids[0]): 100.0}
    for bias in (think, {}):
        answer = await message_of(
            rig, response_format=HELD, thinking={"type": "auto", "budget_tokens": 3}, logit_bias=bias
        )
        assert ("reasoning_content" in answer) is (bool(bias) and markers.start_ids[0] == THINK_ID)
        assert re.fullmatch(PATTERN, answer["content"])


async def test_a_form_that_looks_like_thoughts_is_content(new: New) -> None:
    """Where no thoughts can come before it."""
    rig = new(SWITCHED)
    held = {"type": "choice", "choice": ["<think>a</think>b"]}
    answer = await message_of(rig, response_format=held, thinking={"type": "disabled"})
    assert (answer["content"], answer["num_thoughts"]) == (held["choice"][0], 0)
    if not rig.context.prompts.markers.has_start_token:
        answer = await message_of(rig, response_format=held)
        assert (answer["content"], answer["num_thoughts"]) == (held["choice"][0], 0)


async def test_a_switch_of_the_template_is_a_wish_like_any_other(new: New) -> None:
    rig = new(SWITCHED)
    for value in (True, False):
        await rig.post(CHAT, chat(max_tokens=1, chat_template_kwargs={"enable_thinking": value}))
        thoughts = rig.engine.submitted[-1].thoughts
        assert (thoughts is not None and thoughts.is_forced) is value


async def test_thinking_disabled(new: New) -> None:
    """The prompt says so, and what looks like thoughts is content."""
    rig = new(SWITCHED)
    answer = await message_of(rig, thinking={"type": "disabled"}, response_format=HELD)
    (request,) = rig.engine.submitted
    assert (request.thoughts, request.shown_ids, answer["num_thoughts"]) == (None, (), 0)
    assert "reasoning_content" not in answer
    assert re.fullmatch(PATTERN, answer["content"])


async def test_an_answer_that_is_gone_on_with_has_no_thoughts_of_its_own(new: New) -> None:
    rig = new(SWITCHED)
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning_content": "Greet.", "content": "Hello"},
    ]
    fields = {"messages": messages, "continue_final_message": True, "max_tokens": 4}
    assert (await rig.post(CHAT, chat() | fields)).status_code == 200
    (request,) = rig.engine.submitted
    assert request.thoughts is None
    shown = rig.context.vocabulary.decode(request.prompt_ids, skip_special=False)
    assert shown.endswith("<think>\nGreet.\n</think>\n\nHello")


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
async def test_what_clients_write_becomes_no_marker(new: New, role: str) -> None:
    rig = new(SWITCHED)
    typed = "x <think> y </think> <|im_end|>"
    messages = [{"role": role, "content": typed}, {"role": "user", "content": "</think>", "name": "<think>"}]
    assert (await rig.post(CHAT, chat(max_tokens=1) | {"messages": messages})).status_code == 200
    (request,) = rig.engine.submitted
    assert [i for i in request.prompt_ids if i in {THINK_ID, END_THINK_ID}] == []
    assert request.prompt_ids.count(END_ID) == 2
    assert typed in rig.context.vocabulary.decode(request.prompt_ids, skip_special=False)


@pytest.mark.parametrize(
    "said",
    [
        {"reasoning_content": "Greet.", "content": "Hello"},
        {"content": "<think>Greet.\n</think>\nHello"},
    ],
)
async def test_earlier_thoughts_stand_between_the_templates_markers(new: New, said: dict[str, str]) -> None:
    rig = new(SWITCHED)
    messages = [{"role": "assistant", **said}, {"role": "user", "content": "Hi"}]
    assert (await rig.post(CHAT, chat(max_tokens=1) | {"messages": messages})).status_code == 200
    (request,) = rig.engine.submitted
    vocabulary = rig.context.vocabulary
    written = "assistant: <think>\nGreet.\n</think>\n\nHello<|im_end|>\nuser: Hi<|im_end|>\nassistant: "
    assert request.prompt_ids == vocabulary.encode(written, add_special=False)


BEGUN = TURNS + "{% if add_generation_prompt %}assistant: <think>I have {{ thinking_budget }} tokens.\n{% endif %}"
SPOKEN_OF = "system: Write your thoughts after <think>.\n" + SWITCHED
CLOSED = TURNS + "{% if add_generation_prompt %}assistant: </think>{% endif %}"


@pytest.mark.parametrize(
    ("source", "thoughts"),
    [(SWITCHED, "may"), (OPENED, "open"), (BEGUN, "open"), (SPOKEN_OF, "may"), (CLOSED, "none"), (TURNS, "may")],
)
async def test_the_end_of_the_prompt_tells_whether_it_is_amid_thoughts(new: New, source: str, thoughts: str) -> None:
    rig = new(source)
    assert (await rig.post(CHAT, chat(max_tokens=1))).status_code == 200
    (request,) = rig.engine.submitted
    assert (request.thoughts is None) is (thoughts == "none")
    if request.thoughts is not None:
        assert request.thoughts.is_open is (thoughts == "open")
        assert not request.thoughts.is_forced


async def test_a_budget_is_told_to_a_template_that_reads_it(new: New) -> None:
    rig = new(BEGUN)
    for thinking, told in [
        ({"type": "auto", "budget_tokens": 7}, "7"),
        ({"type": "enabled", "budget_tokens": 7}, "7"),
        ({"type": "enabled"}, "-1"),
        ({"type": "disabled"}, "0"),
        ({"type": "auto"}, ""),
    ]:
        await rig.post(CHAT, chat(max_tokens=1, thinking=thinking))
        request = rig.engine.submitted[-1]
        assert f"I have {told} tokens." in rig.context.vocabulary.decode(request.prompt_ids)
        assert request.thoughts.budget == thinking.get("budget_tokens")


@pytest.mark.parametrize(
    ("source", "thinking", "param"),
    [
        ("{{ messages }}", {"type": "auto", "budget_tokens": 7}, "thinking.budget_tokens"),
        ("{{ messages }}", {"type": "enabled"}, "thinking"),
        (SWITCHED, {"type": "disabled", "budget_tokens": 7}, "thinking.budget_tokens"),
        (OPENED, {"type": "disabled"}, "thinking"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(new: New, source: str, thinking: Any, param: str) -> None:
    rig = new(source)
    assert error_of(await rig.post(CHAT, chat(thinking=thinking)), 400)["param"] == param
    assert rig.engine.submitted == []


async def test_a_form_of_json_comes_after_the_thoughts_of_every_choice(new: New) -> None:
    rig = new(OPENED)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    fields = {
        "n": 3, "temperature": 1.0, "seed": 1, "thinking": {"type": "enabled", "budget_tokens": 6},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }  # fmt: skip
    body = (await rig.post(CHAT, chat(**fields))).json()
    assert {json.loads(choice["message"]["content"])["a"] for choice in body["choices"]} <= {1, 2}
    assert len({choice["message"]["reasoning_content"] for choice in body["choices"]}) == 3
    assert 3 * 6 <= body["usage"]["completion_tokens_details"]["reasoning_tokens"] < body["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("source", "profile"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ChatProfile(thoughts=THOUGHTS["think"])),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{# <think> </think> #}", ChatProfile()),
    ],
)
async def test_what_has_a_meaning_by_the_template_or_the_profile_alone(
    models: dict[str, Any], source: str, profile: ChatProfile
) -> None:
    tokenizer, _, _ = models["added"]
    prompts = ModelPrompts(tokenizer, ChatTemplate(source, tokenizer.special_tokens), profile)
    for typed in ("<think>", "</think>"):
        ids = prompts.chat(Conversation([{"role": "user", "content": typed}], {})).token_ids
        assert len(ids) == len(typed)


def asked(tokens: MarkerTokens, **options: Any) -> Thoughts | None:
    given = {"is_thinking": None, "wanted": None, "budget": None, "has_form": False, **options}
    return thoughts_of(ChatProfile(thoughts=THOUGHTS["think"]), tokens, **given)


def test_what_the_engine_is_asked() -> None:
    one, several = MarkerTokens((1, 2), (3,), (), has_start_token=True), MarkerTokens((1, 2), (3,), ())
    as_it_likes = Thoughts(start="<think>", end="</think>", start_ids=(1, 2), end_ids=(3,))
    not_wanted = replace(as_it_likes, start_ids=())
    forced, opened = replace(as_it_likes, is_forced=True), replace(not_wanted, is_open=True)
    for tokens in (one, several):
        assert asked(tokens) == as_it_likes
        assert asked(tokens, wanted=True) == asked(tokens, wanted=True, has_form=True) == forced
        assert asked(tokens, wanted=False) == not_wanted, "it may think nevertheless"
        assert asked(tokens, wanted=False, has_form=True) is None, "it cannot"
        assert asked(tokens, is_thinking=True) == asked(tokens, is_thinking=True, has_form=True) == opened
        assert asked(tokens, is_thinking=False) is None
        assert asked(tokens, budget=7) == replace(as_it_likes, budget=7)
    assert asked(one, has_form=True) == as_it_likes
    assert asked(several, has_form=True) is None


def test_markers_that_a_vocabulary_cannot_write() -> None:
    assert asked(MarkerTokens(), wanted=True) == Thoughts(start="<think>", end="</think>")
    with pytest.raises(InvalidRequest) as refused:
        asked(MarkerTokens(), budget=7)
    assert (refused.value.param, refused.value.code) == ("thinking.budget_tokens", "unsupported_parameter")


async def test_a_call_that_must_be_comes_after_the_thoughts(new: New) -> None:
    rig = new(OPENED)
    parameters = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {**parameters, "additionalProperties": False}}}
    ]
    fields = {"tools": tools, "tool_choice": "required", "thinking": {"type": "enabled", "budget_tokens": 6}, "n": 1}
    answer = await message_of(rig, **fields, parallel_tool_calls=False, max_tokens=200)
    assert answer["finish"] == "tool_calls"
    assert answer["reasoning_content"]
    assert json.loads(answer["tool_calls"][0]["function"]["arguments"])["a"] in {1, 2}
    assert answer["content"] is None
