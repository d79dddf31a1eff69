"""What surrounds every request: its id, its response headers, the answer to its error, and its line in the log.

The outermost layer of the app. Invariants: every request is answered or its connection is cut; every error of every
layer below becomes OpenAI's error object here and nowhere else; one log line a request, without prompt or key, with
control characters escaped.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.disconnect import ClientDisconnected
from server.errors import answer_for, is_internal

log = logging.getLogger("upwell")

CLIENT_CLOSED_REQUEST = 499
"""Logged where nobody is left to be answered, as nginx does."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_LOGGED_CHARS = 200


@dataclass
class RequestRecord:
    """What is known about one HTTP request, for the log and for the layers below.

    Attributes:
        arrived_at_s: when its head was there, monotonic seconds.
        tenant: whose key it came with; "" without keys.
        status: of the response, 0 before it has begun.
        error: code of the error it ended with.
        user, safety_identifier: for whom it is, as its client says.
    """

    request_id: str
    arrived_at_s: float
    tenant: str = ""
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    user: str = ""
    safety_identifier: str = ""


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that ``scope`` belongs to."""
    record: RequestRecord = scope["upwell.record"]
    return record


class Envelope:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(Headers(scope=scope)), time.monotonic())
        scope["upwell.record"] = record

        async def send_in_envelope(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_response_headers(record)]
            await send(message)

        try:
            await self._app(scope, receive, send_in_envelope)
        except ClientDisconnected:
            record.status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            await _answer_error(error, record, send_in_envelope)
        finally:
            _log_request(scope, record, time.monotonic() - record.arrived_at_s)


async def _answer_error(error: Exception, record: RequestRecord, send: Send) -> None:
    """Send the error object. A response that has begun cannot be mended: returning leaves it cut off, visibly."""
    answer = answer_for(error, record.request_id)
    record.error = answer.body.error.code or ""
    if is_internal(error):
        log.error("id=%s %s", record.request_id, _where(error))
    if record.status:
        return
    body = msgspec.json.encode(answer.body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _where(error: Exception) -> str:
    """The type of the error and the calls that led to it; not its message, which may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    calls = " < ".join(f"{frame.name}({Path(frame.filename).name}:{frame.lineno})" for frame in reversed(frames))
    return f"internal error {type(error).__name__} in {calls}"


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)


def _response_headers(record: RequestRecord) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-request-id", record.request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]


def _log_request(scope: Scope, record: RequestRecord, seconds: float) -> None:
    log.info(
        "id=%s method=%s path=%s status=%d error=%s prompt_tokens=%d completion_tokens=%d%s ms=%.0f",
        record.request_id,
        _escaped(scope["method"]),
        _escaped(scope["path"]),
        record.status,
        record.error or "-",
        record.prompt_tokens,
        record.completion_tokens,
        _for_whom(record),
        1000 * seconds,
    )


def _for_whom(record: RequestRecord) -> str:
    named = {"user": record.user, "safety_identifier": record.safety_identifier}
    return "".join(f" {name}={_escaped(value)}" for name, value in named.items() if value)


def _escaped(text: str) -> str:
    """One line of ASCII without spaces, at most ``_MAX_LOGGED_CHARS`` characters of the original."""
    return text[:_MAX_LOGGED_CHARS].encode("unicode_escape").decode("ascii").replace(" ", "\\x20")
