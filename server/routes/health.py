"""GET /livez, /readyz and /health."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.context import ServerContext
from server.engine_client import EngineState, EngineUnavailable
from server.envelope import record_of
from server.errors import ErrorObject, answer_for

RETRY_AFTER_S = 2


class Alive(msgspec.Struct, frozen=True):
    """The answer of /livez and /readyz."""

    status: str


class HealthReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of /health; what the engine has not told yet is left out.

    Attributes:
        restarts: engines started anew since the server began.
        provenance: operation -> the backend that runs it.
        error: why the server is not ready, if it is not.
    """

    state: EngineState
    model: str
    restarts: int = msgspec.field(default_factory=int)
    max_model_len: int | None = None
    architecture: str | None = None
    backend: str | None = None
    provenance: dict[str, str] | None = None
    error: ErrorObject | None = None


class Health:
    """Whether the process lives, whether it can serve, and what it serves."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def livez(self, _: Request) -> Response:
        """200 as long as the event loop turns."""
        return _json(Alive("alive"))

    async def readyz(self, _: Request) -> Response:
        """200 while the engine takes requests.

        Raises:
            EngineUnavailable: it does not.
        """
        self._require_ready()
        return _json(Alive("ready"))

    async def health(self, request: Request) -> Response:
        """The details; 503 with an error object beside them while the engine takes no requests."""
        try:
            self._require_ready()
        except EngineUnavailable as error:
            answer = answer_for(error, record_of(request.scope).request_id)
            return _json(self._report(answer.body.error), answer.status, answer.headers)
        return _json(self._report(None))

    def _require_ready(self) -> None:
        state = self._context.engine.state
        if state is not EngineState.READY:
            raise EngineUnavailable(f"The engine is {state.value}.", retry_after_s=RETRY_AFTER_S)

    def _report(self, error: ErrorObject | None) -> HealthReport:
        engine, ready = self._context.engine, self._context.engine.ready
        return HealthReport(
            state=engine.state,
            model=self._context.model_names[0],
            restarts=engine.restarts,
            max_model_len=ready.max_model_len if ready else None,
            architecture=ready.architecture if ready else None,
            backend=ready.backend if ready else None,
            provenance=ready.provenance if ready else None,
            error=error,
        )


def _json(body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
