"""A stream adds up to the answer that is not streamed: with every feature, whatever the borders of its deltas.

The text of an answer is cut into deltas at random; the chunks are added up as the OpenAI SDK does it, and held against
the whole answer field by field.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.lib.streaming._deltas import accumulate_delta

from engine.types import GenerateRequest, TokenDelta
from server.chat_profile import THOUGHTS, ChatProfile
from server.context import ChatPrompt
from server.conversation import Conversation
from server.tools.families import FAMILIES
from server.tools.grammar import SHAPES
from tests.server.rig import CHAT, TEXT, Rig, chat, events_of, text
from tests.server.test_tool_calls import answers
from tests.support.fake_engine import BytePrompts, deltas_for
from tests.support.tool_texts import SCHEMA

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
OF_A_RESPONSE = frozenset({"id", "object", "created", "choices", "usage"})
"""What a whole answer and the chunks of a stream do not share, or not as it is."""
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", "get_weather")]
WORDS = st.text(st.one_of(st.sampled_from('ab é\n{}[]"<>'), st.characters(codec="utf-8")), max_size=24)


@dataclass(frozen=True)
class Feature:
    """What a request asks for, and what a model of some kind answers to it.

    Attributes:
        answer: texts that the model may write.
        is_thinking: the prompt ends amid thoughts; None if the answer may begin with some.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    answer: st.SearchStrategy[str] = WORDS
    profile: ChatProfile = field(default_factory=ChatProfile)
    is_thinking: bool | None = None
    path: str = CHAT


def thinking(name: str) -> st.SearchStrategy[str]:
    """Texts with the markers of thoughts, in places where they belong and where they do not."""
    parts = st.one_of(st.sampled_from([*THOUGHTS[name], "<", "</", "[", "\n", " "]), WORDS)
    return st.lists(parts, max_size=6).map("".join)


def with_tools(family: str, thoughts: str | None = None) -> ChatProfile:
    variables, markers = frozenset({"tools"}), THOUGHTS[thoughts] if thoughts else None
    return ChatProfile(variables, family, markers, call_form=family if family in SHAPES else "")


def of_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


