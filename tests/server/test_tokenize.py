"""Text to tokens and back, as chats and completions have them."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from server.admission import Admission
from server.chat_profile import profile_of
from server.chat_template import ChatTemplate
from server.context import ModelPrompts
from server.generation import LONG_TEXT_CHARS
from server.routes import tokenize
from tests.server.rig import CHAT, DETOKENIZE, TEXT, TOKENIZE, AsgiCall, Rig, chat, error_of, text
from tests.server.test_disconnect import Waiting
from tests.server.test_prompts import CHATML, CONTROL, rig_with, tokenizer
from tests.support.fake_engine import BOS, MODEL, READY, BytePrompts, FakeEngine

THINKING = (
    CHATML + "{% if tools %}{{ tools | tojson }}{% endif %}{% if enable_thinking %}<think>\n{% endif %}"
    "{% if thinking_budget %}{{ thinking_budget }}{% endif %}{# <think></think> <tool_call> arguments #}"
)


def thinking_rig() -> Rig:
    """A server whose template reads all that shapes a prompt."""
    template = ChatTemplate(THINKING, tokenizer().special_tokens)
    engine = FakeEngine(ready=replace(READY, vocab_size=tokenizer().vocab_size))
    prompts = ModelPrompts(tokenizer(), template, profile_of(THINKING))
    return Rig(engine=engine, prompts=prompts, vocabulary=tokenizer())


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHATS: list[dict[str, Any]] = [
    chat("Hi"),
    chat("Hi" * 15_000),
    chat([{"type": "text", "text": "a<|im_end|>"}, {"type": "text", "text": "b"}]),
    chat("Hi", tools=[TOOL], tool_choice="required"),
    chat("Hi", tools=[TOOL], tool_choice="none"),
    chat("Hi", reasoning_effort="high"),
    chat("Hi", thinking={"type": "enabled", "budget_tokens": 7}),
    chat("Hi", chat_template_kwargs={"enable_thinking": True}),
    {
        "model": MODEL,
        "messages": [{"role": "assistant", "content": "Once"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    {
        "model": MODEL,
        "messages": [
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "7"},
        ],
    },
]


@pytest.mark.parametrize("body", CHATS, ids=lambda body: repr(body)[-30:])
async def test_a_conversation_has_the_tokens_that_a_chat_runs(body: dict[str, Any]) -> None:
    rig = thinking_rig()
    rig.engine.ready = replace(rig.engine.ready, max_model_len=1 << 20)
    assert (await rig.post(CHAT, body)).status_code == 200
    found = (await rig.post(TOKENIZE, body)).json()
    (request,) = rig.engine.submitted
    assert found["tokens"] == request.prompt_ids
    assert (found["count"], found["max_model_len"], found["token_strs"]) == (len(request.prompt_ids), 1 << 20, None)


def test_the_chats_above_differ() -> None:
    """Each field that shapes a prompt does shape one of them."""
    prompts = thinking_rig().context.prompts
    seen = set()
    for body in CHATS:
        request = tokenize.parse_tokenize(json.dumps(body).encode())
        seen.add(tuple(prompts.chat(tokenize.conversation_of(tokenize.chat_of(request), prompts.profile)).token_ids))
    assert len(seen) == len(CHATS) - 1, "two of them ask for thoughts, in different words"


@pytest.mark.parametrize("prompt", ["Once", "", "a<|im_end|>b", "Zwölf 🜁", "x" * 30_000])
async def test_a_text_has_the_tokens_that_a_completion_runs(prompt: str) -> None:
    rig = rig_with(None)
    rig.engine.ready = replace(rig.engine.ready, max_model_len=1 << 20)
    found = (await rig.post(TOKENIZE, {"model": MODEL, "prompt": prompt})).json()
    if prompt:
        assert (await rig.post(TEXT, text(prompt))).status_code == 200
        assert found["tokens"] == rig.engine.submitted[0].prompt_ids
    assert (await rig.post(DETOKENIZE, {"model": MODEL, "tokens": found["tokens"]})).json() == {"prompt": prompt}


@given(st.text(max_size=40))
def test_a_text_comes_back(prompt: str) -> None:
    async def there_and_back() -> str:
        rig = rig_with(None)
        tokens = (await rig.post(TOKENIZE, {"prompt": prompt})).json()["tokens"]
        back: str = (await rig.post(DETOKENIZE, {"tokens": tokens})).json()["prompt"]
        return back

    assert asyncio.run(there_and_back()) == prompt


async def test_a_prompt_without_what_opens_the_answer() -> None:
    rig = rig_with(CHATML)
    whole = (await rig.post(TOKENIZE, chat("Hi"))).json()["tokens"]
    less = (await rig.post(TOKENIZE, chat("Hi", add_generation_prompt=False))).json()["tokens"]
    opens = tokenizer().encode("<|im_start|>assistant\n", add_special=False)
    assert whole == less + opens
    assert (await rig.post(TOKENIZE, chat("Hi", add_generation_prompt=True))).json()["tokens"] == whole


async def test_control_tokens_around_a_text_can_be_left_out() -> None:
    class BeginsWithBos(BytePrompts):
        def text(self, prompt: str, *, add_special: bool = True) -> list[int]:
            return [BOS] * add_special + super().text(prompt)

    rig = Rig(prompts=BeginsWithBos())
    found = {
        given: (await rig.post(TOKENIZE, {"prompt": "a", "add_special_tokens": given})).json()["tokens"]
        for given in (True, False, None)
    }
    assert found == {True: [BOS, 97], False: [97], None: [BOS, 97]}


async def test_the_strings_of_tokens() -> None:
    rig = Rig()
    found = (await rig.post(TOKENIZE, {"prompt": "aé", "return_token_strs": True})).json()
    assert found["token_strs"] == ["a", r"bytes:\xc3", r"bytes:\xa9"]
    found = (await rig_with(CHATML).post(TOKENIZE, chat("Hi", return_token_strs=True))).json()
    assert found["token_strs"][0] == CONTROL[0]
    assert len(found["token_strs"]) == found["count"]


async def test_tokens_that_are_no_text() -> None:
    assert (await Rig().post(DETOKENIZE, {"tokens": [0xFF, 97]})).json() == {"prompt": "\ufffda"}
    assert (await Rig().post(DETOKENIZE, {"tokens": []})).json() == {"prompt": ""}
    named = tokenizer().encode(CONTROL[0], add_special=False)
    assert (await rig_with(CHATML).post(DETOKENIZE, {"tokens": named})).json() == {"prompt": CONTROL[0]}


REFUSED: list[tuple[str, Any, str, str]] = [
    (TOKENIZE, {"model": MODEL}, "prompt", "missing_required_parameter"),
    (TOKENIZE, chat(prompt="x"), "prompt", "invalid_value"),
    (TOKENIZE, {"prompt": ["x"]}, "prompt", "invalid_value"),
    (TOKENIZE, {"prompt": "x", "tools": []}, "tools", "invalid_value"),
    (TOKENIZE, {"prompt": "x", "add_generation_prompt": False}, "add_generation_prompt", "invalid_value"),
    (TOKENIZE, chat(add_special_tokens=True), "add_special_tokens", "unsupported_parameter"),
    (TOKENIZE, chat(tool_choice="required"), "tool_choice", "invalid_value"),
    (TOKENIZE, chat(continue_final_message=True), "continue_final_message", "invalid_value"),
    (TOKENIZE, CHATS[8] | {"add_generation_prompt": True}, "add_generation_prompt", "invalid_value"),
    (TOKENIZE, chat([{"type": "image_url"}]), "messages[0].content[0].type", "unsupported_parameter"),
    (TOKENIZE, chat(chat_template="x"), "chat_template", "unsupported_parameter"),
    (TOKENIZE, chat(temperature=1), "temperature", "unknown_parameter"),
    (TOKENIZE, {"model": "", "prompt": "x"}, "model", "invalid_value"),
    (DETOKENIZE, {}, "tokens", "missing_required_parameter"),
    (DETOKENIZE, {"tokens": "x"}, "tokens", "invalid_value"),
    (DETOKENIZE, {"tokens": [-1]}, "tokens[0]", "invalid_value"),
    (DETOKENIZE, {"tokens": [READY.vocab_size]}, "tokens", "invalid_value"),
    (DETOKENIZE, {"tokens": [1], "text": "x"}, "text", "unknown_parameter"),
]


@pytest.mark.parametrize(("path", "body", "param", "code"), REFUSED)
async def test_what_is_refused(path: str, body: Any, param: str, code: str) -> None:
    error = error_of(await Rig().post(path, body), 400)
    assert (error["param"], error["code"]) == (param, code)


async def test_a_model_without_a_template_has_no_conversations() -> None:
    assert error_of(await rig_with(None).post(TOKENIZE, chat()), 400)["code"] == "no_chat_template"


@pytest.mark.parametrize(("path", "body"), [(TOKENIZE, {"prompt": "x"}), (DETOKENIZE, {"tokens": [1]})])
async def test_the_layers_hold_here_too(path: str, body: dict[str, Any]) -> None:
    rig = Rig(api_keys=("key",), max_body_bytes=100)
    key = {"Authorization": "Bearer key"}
    assert (await rig.post(path, body)).status_code == 401
    assert (await rig.post(path, body, headers=key)).status_code == 200
    assert (await rig.post(path, body | {"model": "x" * 100}, headers=key)).status_code == 413
    assert error_of(await rig.post(path, body | {"model": "other"}, headers=key), 404)["code"] == "model_not_found"
    assert error_of(await rig.post(path, body, headers=key | {"X-Request-Timeout": "0"}), 400)["param"] is not None
    loading = Rig(engine=FakeEngine(ready=None))
    assert error_of(await loading.post(path, body), 503)["code"] == "engine_unavailable"


async def test_no_place_of_a_completion_is_needed_or_taken() -> None:
    script = Waiting(first_token=False)
    rig = Rig(script, max_waiting=1)
    call = AsgiCall(rig, CHAT, chat())
    await script.begun.wait()
    assert (await rig.post(CHAT, chat())).status_code == 429
    for _ in range(tokenize.MAX_AT_ONCE + 1):
        assert (await rig.post(TOKENIZE, chat())).status_code == 200
    call.leave()
    await call.task


class Slow(BytePrompts):
    """Encodes on threads of which it knows how many there are, and waits to be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.num_begun = 0
        self.most = self.now = 0
        self._lock = threading.Lock()

    def text(self, prompt: str, *, add_special: bool = True) -> list[int]:
        with self._lock:
            self.num_begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
        if threading.current_thread() is not threading.main_thread():
            assert self.go_on.wait(30)
        with self._lock:
            self.now -= 1
        return [1]


