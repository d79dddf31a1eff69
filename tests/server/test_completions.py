"""Text completions over ASGI."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine.types import FinishReason, GenerateRequest, TokenDelta, TokenLogprobs
from server.answers import TextCompletion
from server.routes.completions import TextFormat
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, events_of, text
from tests.support.fake_engine import BOS, MODEL, NO_DETAILS, READY, VOCAB_SIZE, BytePrompts, deltas_for, says


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
        "system_fingerprint": READY.fingerprint,
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


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("Once", ["Once"]),
        (["Zwölf", ""], ["Zwölf", ""]),
        ([97, 98], ["ab"]),
        ([[97], [0xC3, 0xA9], [0xFF]], ["a", "é", "\ufffd"]),
    ],
)
async def test_echo_puts_the_prompt_before_its_answers(prompt: Any, shown: list[str]) -> None:
    rig = Rig(says(" upon"), prompts=BeginsWithBos())
    body = (await rig.post(TEXT, text(prompt, echo=True, n=2))).json()
    assert [choice["text"] for choice in body["choices"]] == [f"{one} upon" for one in shown for _ in range(2)]
    assert body["usage"]["completion_tokens"] == 5 * 2 * len(shown)


class BeginsWithBos(BytePrompts):
    """A text has a control token before it, as with most models; an echo does not show it."""

    def text(self, prompt: str, *, add_special: bool = True) -> list[int]:
        return [BOS, *super().text(prompt)]


async def test_echo_in_a_stream_is_in_the_first_chunk_of_each_choice() -> None:
    *chunks, done = events_of((await Rig(says("xy")).post(TEXT, text("Once", echo=True, n=2, stream=True))).text)
    assert done == "[DONE]"
    texts: dict[int, list[str]] = {0: [], 1: []}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]].append(choice["text"])
    assert texts == {0: ["Oncex", "y"], 1: ["Oncex", "y"]}


@pytest.mark.parametrize("fields", [{"echo": False}, {"echo": None}, {}])
async def test_without_echo_the_answer_is_alone(fields: dict[str, Any]) -> None:
    assert (await Rig(says("x")).post(TEXT, text("Once", **fields))).json()["choices"][0]["text"] == "x"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": False, "max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ({"echo": True, "logprobs": 21}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"suffix": "x"}, "suffix"),
    ],
)
async def test_what_echo_cannot_be(fields: dict[str, Any], param: str) -> None:
    assert error_of(await Rig().post(TEXT, text(**fields)), 400)["param"] == param


@pytest.mark.parametrize("n", [1, 3])
async def test_log_probabilities_of_a_prompt_come_before_those_of_its_answers(n: int) -> None:
    rig = Rig(says("é"), prompts=BeginsWithBos())
    body = (await rig.post(TEXT, text(["ab", "c"], echo=True, logprobs=1, n=n))).json()
    asked = [request.prompt_logprobs for request in rig.engine.submitted]
    assert asked == [1, *[None] * (n - 1)] * 2, "a prompt is scored once"
    for choice, prompt in zip(body["choices"], [p for p in ("ab", "c") for _ in range(n)], strict=True):
        assert choice["text"] == f"{prompt}é"
        found = choice["logprobs"]
        assert found["tokens"] == ["<bos>", *prompt, "bytes:\\xc3", "bytes:\\xa9"]
        assert found["token_logprobs"] == [None, *(-0.5 - byte / 1000 for byte in f"{prompt}é".encode())]
        assert found["top_logprobs"][0] is None
        assert [list(top) for top in found["top_logprobs"][1:]] == [[token] for token in found["tokens"][1:]]
        assert found["text_offset"] == [0, *range(len(prompt)), len(prompt), len(prompt)]


async def test_offsets_are_of_the_text_that_is_shown() -> None:
    """Here a control token shows none."""
    body = (await Rig(says("c")).post(TEXT, text([97, BOS, 98], echo=True, logprobs=0))).json()
    (choice,) = body["choices"]
    where = choice["logprobs"]["text_offset"]
    assert choice["logprobs"]["tokens"] == ["a", "<bos>", "b", "c"]
    assert [choice["text"][at:end] for at, end in zip(where, [*where[1:], None], strict=True)] == ["a", "", "b", "c"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0])
async def test_a_prompt_without_an_answer(stream: bool, logprobs: int | None) -> None:
    response = await Rig(says("")).post(TEXT, text("ab", echo=True, max_tokens=0, logprobs=logprobs, stream=stream))
    answers = events_of(response.text)[:-1] if stream else [response.json()]
    choices = [choice for answer in answers for choice in answer["choices"]]
    assert "".join(choice["text"] for choice in choices) == "ab"
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    assert tokens == ([] if logprobs is None else ["a", "b"])


async def test_a_prompt_may_fill_the_context_if_no_answer_is_wanted() -> None:
    prompt = "x" * READY.max_model_len
    assert (await Rig(says("")).post(TEXT, text(prompt, echo=True, max_tokens=0))).status_code == 200
    error = error_of(await Rig().post(TEXT, text(prompt, echo=True, max_tokens=1)), 400)
    assert error["code"] == "context_length_exceeded"


async def test_logprobs_without_echo_are_given() -> None:
    body = (await Rig(says("a")).post(TEXT, text(logprobs=1, echo=False))).json()
    assert body["choices"][0]["logprobs"]["tokens"] == ["a"]


FORMATS: list[dict[str, Any]] = [
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}, "strict": True}},
    {"type": "regex", "regex": "a+"},
    {"type": "choice", "choice": ["a", "b"]},
    {"type": "lark", "lark": 'start: "a"'},
]


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda f: f["type"])
async def test_every_answer_is_held_to_the_format_as_in_a_chat(answer_format: dict[str, Any]) -> None:
    rig = Rig()
    assert (await rig.post(TEXT, text(["a", "b"], n=2, response_format=answer_format))).status_code == 200
    assert (await rig.post(CHAT, chat(response_format=answer_format))).status_code == 200
    grammars = {request.grammar for request in rig.engine.submitted}
    assert len(rig.engine.submitted) == 5
    assert len(grammars) == 1
    assert grammars != {""}


async def test_text_is_any_text() -> None:
    rig = Rig()
    await rig.post(TEXT, text(response_format={"type": "text"}))
    assert rig.engine.submitted[0].grammar == ""


@pytest.mark.parametrize(
    ("answer_format", "param"),
    [
        ({"type": "regex"}, "response_format.regex"),
        ({"type": "regex", "regex": "("}, "response_format.regex"),
        ({"type": "xml"}, "response_format.type"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}},
            "response_format.json_schema.schema.not",
        ),
    ],
)
async def test_a_format_that_cannot_be_kept(answer_format: dict[str, Any], param: str) -> None:
    rig = Rig()
    assert error_of(await rig.post(TEXT, text(response_format=answer_format)), 400)["param"] == param
    assert rig.engine.submitted == []


async def test_token_ids_that_cannot_fit_are_counted_before_they_are_looked_at() -> None:
    error = error_of(await Rig().post(TEXT, text([VOCAB_SIZE] * (READY.max_model_len + 1))), 400)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


async def test_a_long_answer_is_put_together_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    real = TextFormat.whole

    def watched(*args: Any) -> TextCompletion:
        threads.append(threading.current_thread() is threading.main_thread())
        return real(*args)

    monkeypatch.setattr(TextFormat, "whole", watched)
    for fields in ({}, {"logprobs": 20}):
        assert (await Rig(says("x" * 50)).post(TEXT, text(n=16, **fields))).status_code == 200
    assert threads == [True, False]
