"""No more open requests than places."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.types import GenerateRequest
from server.admission import Admission
from server.context import ChatPrompt
from server.conversation import Conversation
from server.errors import Overloaded
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, text
from tests.support.fake_engine import BytePrompts, Step, deltas_for, failure


async def test_what_finds_no_place_is_refused_before_it_is_tokenised() -> None:
    num_encoded = 0
    release = asyncio.Event()

    class Counting(BytePrompts):
        def chat(self, conversation: Conversation) -> ChatPrompt:
            nonlocal num_encoded
            num_encoded += 1
            return ChatPrompt([1])

    def script(request: GenerateRequest) -> Iterator[Step]:
        yield release
        yield from deltas_for(request, "x")

    rig = Rig(script, max_waiting=3, prompts=Counting())
    posts = [asyncio.create_task(rig.post(CHAT, chat(n=n))) for n in (2, 1, 1, 2, 1)]
    done, _ = await asyncio.wait(posts[2:])
    for refused in done:
        response = refused.result()
        assert error_of(response, 429) == {
            "message": "The server has as many open requests as it admits; send the request again a little later.",
            "type": "rate_limit_error",
            "param": None,
            "code": "overloaded",
        }
        assert 1 <= int(response.headers["retry-after"]) <= 30
    assert num_encoded == 2
    release.set()
    assert [(await post).status_code for post in posts[:2]] == [200, 200]
    assert (await rig.post(CHAT, chat(n=3))).status_code == 200


async def test_places_are_given_back_after_every_end() -> None:
    rig = Rig(max_waiting=1)
    for _ in range(3):
        assert (await rig.post(CHAT, chat())).status_code == 200
        assert (await rig.post(CHAT, chat(stream=True))).status_code == 200
        assert (await rig.post(CHAT, chat("x" * 2000))).status_code == 400
        rig.engine.script, script = (lambda request: [failure(request, "numerical_error", "x")]), rig.engine.script
        assert (await rig.post(CHAT, chat())).status_code == 500
        rig.engine.script = script


async def test_more_than_all_places_is_the_clients_mistake() -> None:
    error = error_of(await Rig(max_waiting=3).post(TEXT, text(["a", "b"], n=2)), 400)
    assert error["param"] == "n"
    assert "admits 3" in error["message"]


@settings(max_examples=100, derandomize=True)
@given(limit=st.integers(1, 5), sizes=st.lists(st.integers(1, 6), max_size=20), data=st.data())
def test_the_number_of_open_requests_is_what_was_let_in(limit: int, sizes: list[int], data: st.DataObject) -> None:
    admission, held = Admission(limit), []
    for size in sizes:
        if held and data.draw(st.booleans()):
            place, _ = held.pop(data.draw(st.integers(0, len(held) - 1)))
            place.__exit__(None, None, None)
        place = admission.reserve(size)
        free = limit - sum(number for _, number in held)
        if size > limit:
            pytest.raises(InvalidRequest, place.__enter__)
        elif size > free:
            pytest.raises(Overloaded, place.__enter__)
        else:
            place.__enter__()
            held.append((place, size))
        assert admission.num_open == sum(number for _, number in held) <= limit
