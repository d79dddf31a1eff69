"""Who may use the server: optional API keys, asked for on every path but two.

The third layer of the app. Invariants: the decision is made on ``scope["path"]`` alone, and a path that is not listed
as open is closed; keys are compared by digest in constant time; no key is logged or sent back.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from server.envelope import record_of
from server.errors import InvalidApiKey

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""What an orchestrator asks without a key; neither tells anything about the model."""

_TENANT_CHARS = 16


class Auth:
    """ASGI middleware: refuses requests without a known key, and notes whose key it was."""

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on.

        Raises:
            InvalidApiKey: a key is needed here and none, or an unknown one, was sent.
        """
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS:
            record_of(scope).tenant = self._tenant(scope)
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(key.strip()).digest()
        # Every digest is compared, so that the time does not tell which one matched.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise InvalidApiKey
        return digest.hex()[:_TENANT_CHARS]
