"""Health and the list of models."""

from __future__ import annotations

import pytest

from server.engine_client import EngineState
from tests.server.rig import Rig, error_of
from tests.support.fake_engine import MODEL, READY, FakeEngine

NOT_READY = [state for state in EngineState if state is not EngineState.READY]


async def test_a_ready_server() -> None:
    rig = Rig()
    rig.engine.restarts = 3
    assert (await rig.get("/livez")).json() == {"status": "alive"}
    assert (await rig.get("/readyz")).json() == {"status": "ready"}
    response = await rig.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "state": "ready",
        "model": MODEL,
        "restarts": 3,
        "max_model_len": READY.max_model_len,
        "architecture": READY.architecture,
        "backend": READY.backend,
        "provenance": READY.provenance,
    }


@pytest.mark.parametrize("state", NOT_READY)
async def test_a_server_that_cannot_serve(state: EngineState) -> None:
    rig = Rig()
    rig.engine.state = state
    assert (await rig.get("/livez")).status_code == 200
    response = await rig.get("/readyz")
    assert error_of(response, 503)["code"] == "engine_unavailable"
    assert int(response.headers["retry-after"]) >= 1
    response = await rig.get("/health")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    body = response.json()
    assert (body["state"], body["backend"]) == (state, "fake")
    assert body["error"]["code"] == "engine_unavailable"
    assert state in body["error"]["message"]


async def test_before_the_first_engine_is_ready() -> None:
    body = (await Rig(engine=FakeEngine(ready=None)).get("/health")).json()
    error = body.pop("error")
    assert error["type"] == "service_unavailable_error"
    assert body == {"state": "loading", "model": MODEL, "restarts": 0}


async def test_models() -> None:
    rig = Rig(created=5)
    card = {"object": "model", "created": 5, "owned_by": "upwell", "max_model_len": READY.max_model_len}
    body = (await rig.get("/v1/models")).json()
    assert body == {"object": "list", "data": [{"id": MODEL} | card, {"id": "alias/of-it"} | card]}
    assert (await rig.get("/v1/models/alias/of-it")).json() == {"id": "alias/of-it"} | card
    assert (await rig.get("/v1/models/alias%2Fof-it")).json() == {"id": "alias/of-it"} | card


async def test_models_before_the_engine_is_ready() -> None:
    rig = Rig(engine=FakeEngine(ready=None))
    assert "max_model_len" not in (await rig.get(f"/v1/models/{MODEL}")).json()


@pytest.mark.parametrize("name", ["x", "../../etc/passwd", "", f"{MODEL}/", "%00", "http://x"])
async def test_a_model_that_is_not_served(name: str) -> None:
    error = error_of(await Rig().get(f"/v1/models/{name}"), 404)
    assert error["code"] in {"model_not_found", "not_found"}


async def test_head_is_get_without_its_body() -> None:
    async with Rig().client() as client:
        response = await client.head("/livez")
    assert response.status_code == 200