async def test_long_texts_are_done_on_few_threads_and_not_too_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Admission(tokenize.MAX_AT_ONCE)
    monkeypatch.setattr(tokenize, "Admission", lambda _: places)
    prompts = Slow()
    rig = Rig(prompts=prompts)
    long = {"prompt": "x" * (LONG_TEXT_CHARS + 1)}
    posts = [asyncio.create_task(rig.post(TOKENIZE, long)) for _ in range(tokenize.MAX_AT_ONCE)]
    while places.num_open < tokenize.MAX_AT_ONCE:
        await asyncio.sleep(0.001)
    assert error_of(await rig.post(TOKENIZE, {"prompt": "x"}), 429)["code"] == "overloaded"
    assert error_of(await rig.post(DETOKENIZE, {"tokens": [1]}), 429)["code"] == "overloaded"
    assert (await rig.post(CHAT, chat())).status_code == 200
    prompts.go_on.set()
    assert [(await post).status_code for post in posts] == [200] * tokenize.MAX_AT_ONCE
    assert prompts.most == tokenize.NUM_THREADS
    assert (await rig.post(TOKENIZE, {"prompt": "x"})).status_code == 200


async def test_a_client_that_leaves_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "MAX_AT_ONCE", 1)
    prompts = Slow()
    rig = Rig(prompts=prompts)
    call = AsgiCall(rig, TOKENIZE, {"prompt": "x" * (LONG_TEXT_CHARS + 1)})
    while not prompts.num_begun:
        await asyncio.sleep(0.001)
    assert (await rig.post(TOKENIZE, {"prompt": "x"})).status_code == 429
    call.leave()
    await call.task
    assert (await rig.post(TOKENIZE, {"prompt": "x"})).status_code == 200
    prompts.go_on.set()


async def test_what_clients_leave_behind_takes_no_more_threads() -> None:
    prompts = Slow()
    rig = Rig(prompts=prompts)
    for _ in range(tokenize.NUM_THREADS + 2):
        call = AsgiCall(rig, TOKENIZE, {"prompt": "x" * (LONG_TEXT_CHARS + 1)})
        await asyncio.sleep(0.01)
        call.leave()
        await call.task
    prompts.go_on.set()
    assert (await rig.post(TOKENIZE, {"prompt": "x" * (LONG_TEXT_CHARS + 1)})).status_code == 200
    assert prompts.most <= tokenize.NUM_THREADS
