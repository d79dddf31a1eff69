"""An app over a fake engine, and the ways in: httpx over ASGI, a bare ASGI call that can leave, a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.types import Message

from server.app import create_app
from server.context import ServerContext
from server.http_server import HttpServer
from server.run import bind
from tests.support.contract import check_response
from tests.support.fake_engine import MODEL, BytePrompts, ByteVocabulary, FakeEngine, Script

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"


class Rig:
    """One server over one fake engine."""

    def __init__(self, script: Script | None = None, **settings: Any) -> None:
        self.engine = settings.pop("engine", None) or FakeEngine(script)
        settings.setdefault("prompts", BytePrompts())
        settings.setdefault("model_names", (MODEL, "alias/of-it"))
        settings.setdefault("vocabulary", ByteVocabulary())
        self.context = ServerContext(engine=self.engine, **settings)
        self.app = create_app(self.context)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client on this app, without a socket; what it receives is held against openapi.yaml."""
        transport = httpx.ASGITransport(self.app)
        hooks = {"response": [_hold_against_contract]}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", event_hooks=hooks, **options)

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """One request."""
        async with self.client() as client:
            return await client.post(path, json=body, **options)

    async def post_raw(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        """One request with these very bytes."""
        async with self.client() as client:
            return await client.post(path, content=body, headers={"content-type": "application/json", **headers})

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """One request."""
        async with self.client() as client:
            return await client.get(path, **options)

    @contextlib.asynccontextmanager
    async def socket(self) -> AsyncIterator[tuple[str, int]]:
        """The app on a real loopback socket, as the command line serves it; yields host and port."""
        server, sock = HttpServer(self.app, self.context.loop_lag), bind("127.0.0.1", 0)
        with contextlib.closing(sock):
            task = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started:
                await asyncio.sleep(0.001)
            try:
                yield sock.getsockname()
            finally:
                server.stop()
                await task


async def _hold_against_contract(response: httpx.Response) -> None:
    body, request = await response.aread(), response.request
    check_response(request.method, request.url.path, response.status_code, response.headers, body)


def chat(content: Any = "Hi", **fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def text(prompt: Any = "Once", **fields: Any) -> dict[str, Any]:
    """A completion body."""
    return {"model": MODEL, "prompt": prompt, **fields}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of ``response``, which must have this status and nothing else in its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    error: dict[str, Any] = body["error"]
    return error


async def refused(path: str, body: Any) -> dict[str, Any]:
    """The error object of a request that must be refused and must not reach the engine."""
    rig = Rig()
    response = await rig.post_raw(path, json.dumps(body).encode())
    error = error_of(response, 400)
    assert error["type"] == "invalid_request_error"
    assert rig.engine.submitted == []
    return error


def events_of(body: str) -> list[Any]:
    """Data of all events of a stream, decoded; comments are left out."""
    assert body.endswith("\n\n")
    events: list[Any] = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        assert block.startswith("data: "), block
        data = block.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


class AsgiCall:
    """One POST over bare ASGI, by a client that can watch what comes and leave."""

    def __init__(self, rig: Rig, path: str, body: Any) -> None:
        self._app = rig.app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        self.task = asyncio.create_task(self._app(scope, self._inbox.get, self.sent.put))

    def leave(self) -> None:
        """The client closes its connection."""
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def next_body(self) -> bytes:
        """The next part of the body that is not empty."""
        while True:
            message = await self.sent.get()
            if body := message.get("body"):
                assert isinstance(body, bytes)
                return body
