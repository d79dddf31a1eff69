"""GET /v1/capabilities."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.capabilities import capabilities
from server.service import CompletionService


class CapabilitiesPage:
    """What this model and this build can do."""

    def __init__(self, service: CompletionService, endpoints: Sequence[str]) -> None:
        self._service = service
        self._endpoints = endpoints

    async def show(self, _: Request) -> Response:
        """All of it.

        Raises:
            EngineUnavailable: no model has been loaded yet.
        """
        ready = self._service.check_model(None)
        body = msgspec.json.encode(capabilities(self._service.context, ready, self._endpoints))
        return Response(body, media_type="application/json")
