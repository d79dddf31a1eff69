"""What is refused before a route sees it, over ASGI and on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from server.guard import LOOPBACK_HOSTS
from tests.server.rig import CHAT, TEXT, Rig, chat, error_of

JSON = "application/json"


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonp",
        "application/json; charset=utf-16",
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_only_json_is_read(path: str, media_type: str) -> None:
    headers = {"content-type": media_type}
    async with Rig().client() as client:
        response = await client.post(path, content=json.dumps(chat()), headers=headers)
    assert error_of(response, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "media_type", [JSON, "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"']
)
async def test_json_by_its_other_spellings(media_type: str) -> None:
    response = await Rig().post_raw(CHAT, json.dumps(chat()).encode(), **{"content-type": media_type})
    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "identity, gzip"])
async def test_compressed_bodies_are_refused(encoding: str) -> None:
    response = await Rig().post_raw(CHAT, b"\x1f\x8b", **{"content-encoding": encoding})
    assert error_of(response, 415)["code"] == "unsupported_media_type"


async def bare_post(rig: Rig, headers: list[tuple[bytes, bytes]], body: bytes | None) -> list[Any]:
    """What the app sends for headers that no client library would write; a body of None must not be read."""
    sent: list[Any] = []

    async def receive() -> Any:
        assert body is not None, "the body is read"
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
    await rig.app(scope, receive, send)
    return sent


@pytest.mark.parametrize("length", [b"101", b"9" * 5000, b"10000000000"])
async def test_a_long_body_is_refused_by_its_length_before_it_is_read(length: bytes) -> None:
    sent = await bare_post(Rig(max_body_bytes=100), [(b"content-length", length)], None)
    assert sent[0]["status"] == 413


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"5")] * 2,
        [(b"content-length", b"+5")],
        [(b"content-length", b"-5")],
        [(b"content-length", b"\xb2")],
        [(b"host", b"other")],
    ],
)
async def test_contradicting_headers(headers: list[tuple[bytes, bytes]]) -> None:
    start, body = await bare_post(Rig(), headers, None)
    assert start["status"] == 400
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "malformed_request"


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    body = json.dumps(chat()).encode()
    assert (await Rig(max_body_bytes=len(body)).post_raw(CHAT, body)).status_code == 200
    error = error_of(await Rig(max_body_bytes=len(body) - 1).post_raw(CHAT, body), 413)
    assert error["code"] == "request_too_large"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "",
        "x/health?a=",
        "x#",
        "x@y",
        "[",
        "[::1",
        "localhost:80:80",
        "localhost:x",
    ],
)
async def test_other_hosts_are_turned_away(host: str) -> None:
    rig = Rig(allowed_hosts=LOOPBACK_HOSTS)
    response = await rig.get("/v1/models", headers={"host": host, "origin": "https://evil.example"})
    assert error_of(response, 421)["code"] == "misdirected_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
async def test_hosts_that_the_server_goes_by(host: str) -> None:
    assert (await Rig(allowed_hosts=LOOPBACK_HOSTS).get("/v1/models", headers={"host": host})).status_code == 200


async def test_any_host_where_no_names_are_set() -> None:
    assert (await Rig().get("/v1/models", headers={"host": "some.where"})).status_code == 200


async def test_no_other_origin_is_let_in() -> None:
    async with Rig().client() as client:
        for method in ("GET", "OPTIONS"):
            headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
            response = await client.request(method, "/v1/models", headers=headers)
            assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("given", ["abc", "A-b_c.9", "x" * 64])
async def test_a_request_id_is_kept(given: str) -> None:
    assert (await Rig().get("/livez", headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "a;b", b"\xe2\x80\xa8", "<x>"])
async def test_a_strange_request_id_is_replaced(given: Any) -> None:
    shown = (await Rig().get("/livez", headers={"x-request-id": given})).headers["x-request-id"]
    assert len(shown) == 24
    assert shown.isalnum()


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/nowhere", "/metrics", CHAT])
async def test_headers_of_every_response(path: str) -> None:
    headers = (await Rig().get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["x-request-id"]
    assert "server" not in headers


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "OPTIONS", "BREW"])
async def test_wrong_methods(method: str) -> None:
    async with Rig().client() as client:
        response = await client.request(method, CHAT, headers={"x-http-method-override": "POST"})
        assert response.headers["allow"] == "POST"
        assert error_of(response, 405)["code"] == "method_not_allowed"
        if method != "GET":
            response = await client.request(method, "/v1/models")
            assert response.headers["allow"] == "GET, HEAD"
            assert response.status_code == 405


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/chat/completions/", "//v1/models", "/V1/models", "/docs", "/openapi.json", "/v1/x/..;/models"],
)
async def test_unknown_paths(path: str) -> None:
    assert error_of(await Rig().get(path), 404)["code"] == "not_found"


@contextlib.asynccontextmanager
async def connection(rig: Rig) -> Any:
    """A raw connection to ``rig`` on a real socket."""
    async with rig.socket() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        yield reader, writer
        writer.close()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def test_a_body_that_does_not_come_on_a_socket() -> None:
    async with connection(Rig(body_idle_s=0.02)) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 1000\r\n\r\n{")
        answer = await reader.read()  # to the end: the server closes the connection
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


async def test_a_body_that_drips_on_a_socket() -> None:
    async with connection(Rig(body_idle_s=10, body_total_s=0.1)) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 1000\r\n\r\n")
        status_line = asyncio.create_task(reader.readline())
        while not status_line.done():
            writer.write(b" ")
            await asyncio.sleep(0.005)
    assert status_line.result().startswith(b"HTTP/1.1 408 ")


async def test_a_chunked_body_is_refused_where_it_crosses_the_limit_on_a_socket() -> None:
    async with connection(Rig(max_body_bytes=1000)) as (reader, writer):
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1f4\r\n%b\r\n" % (b" " * 500) * 3)
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer
    assert b"connection: close" in answer.lower()


async def test_an_announced_long_body_is_refused_at_once_on_a_socket() -> None:
    async with connection(Rig()) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 10000000000\r\n\r\n")
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_two_lengths_on_a_socket() -> None:
    async with connection(Rig()) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"malformed_request"' in answer


async def test_a_kept_connection_serves_on_after_an_error() -> None:
    body = json.dumps(chat(max_tokens=0)).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with connection(Rig()) as (reader, writer):
        for _ in range(3):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert b'"param":"max_tokens"' in await reader.readexactly(length)
