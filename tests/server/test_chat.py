"""Chat completions, end to end over ASGI."""

from __future__ import annotations

from tests.server.rig import CHAT, Rig, chat, events_of
from tests.support.fake_engine import MODEL, says


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
        },
    }


async def test_a_stream() -> None:
    rig = Rig(says("Hey"))
    response = await rig.post(CHAT, chat("Hi", stream=True))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events_of(response.text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "H"},
        {"content": "e"},
        {"content": "y"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