FEATURES = {
    "plain": Feature(),
    "several choices": Feature({"n": 3}),
    "log probabilities": Feature({"logprobs": True, "top_logprobs": 2}),
    "log probabilities of several choices": Feature({"logprobs": True, "n": 2}),
    "sampling": Feature({"temperature": 0.5, "seed": 3, "stop": ["\n\n"], "logit_bias": {"65": 2}}),
    "service tier": Feature({"service_tier": "flex"}),
    "remarks": Feature({"metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k"}),
    "json object": Feature({"response_format": {"type": "json_object"}}, st.dictionaries(WORDS, WORDS).map(json.dumps)),
    "json schema": Feature({"response_format": of_schema({"type": "object"})}, st.just('{"a": "\\u00e9 é"}')),
    "regex": Feature({"response_format": {"type": "regex", "regex": "a+"}}, st.just("aaaa")),
    "choice": Feature({"response_format": {"type": "choice", "choice": ["yes", "no"]}}, st.sampled_from(["yes", "no"])),
    "lark": Feature({"response_format": {"type": "lark", "lark": 'start: "a"'}}, st.just("a")),
    "final message": Feature(
        {"messages": [USER, {"role": "assistant", "content": "So"}], "continue_final_message": True}
    ),
    **{
        f"thoughts: {name}": Feature({"logprobs": True}, thinking(name), ChatProfile(thoughts=THOUGHTS[name]))
        for name in THOUGHTS
    },
    **{
        f"open thoughts: {name}": Feature({}, thinking(name), ChatProfile(thoughts=THOUGHTS[name]), is_thinking=True)
        for name in THOUGHTS
    },
    **{f"tools: {family}": Feature({"tools": TOOLS}, answers(family), with_tools(family)) for family in FAMILIES},
    "tools written out": Feature(
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        answers("hermes"),
        ChatProfile(family_name="hermes"),
    ),
    "tools of several choices": Feature({"tools": TOOLS, "n": 2}, answers("hermes"), with_tools("hermes")),
    "tools and log probabilities": Feature(
        {"tools": TOOLS, "logprobs": True}, answers("seed_oss"), with_tools("seed_oss")
    ),
    "no tools": Feature({"tools": TOOLS, "tool_choice": "none"}, answers("hermes"), with_tools("hermes")),
    "a tool that must be called": Feature(
        {"tools": TOOLS, "tool_choice": "required"}, answers("hermes"), with_tools("hermes")
    ),
    "a tool that is named": Feature(
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        answers("hermes"),
        with_tools("hermes"),
    ),
    "thoughts and tools": Feature(
        {"tools": TOOLS},
        st.tuples(thinking("think"), answers("hermes")).map("".join),
        with_tools("hermes", "think"),
    ),
    "open thoughts and tools": Feature(
        {"tools": TOOLS},
        st.tuples(thinking("seed"), answers("seed_oss")).map("".join),
        with_tools("seed_oss", "seed"),
        is_thinking=True,
    ),
    "prediction": Feature({"prediction": {"type": "content", "content": "ab"}}),
    "text": Feature(path=TEXT),
    "text: echo": Feature({"echo": True, "n": 2}, path=TEXT),
    "text: json": Feature({"response_format": {"type": "json_object"}}, st.just("{}"), path=TEXT),
    "text: choices of several prompts": Feature({"prompt": ["a", "b"], "n": 2}, path=TEXT),
    "text: log probabilities": Feature({"logprobs": 2, "n": 2}, path=TEXT),
    "text: those of prompts": Feature({"prompt": ["abc", "é"], "logprobs": 2, "echo": True}, path=TEXT),
    "text: those of prompts of a token": Feature(
        {"prompt": ["a", "b"], "logprobs": 1, "echo": True, "n": 2}, path=TEXT
    ),
    "text: those of a prompt with several choices": Feature({"logprobs": 0, "echo": True, "n": 3}, path=TEXT),
    "text: nothing but the prompt": Feature({"logprobs": 1, "echo": True, "max_tokens": 0}, path=TEXT),
}


class Prompts(BytePrompts):
    """Of a model of some kind."""

    def __init__(self, feature: Feature) -> None:
        self.profile = feature.profile
        self._is_thinking = feature.is_thinking

    def chat(self, conversation: Conversation) -> ChatPrompt:
        """See ``PromptEncoder.chat``."""
        return super().chat(conversation)._replace(is_thinking=self._is_thinking)


class NoTrial:
    """Instead of a process that tries grammars out: these here are known to be sound."""

    async def verdict(self, grammar: str, param: str) -> str:
        """See ``GrammarTrial.verdict``."""
        return ""

    async def close(self) -> None:
        """See ``GrammarTrial.close``."""


def added_up(chunks: Sequence[Any], whole: Any, path: str) -> Any:
    """The answer that the chunks of a stream amount to, in the form of the whole one.

    What a chunk says of one choice is a delta to what others have said of it: so choices, messages and log
    probabilities are added up as the SDK adds up deltas. A finish reason comes once.
    """
    choices: dict[int, dict[Any, Any]] = {}
    ends: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            index = choice["index"]
            assert index not in ends, "nothing follows the end of a choice"
            if choice["finish_reason"] is not None:
                ends[index] = choice["finish_reason"]
            said = {key: choice[key] for key in ("delta" if path == CHAT else "text", "logprobs")}
            if index not in choices and path == CHAT:
                assert said["delta"]["role"] == "assistant", "the role comes first"
            _add_logprobs(choices.setdefault(index, {}), said.pop("logprobs"))
            choices[index] = accumulate_delta(choices[index], json.loads(json.dumps(said)))
    assert sorted(choices) == sorted(ends) == [choice["index"] for choice in whole["choices"]]
    made = []
    for index in sorted(choices):
        logprobs, said = choices[index].pop("logprobs"), choices[index]
        if path == CHAT:
            said = {"message": _message(said.pop("delta"))}
        made.append({"index": index, **said, "logprobs": logprobs, "finish_reason": ends[index]})
    return {**whole, "choices": made}


