"""One line a request, and nothing in it that should not be."""

from __future__ import annotations

import re
from typing import Any

import pytest

from server.context import ChatPrompt
from server.conversation import Conversation
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, text
from tests.support.fake_engine import BytePrompts, failure, says

SECRET = "my-secret-prompt"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server logged."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("upwell")]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_line_of_a_request(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "upwell")
    await Rig(says("abc")).post(CHAT, chat("Hi", n=2, stream=stream), headers={"x-request-id": "r-1"})
    (line,) = lines(caplog)
    head, _, ms = line.rpartition(" ms=")
    assert head == f"id=r-1 method=POST path={CHAT} status=200 error=- prompt_tokens=9 completion_tokens=6"
    assert re.fullmatch(r"\d+", ms)


@pytest.mark.parametrize("path", ["/a%0d%0ainjected", "/a%1b[31m", "/a%e2%80%a8b", "/a%20status=200", "/" + "x" * 5000])
async def test_a_path_cannot_break_the_line(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "upwell")
    await Rig().get(path, headers={"x-request-id": "a b"})
    (line,) = lines(caplog)
    assert re.fullmatch(r"id=\w{24} method=GET path=[!-~]{1,600} status=404 error=not_found [ -~]*", line)


REFUSALS: list[tuple[str, Any, int]] = [
    (CHAT, chat(SECRET, n=0), 400),
    (CHAT, chat(SECRET, tools=[SECRET]), 400),
    (CHAT, chat([{"type": "image_url", "image_url": SECRET}]), 400),
    (CHAT, chat([{"type": "text", "text": SECRET, "x": 1}]), 400),
    (CHAT, chat([SECRET]), 400),
    (CHAT, chat({SECRET: SECRET}), 400),
    (CHAT, chat(SECRET * 5000), 400),
    (CHAT, chat(SECRET * 100), 400),
    (CHAT, chat(SECRET, stop=[SECRET] * 5), 400),
    (CHAT, chat(SECRET, stop_token_ids=[SECRET]), 400),
    (CHAT, chat(SECRET, response_format={"type": "regex", "regex": f"({SECRET}"}), 400),
    (CHAT, chat(SECRET) | {"model": "other"}, 404),
    (CHAT, {"model": SECRET[:0], "messages": SECRET}, 400),
    (CHAT, {"messages": [{"role": SECRET, "content": SECRET}], "model": "x"}, 400),
    (TEXT, text([SECRET, 1]), 400),
    (TEXT, text([[SECRET]]), 400),
    (TEXT, text(SECRET, suffix=SECRET), 400),
    (TEXT, text([SECRET] * 200), 400),
]


@pytest.mark.parametrize(("path", "body", "status"), REFUSALS)
async def test_no_refusal_repeats_the_prompt(
    path: str, body: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "upwell")
    response = await Rig().post(path, body)
    error_of(response, status)
    assert SECRET not in response.text + str(response.headers)
    assert len(lines(caplog)) == 1
    assert SECRET not in caplog.text


@pytest.mark.parametrize("body", [b'{"%b" 1}', b'{"%b": 1, "%b": 2}', b'["%b\xff"]', b'{"messages": "%b', b"%b"])
async def test_no_malformed_body_is_repeated(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "upwell")
    response = await Rig().post_raw(CHAT, body.replace(b"%b", SECRET.encode()))
    assert error_of(response, 400)["code"] == "invalid_json"
    assert SECRET not in response.text + caplog.text


class Broken(BytePrompts):
    """Fails with the prompt in its message, as libraries do."""

    def chat(self, conversation: Conversation) -> ChatPrompt:
        raise ValueError(f"cannot encode {conversation} at 0x7fff12345678 in /usr/lib/x.py")


def broken_engine(rig: Rig) -> None:
    """Make the engine's submit fail."""

    def submit(requests: Any) -> Any:
        raise TypeError(SECRET)

    rig.engine.submit = submit


def broken_ready(rig: Rig) -> None:
    """Make what the engine said unusable."""
    rig.engine.ready = SECRET


def broken_vocabulary(rig: Rig) -> None:
    """Make naming tokens fail."""
    rig.context.vocabulary.token_bytes = lambda _: {}[SECRET]  # type: ignore[method-assign]


@pytest.mark.parametrize("damage", [broken_engine, broken_ready, broken_vocabulary, None])
async def test_a_defect_says_only_the_request_id(damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "upwell")
    rig = Rig() if damage else Rig(prompts=Broken())
    if damage:
        damage(rig)
    body = chat(SECRET, logprobs=True)
    response = await rig.post(CHAT, body, headers={"x-request-id": "r-9"})
    error = error_of(response, 500)
    assert error == {
        "message": "The server failed on request r-9; its log has the cause under this id.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    defect, line = lines(caplog)
    assert re.fullmatch(
        r"id=r-9 internal error (TypeError|AttributeError|KeyError|ValueError) in \S+\(\w+\.py:\d+\).*", defect
    )
    assert "status=500 error=internal_error" in line
    assert SECRET not in caplog.text
    assert "0x7fff" not in caplog.text
    assert (await rig.get("/livez")).status_code == 200


async def test_the_line_of_a_stream_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "upwell")

    def script(request: Any) -> Any:
        yield next(iter(says("ab")(request)))
        yield failure(request, "numerical_error", "Not a number.")

    await Rig(script).post(CHAT, chat(stream=True))
    (line,) = lines(caplog)
    assert "status=200 error=numerical_error" in line
