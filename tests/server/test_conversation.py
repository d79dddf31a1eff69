"""Messages and tools of a chat as the model's template is given them: every field of theirs is seen there."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from server.chat_profile import ChatProfile, profile_of
from server.chat_template import ChatTemplate
from server.context import ChatPrompt, ModelPrompts
from server.conversation import Conversation
from tests.server.rig import CHAT, Rig, chat, error_of
from tests.support.fake_engine import READY, BytePrompts, FakeEngine
from tests.support.tiny_bpe import with_control_tokens

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
CALL = {"id": "call_7", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, "é"]}'}}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": PARAMETERS},
}
TAKES_TOOLS = ChatProfile(variables=frozenset({"tools"}), family_name="hermes", shows_names=True)
WRITTEN_OUT = ChatProfile(family_name="hermes")


class Recording(BytePrompts):
    """Keeps the last conversation."""

    def __init__(self, profile: ChatProfile) -> None:
        self.profile = profile
        self.conversation = Conversation([], {})

    def chat(self, conversation: Conversation) -> ChatPrompt:
        """See ``PromptEncoder.chat``."""
        self.conversation = conversation
        return ChatPrompt([1])


async def given(messages: list[dict[str, Any]], profile: ChatProfile = TAKES_TOOLS, **fields: Any) -> Conversation:
    """What the template of a model of some kind is given."""
    prompts = Recording(profile)
    response = await Rig(prompts=prompts).post(CHAT, {**chat(), "messages": messages, **fields})
    assert response.status_code == 200, response.text
    return prompts.conversation


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"role": "user", "content": "a", "name": "ann"}, {"role": "user", "content": "a", "name": "ann"}),
        ({"role": "system", "content": "a", "name": "s"}, {"role": "system", "content": "a", "name": "s"}),
        ({"role": "developer", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "assistant", "content": "No", "refusal": "!"}, {"role": "assistant", "content": "No!"}),
        ({"role": "assistant", "refusal": "I won't."}, {"role": "assistant", "content": "I won't."}),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "No: "}, {"type": "refusal", "refusal": "no."}]},
            {"role": "assistant", "content": "No: no."},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "hm"},
            {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        ),
    ],
)
async def test_a_message_as_the_template_knows_it(message: dict[str, Any], shown: dict[str, Any]) -> None:
    assert (await given([message, USER])).messages == [shown, USER]


async def test_a_model_that_is_shown_no_names_reads_them() -> None:
    messages = [{"role": "user", "content": "a", "name": "ann"}, {"role": "user", "content": "b", "name": "bo"}]
    shown = (await given(messages, WRITTEN_OUT)).messages
    assert [message["content"] for message in shown] == ["ann: a", "bo: b"]


@pytest.mark.parametrize(("source", "shows"), [("{{ messages[0].name }}", True), ("{{ messages[0].content }}", False)])
def test_which_templates_show_names(source: str, shows: bool) -> None:
    tokenizer = with_control_tokens([])
    template = ChatTemplate(source, tokenizer.special_tokens)
    assert ModelPrompts(tokenizer, template, profile_of(source)).profile.shows_names is shows


async def test_calls_and_what_they_gave() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_7", "content": "done"},
    ]
    _, assistant, tool = (await given(messages)).messages
    function = {"name": "f", "arguments": {"a": [1, "é"]}}
    assert assistant["tool_calls"] == [{"id": "call_7", "type": "function", "function": function}]
    assert tool == {"role": "tool", "content": "done", "tool_call_id": "call_7"}
    as_text = ChatProfile(frozenset({"tools"}), "deepseek_v3", arguments_as_text=True)
    _, assistant, _ = (await given(messages, as_text)).messages
    assert assistant["tool_calls"][0]["function"]["arguments"] == CALL["function"]["arguments"]  # type: ignore[index]


async def test_calls_are_written_out_for_a_model_that_has_no_place_for_them() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": "So:", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_7", "content": "done"},
    ]
    _, assistant, tool = (await given(messages, WRITTEN_OUT)).messages
    assert assistant == {
        "role": "assistant",
        "content": 'So:\n<tool_call>\n{"name": "f", "arguments": {"a": [1, "é"]}}\n</tool_call>',
    }
    assert tool == {"role": "user", "content": "<tool_response>\ndone\n</tool_response>"}


async def test_tools_are_shown_to_the_model() -> None:
    conversation = await given([USER], tools=[TOOL, {"type": "function", "function": {"name": "bare"}}])
    bare = {"name": "bare", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert conversation.variables["tools"] == [TOOL, {"type": "function", "function": bare}]
    assert conversation.messages == [USER]


async def test_tools_are_written_out_for_a_model_that_has_no_place_for_them() -> None:
    conversation = await given([{"role": "system", "content": "Be brief."}, USER], WRITTEN_OUT, tools=[TOOL])
    assert conversation.variables == {}
    system, user = conversation.messages
    assert user == USER
    for said in ("Be brief.", '"name": "get_weather"', "Tells the weather.", '"city"', "<tool_call>"):
        assert said in system["content"]


@pytest.mark.parametrize("profile", [TAKES_TOOLS, WRITTEN_OUT])
async def test_no_tools_are_shown_where_none_may_be_called(profile: ChatProfile) -> None:
    conversation = await given([USER], profile, tools=[TOOL], tool_choice="none")
    assert (conversation.messages, conversation.variables) == ([USER], {})


async def test_a_schema_is_described_to_the_model() -> None:
    schema = {"name": "ages", "schema": {"type": "array"}, "description": "How old each of them is."}
    answer_format = {"type": "json_schema", "json_schema": schema}
    conversation = await given([USER], TAKES_TOOLS, response_format=answer_format)
    told = {"role": "system", "content": "Answer with ages as JSON: How old each of them is."}
    assert conversation.messages == [told, USER]


@pytest.mark.parametrize("arguments", ["{", "[]", "1", '{"a": NaN}', '{"a": 1, "a": 2}', "{'a': 1}"])
async def test_arguments_that_are_no_object_are_refused_by_their_path(arguments: str) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}]
    error = error_of(await Rig(prompts=Recording(TAKES_TOOLS)).post(CHAT, {**chat(), "messages": messages}), 400)
    assert error["param"] == "messages[1].tool_calls[0].function.arguments"


async def test_a_final_message_is_continued_where_it_ends() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_control_tokens(["<|im_start|>", "<|im_end|>"])
    prompts = ModelPrompts(tokenizer, ChatTemplate(source, tokenizer.special_tokens), profile_of(source))
    engine = FakeEngine(ready=replace(READY, vocab_size=tokenizer.vocab_size))
    rig = Rig(engine=engine, prompts=prompts, vocabulary=tokenizer)
    messages = [USER, {"role": "assistant", "content": "Once upon"}]
    for continues in (False, True):
        body = {**chat(), "messages": messages, "continue_final_message": continues}
        assert (await rig.post(CHAT, body)).status_code == 200
    answered, continued = (tokenizer.decode(each.prompt_ids, skip_special=False) for each in engine.submitted)
    assert continued.endswith("<|im_start|>assistant\nOnce upon")
    assert answered == continued + "<|im_end|>\n<|im_start|>assistant\n"
