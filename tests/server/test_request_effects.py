"""Fields that change no token: each is seen in the answer, in the order of requests, or in the log."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, events_of, text
from tests.server.test_log import lines
from tests.support.fake_engine import READY, says

BOTH = pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (TEXT, text)])


@BOTH
async def test_the_fingerprint_is_the_engines(path: str, body: Any) -> None:
    rig = Rig(says("ab"))
    assert (await rig.post(path, body())).json()["system_fingerprint"] == READY.fingerprint
    *chunks, _ = events_of((await rig.post(path, body(stream=True, stream_options={"include_usage": True}))).text)
    assert [chunk["system_fingerprint"] for chunk in chunks] == [READY.fingerprint] * 3
    rig.engine.ready = replace(READY, fingerprint="fp_ba9876543210")
    assert (await rig.post(path, body())).json()["system_fingerprint"] == "fp_ba9876543210"


@BOTH
@pytest.mark.parametrize(
    ("tier", "priority", "told"),
    [("priority", -1, "priority"), ("auto", 0, "default"), ("default", 0, "default"), ("flex", 1, "flex")],
)
async def test_the_tier_orders_requests_and_is_told(path: str, body: Any, tier: str, priority: int, told: str) -> None:
    rig = Rig()
    assert (await rig.post(path, body(service_tier=tier))).json()["service_tier"] == told
    *chunks, _ = events_of((await rig.post(path, body(service_tier=tier, stream=True))).text)
    assert {chunk["service_tier"] for chunk in chunks} == {told}
    assert [request.priority for request in rig.engine.submitted] == [priority] * 2


@BOTH
async def test_without_a_tier_none_is_told(path: str, body: Any) -> None:
    rig = Rig()
    assert "service_tier" not in (await rig.post(path, body())).json()
    assert rig.engine.submitted[0].priority == 0


@BOTH
async def test_metadata_comes_back_once(path: str, body: Any) -> None:
    given = {"job": "nightly", "ünïcode": '"'}
    rig = Rig(says("ab"))
    assert (await rig.post(path, body(metadata=given))).json()["metadata"] == given
    fields = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    first, *others, _ = events_of((await rig.post(path, body(metadata=given, **fields))).text)
    assert first["metadata"] == given
    assert len(others) == 4
    assert not any("metadata" in chunk for chunk in others)
    assert "metadata" not in (await rig.post(path, body())).json()


@BOTH
@pytest.mark.parametrize(
    "given",
    [{f"k{i}": "v" for i in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}, {"k": 1}, {"k": None}, ["k"]],
)
async def test_metadata_has_bounds(path: str, body: Any, given: Any) -> None:
    assert (error_of(await Rig().post(path, body(metadata=given)), 400)["param"] or "").startswith("metadata")


@BOTH
async def test_the_log_says_for_whom_a_request_is(path: str, body: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "upwell")
    await Rig().post(path, body(user="u 1\n", safety_identifier="ab" * 256))
    await Rig().post(path, body())
    named, plain = lines(caplog)
    assert rf" user=u\x201\n safety_identifier={'ab' * 100} ms=" in named
    assert "user=" not in plain
    assert "safety_identifier=" not in plain


@BOTH
@pytest.mark.parametrize("field", ["user", "safety_identifier"])
async def test_who_has_bounds(path: str, body: Any, field: str) -> None:
    assert error_of(await Rig().post(path, body(**{field: "x" * 513})), 400)["param"] == field
