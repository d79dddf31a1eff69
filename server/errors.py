"""Every error the API answers with: the exceptions that only HTTP has, and ONE table from exception to answer.

    UpwellError
    ├── RequestRefused        what is wrong lies in the HTTP request, not in a field of its body
    │   ├── InvalidApiKey     401
    │   ├── UnknownRoute      404
    │   ├── UnknownModel      404
    │   ├── MethodNotAllowed  405
    │   ├── BodyTimeout       408
    │   ├── BodyTooLarge      413
    │   ├── UnsupportedMedia  415
    │   ├── MisdirectedHost   421
    │   └── MalformedRequest  400
    ├── Overloaded            429, before any work was done
    ├── DeadlineExceeded      504, the time that the client gave is up
    ├── GenerationFailed      500, the engine gave up on this request alone
    └── the rest of the tree in ``engine.errors``

Called by ``envelope`` for errors before the first byte and by ``sse`` for those after it. Invariant: whatever is not in
the table is answered as 500 with nothing but the request's id.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import msgspec

from engine.errors import ContextLengthExceeded, EngineDead, InvalidRequest, UpwellError
from engine.types import ErrorInfo
from server.engine_client import EngineUnavailable


class RequestRefused(UpwellError):
    """The HTTP request itself cannot be accepted.

    Attributes:
        headers: response headers that belong to the refusal.
    """

    def __init__(self, message: str, *, headers: dict[str, str] | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.headers = headers or {}
        self.param = param


class InvalidApiKey(RequestRefused):
    """No key, or none that this server knows."""

    def __init__(self) -> None:
        super().__init__(
            "A valid API key is needed: send it as 'Authorization: Bearer KEY'.",
            headers={"WWW-Authenticate": "Bearer"},
        )


class UnknownRoute(RequestRefused):
    """No such path."""

    def __init__(self) -> None:
        super().__init__("There is nothing at this path; openapi.yaml lists the paths of this server.")


class UnknownModel(RequestRefused):
    """The model named is not served here."""

    def __init__(self, name: str) -> None:
        shown = name[:64].encode("unicode_escape").decode("ascii")
        super().__init__(f"The model '{shown}' is not served here; GET /v1/models lists what is.", param="model")


class MethodNotAllowed(RequestRefused):
    """The path exists, the method does not."""

    def __init__(self, allow: str) -> None:
        super().__init__(f"This path takes only {allow}.", headers={"Allow": allow})


class BodyTimeout(RequestRefused):
    """The client stopped sending in the middle of its body."""


class BodyTooLarge(RequestRefused):
    """More bytes than the server takes."""


class UnsupportedMedia(RequestRefused):
    """Not plain ``application/json``."""


class MisdirectedHost(RequestRefused):
    """A Host header that this server does not go by: perhaps a web page that rebinds its own name."""


class MalformedRequest(RequestRefused):
    """Headers that contradict each other."""


class Overloaded(UpwellError):
    """As many requests are open as the server admits."""

    def __init__(self) -> None:
        super().__init__("The server has as many open requests as it admits; send the request again a little later.")


class DeadlineExceeded(UpwellError):
    """The client's own time-out has passed, in the queue or while the answer was generated."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"The answer was not complete within the {timeout_s:g} s of X-Request-Timeout; it was ended. "
            "Allow more time, or ask for less."
        )


class GenerationFailed(UpwellError):
    """The engine ended this request with an error that is not the client's.

    Attributes:
        code: the engine's word for it, such as ``numerical_error``.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True)
class ErrorKind:
    """How one kind of exception is answered; a code of None means the exception's own."""

    status: int
    type: str
    code: str | None


_INVALID = "invalid_request_error"

ERROR_TABLE: dict[type[Exception], ErrorKind] = {
    InvalidRequest: ErrorKind(400, _INVALID, None),
    MalformedRequest: ErrorKind(400, _INVALID, "malformed_request"),
    InvalidApiKey: ErrorKind(401, _INVALID, "invalid_api_key"),
    UnknownRoute: ErrorKind(404, _INVALID, "not_found"),
    UnknownModel: ErrorKind(404, _INVALID, "model_not_found"),
    MethodNotAllowed: ErrorKind(405, _INVALID, "method_not_allowed"),
    BodyTimeout: ErrorKind(408, _INVALID, "request_timeout"),
    BodyTooLarge: ErrorKind(413, _INVALID, "request_too_large"),
    UnsupportedMedia: ErrorKind(415, _INVALID, "unsupported_media_type"),
    MisdirectedHost: ErrorKind(421, _INVALID, "misdirected_host"),
    Overloaded: ErrorKind(429, "rate_limit_error", "overloaded"),
    DeadlineExceeded: ErrorKind(504, "timeout_error", "deadline_exceeded"),
    EngineUnavailable: ErrorKind(503, "service_unavailable_error", "engine_unavailable"),
    EngineDead: ErrorKind(503, "service_unavailable_error", "engine_restarted"),
    GenerationFailed: ErrorKind(500, "server_error", None),
    Exception: ErrorKind(500, "server_error", "internal_error"),
}

_CLIENT_CODES = frozenset({"invalid_value", "unsupported_parameter", "invalid_grammar", "grammar_failed"})


class ErrorObject(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every error, and the data of an error event."""

    error: ErrorObject


@dataclass(frozen=True)
class ErrorAnswer:
    """An exception, ready to be sent."""

    status: int
    body: ErrorResponse
    headers: dict[str, str] = field(default_factory=dict)


def answer_for(error: Exception, request_id: str) -> ErrorAnswer:
    """What the client is told about ``error``."""
    kind = next(ERROR_TABLE[cls] for cls in type(error).__mro__ if cls in ERROR_TABLE)
    shown = ErrorObject(
        message=_message(error, kind, request_id),
        type=kind.type,
        param=getattr(error, "param", None) if isinstance(error, UpwellError) else None,
        code=kind.code or getattr(error, "code", None),
    )
    return ErrorAnswer(kind.status, ErrorResponse(shown), _headers(error))


def from_error_info(info: ErrorInfo) -> UpwellError:
    """The exception that an engine's ``TokenDelta.error`` stands for."""
    if info.code == "context_length_exceeded":
        return ContextLengthExceeded(info.message, param=info.param)
    if info.code in _CLIENT_CODES:
        return InvalidRequest(info.message, param=info.param, code=info.code)
    return GenerationFailed(info.message, code=info.code, param=info.param)


def is_internal(error: Exception) -> bool:
    """Whether ``error`` is a defect of the server rather than an answer it meant to give."""
    return not any(cls in ERROR_TABLE for cls in type(error).__mro__ if cls is not Exception)


def _message(error: Exception, kind: ErrorKind, request_id: str) -> str:
    if kind.code == "internal_error":
        return f"The server failed on request {request_id}; its log has the cause under this id."
    return str(error)


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, RequestRefused):
        return error.headers
    if isinstance(error, EngineUnavailable):
        return {"Retry-After": str(max(1, error.retry_after_s))}
    if isinstance(error, Overloaded | EngineDead | DeadlineExceeded):
        # Spread out, so that the clients refused together do not come back together.
        return {"Retry-After": str(1 + secrets.randbelow(4))}
    return {}
