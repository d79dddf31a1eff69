"""What is checked about a request before any route sees it, and how its body is read.

``Guard`` is the second layer of the app, below ``envelope``; ``read_json_body`` is called by the routes that take a
body. Invariants: no body is held beyond the limit, whatever its headers claim; only plain ``application/json`` is
read; a browser that was lured here by a rebound host name is refused.
"""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.disconnect import ClientDisconnected
from server.errors import BodyTimeout, BodyTooLarge, MalformedRequest, MisdirectedHost, UnsupportedMedia

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names that a server bound to a loopback address goes by."""

_CLOSE = {"Connection": "close"}
"""Sent where the rest of a body would otherwise have to be read and thrown away."""


class Guard:
    """ASGI middleware: the Host header, contradicting lengths, and the size of the body."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: frozenset[str] | None, max_body_bytes: int) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on.

        Raises:
            RequestRefused: see ``errors``.
        """
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_length(headers)
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            raise MalformedRequest("The request has more than one Host header.", headers=_CLOSE)
        if self._allowed_hosts is not None and _host_name(hosts[0] if hosts else "") not in self._allowed_hosts:
            raise MisdirectedHost(
                "The Host header names a host that this server does not go by; use the address it was started with."
            )

    def _check_length(self, headers: Headers) -> None:
        lengths = headers.getlist("content-length")
        if len(lengths) > 1 or (lengths and "transfer-encoding" in headers):
            raise MalformedRequest("The request gives the length of its body in more than one way.", headers=_CLOSE)
        if not lengths:
            return
        if not (lengths[0].isascii() and lengths[0].isdigit()):
            raise MalformedRequest("The Content-Length header is not a number.", headers=_CLOSE)
        if len(lengths[0]) > 18 or int(lengths[0]) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)


async def read_json_body(
    scope: Scope, receive: Receive, *, max_body_bytes: int, idle_s: float, total_s: float
) -> bytes:
    """The whole body of a request that says it is JSON.

    Raises:
        UnsupportedMedia: another content type, or a compressed body.
        BodyTooLarge: more than ``max_body_bytes``.
        BodyTimeout: nothing came for ``idle_s``, or not everything within ``total_s``.
        ClientDisconnected: the client left.
    """
    _check_media(Headers(scope=scope))
    parts: list[bytes] = []
    num_bytes = 0
    deadline_s = time.monotonic() + total_s
    while True:
        message = await _next_message(receive, min(idle_s, deadline_s - time.monotonic()))
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("The client left in the middle of its body.")
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_body_bytes:
            raise _too_large(max_body_bytes)
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _next_message(receive: Receive, patience_s: float) -> Message:
    try:
        async with asyncio.timeout(patience_s):
            return await receive()
    except TimeoutError:
        raise BodyTimeout("The body did not come in time; send it without long pauses.", headers=_CLOSE) from None


def _check_media(headers: Headers) -> None:
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMedia("A Content-Encoding is not supported; send the body uncompressed.", headers=_CLOSE)
    media_type, _, parameters = headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMedia("The Content-Type must be application/json.", headers=_CLOSE)
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMedia("JSON is always UTF-8; leave out the charset.", headers=_CLOSE)


def _too_large(max_body_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than the {max_body_bytes} bytes that this server takes.", headers=_CLOSE)


def _host_name(host: str) -> str:
    """Host without its port, in lower case; an IPv6 address keeps its brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    name, _, port = host.partition(":")
    return name if port.isdigit() or not port else host