def _add_logprobs(choice: dict[Any, Any], logprobs: Any) -> None:
    """Lists of tokens go on; the SDK's streams have no other way to add them up either."""
    known = choice.setdefault("logprobs", None)
    if known is None or logprobs is None:
        choice["logprobs"] = known or logprobs
        return
    for name, entries in logprobs.items():
        known[name] = known[name] + entries if entries is not None else known[name]


def _message(delta: dict[Any, Any]) -> dict[str, Any]:
    calls = [
        {name: value for name, value in call.items() if name != "index"} for call in delta.pop("tool_calls", None) or ()
    ]
    message = {"content": None, "refusal": None, **delta}
    return message | ({"tool_calls": calls} if calls else {})


def without_ids(answer: Any) -> Any:
    """An answer without ids of tool calls, which differ from one to the next: each call has one of its own."""
    ids = [call.pop("id") for choice in answer["choices"] for call in choice.get("message", {}).get("tool_calls", ())]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    return answer


async def both(feature: Feature, texts: Sequence[str], cuts: Sequence[Sequence[int]], limit: int) -> tuple[Any, Any]:
    """The whole answer, and the events of the stream."""

    def script(request: GenerateRequest) -> Iterator[TokenDelta]:
        number = int(request.request_id.rpartition("-")[2]) % len(texts)
        return deltas_for(request, texts[number], cuts[number])

    rig = Rig(script, prompts=Prompts(feature), grammars=NoTrial())
    body = {**(chat() if feature.path == CHAT else text()), "max_tokens": limit, **feature.fields}
    whole = await rig.post(feature.path, body)
    assert whole.status_code == 200, whole.text
    streamed = await rig.post(feature.path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    return whole.json(), events_of(streamed.text)


CUTS = st.lists(st.integers(1, 60), max_size=10) | st.just(list(range(1, 400)))


@pytest.mark.parametrize("name", FEATURES)
def test_a_stream_adds_up_to_the_whole_answer(name: str) -> None:
    feature = FEATURES[name]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @example([""], [[]], 1)
    @example(["", "a"], [[], [1]], 600)
    @given(
        st.lists(feature.answer, min_size=1, max_size=3),
        st.lists(CUTS, min_size=3, max_size=3),
        st.integers(1, 80) | st.just(600),
    )
    def check(texts: list[str], cuts: list[list[int]], limit: int) -> None:
        whole, (*chunks, usage, done) = asyncio.run(both(feature, texts, (cuts * 3)[: len(texts)], limit))
        assert done == "[DONE]"
        assert usage["choices"] == []
        assert usage["usage"] == whole["usage"]
        assert {chunk["usage"] for chunk in chunks} == {None}
        for chunk in [*chunks, usage]:
            for key in chunk.keys() - OF_A_RESPONSE:
                assert chunk[key] == whole[key], key
        assert set().union(*chunks) == whole.keys()
        assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
        assert without_ids(added_up(chunks, whole, feature.path)) == without_ids(whole)

    check()


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("thoughts: think", "<think>a</thi", {"content": "", "reasoning_content": "a</thi"}),
        ("thoughts: think", "<think>a</think>b<", {"content": "b<", "reasoning_content": "a"}),
        ("tools: hermes", '<tool_call>\n{"na', {"content": '<tool_call>\n{"na'}),
        ("thoughts and tools", "<think>a</think>b<tool_c", {"content": "b<tool_c", "reasoning_content": "a"}),
    ],
)
def test_what_was_held_back_comes_with_the_end(name: str, answer: str, message: dict[str, str]) -> None:
    whole, _ = asyncio.run(both(FEATURES[name], [answer], [[]], 600))
    assert whole["choices"][0]["message"] == {"role": "assistant", "refusal": None, **message}
