"""API keys: asked for everywhere but on the two open paths."""

from __future__ import annotations

import hashlib

import httpx
import pytest
from starlette.routing import Route

from tests.server.rig import CHAT, TEXT, Rig, chat, error_of, text

KEY = "sk-correct-horse"


def bearer(key: str) -> dict[str, str]:
    """The header that clients send."""
    return {"authorization": f"Bearer {key}"}


def refused(response: httpx.Response) -> bool:
    """Whether the response asks for a key and says nothing else."""
    error = error_of(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text
    return error["code"] == "invalid_api_key"


async def test_every_route_but_two_needs_a_key() -> None:
    rig = Rig(api_keys=(KEY,))
    paths = {route.path: route for route in rig.app.routes if isinstance(route, Route)}
    assert len(paths) == 11
    async with rig.client() as client:
        for path, route in paths.items():
            for method in route.methods or ():
                response = await client.request(method, path.replace("{model:path}", "x"))
                assert (response.status_code == 200) is (path in {"/livez", "/readyz"}), (method, path)
                if path not in {"/livez", "/readyz"} and method != "HEAD":
                    assert refused(response)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models/",
        "/livez/",
        "/livez/../v1/models",
        "/livezx",
        "/x/livez",
        "/v1/x/..;/models",
        "/%76%31/models",
        "/livez%2f..%2fv1/models",
        "/readyz;/v1/models",
    ],
)
async def test_other_spellings_of_paths_are_closed(path: str) -> None:
    assert refused(await Rig(api_keys=(KEY,)).get(path))


@pytest.mark.parametrize("host", ["x/livez?a=", "x/livez#", "x@y/livez", "["])
async def test_the_host_header_opens_nothing(host: str) -> None:
    rig = Rig(api_keys=(KEY,))
    assert refused(await rig.get("/v1/models", headers={"host": host}))


@pytest.mark.parametrize("key", [KEY, "another"])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
async def test_a_known_key_opens(path: str, body: dict[str, object], key: str) -> None:
    rig = Rig(api_keys=(KEY, "another"))
    assert (await rig.post(path, body, headers=bearer(key))).status_code == 200
    assert rig.engine.submitted[0].tenant == hashlib.sha256(key.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", KEY)],
        [("authorization", f"Basic {KEY}")],
        [("authorization", f"Bearer {KEY}x")],
        [("authorization", f"Bearer {KEY[:-1]}")],
        [("authorization", f"Bearer {KEY.upper()}")],
        [("authorization", f"Bearer {'k' * 10_000}")],
        [("authorization", b"Bearer \xff\xfe")],
        [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")],
        [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
        [("x-api-key", KEY)],
    ],
)
async def test_anything_else_does_not(headers: list[tuple[str, str]], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    assert refused(await Rig(api_keys=(KEY,)).get("/v1/models", headers=headers))
    assert KEY not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("upwell"))


async def test_a_key_in_the_query_is_no_key_and_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "upwell")
    assert refused(await Rig(api_keys=(KEY,)).get(f"/v1/models?api_key={KEY}"))
    assert KEY not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("upwell"))


async def test_without_keys_everyone_is_the_same_tenant() -> None:
    rig = Rig()
    await rig.post(CHAT, chat(), headers=bearer("whatever"))
    assert rig.engine.submitted[0].tenant == ""


async def test_the_scheme_is_spelled_as_one_likes() -> None:
    response = await Rig(api_keys=(KEY,)).get("/v1/models", headers={"authorization": f"bearer {KEY}"})
    assert response.status_code == 200


def test_keys_are_not_shown_by_the_context() -> None:
    assert KEY not in repr(Rig(api_keys=(KEY,)).context)
