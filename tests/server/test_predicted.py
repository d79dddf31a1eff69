"""``prediction``: what clients send of it reaches the engine as tokens, and usage says how much of it came."""

from __future__ import annotations

import msgspec
import pytest

from engine.types import FinishReason, TokenDelta
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, events_of, text
from tests.support.fake_engine import READY, usage_of


def said(body):
    """The choices' texts."""
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in body["choices"]]


def costing(accepted, rejected):
    """A script that answers by two deltas, one of several tokens, and says what of its prediction came."""

    def script(request):
        yield TokenDelta(request.request_id, list(b"Hello, "), "Hello, ")
        usage = msgspec.structs.replace(usage_of(request, 10), accepted_tokens=accepted, rejected_tokens=rejected)
        yield TokenDelta(request.request_id, list(b"all"), "all", finish=FinishReason.STOP, usage=usage)

    return script


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text()), (TEXT, text(["a", "b"]))])
@pytest.mark.parametrize(
    "content",
    ["Hello, you", [{"type": "text", "text": "Hello,"}, {"type": "text", "text": " you"}]],
)
async def test_a_prediction_reaches_the_engine(path, body, content):
    rig = Rig()
    response = await rig.post(path, {**body, "prediction": {"type": "content", "content": content}, "n": 2})
    assert response.status_code == 200
    assert {request.prediction_ids for request in rig.engine.submitted} == {tuple(b"Hello, you")}


@pytest.mark.parametrize("prediction", [None, {"type": "content", "content": ""}, {"type": "content", "content": []}])
async def test_nothing_is_foretold_without_text(prediction):
    rig = Rig()
    assert (await rig.post(CHAT, chat(prediction=prediction))).status_code == 200
    assert rig.engine.submitted[0].prediction_ids == ()


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
async def test_usage_says_what_came_of_all_choices(path, body):
    rig = Rig(costing(7, 2))
    asked = {**body, "prediction": {"type": "content", "content": "Hello, you"}, "n": 3}
    whole = (await rig.post(path, asked)).json()
    assert said(whole) == ["Hello, all"] * 3
    details = whole["usage"]["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (21, 6)
    streamed = await rig.post(path, {**asked, "stream": True, "stream_options": {"include_usage": True}})
    assert events_of(streamed.text)[-2]["usage"]["completion_tokens_details"] == details


async def test_what_no_answer_can_say_is_refused():
    rig = Rig(max_chars_per_token=4)
    longest = 4 * READY.max_model_len
    for length, param in ((longest, None), (longest + 1, "prediction")):
        response = await rig.post(CHAT, chat(prediction={"type": "content", "content": "x" * length}))
        if param is None:
            assert response.status_code == 200
            assert len(rig.engine.submitted[0].prediction_ids) == READY.max_model_len
        else:
            error = error_of(response, 400)
            assert (error["param"], error["code"]) == (param, "context_length_exceeded")
            assert error["message"].startswith("The prediction has")
    assert len(rig.engine.submitted) == 1


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"type": "content"}, "prediction.content"),
        ({"content": "x"}, "prediction.type"),
        ({"type": "text", "content": "x"}, "prediction.type"),
        ({"type": "content", "content": "x", "extra": 1}, "prediction.extra"),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content[0].text"),
        ({"type": "content", "content": [{"type": "refusal", "refusal": "no"}]}, "prediction.content[0].type"),
        (
            {"type": "content", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "prediction.content[0].type",
        ),
    ],
)
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
async def test_what_is_no_prediction_is_refused_by_name(path, body, prediction, param):
    rig = Rig()
    error = error_of(await rig.post(path, {**body, "prediction": prediction}), 400)
    assert error["param"] == param
    assert not rig.engine.submitted
