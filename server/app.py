"""The wiring of the HTTP side: which layers, which routes. Does no input or output.

Layers from the outside in: ``envelope`` (ids, errors, log), ``guard`` (host, sizes), ``auth`` (keys), ``deadline``
(time), routes.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.auth import Auth
from server.context import ServerContext
from server.deadline import Deadline
from server.envelope import Envelope
from server.errors import MethodNotAllowed, UnknownRoute
from server.guard import Guard
from server.metrics import Metrics
from server.routes.capabilities import CapabilitiesPage
from server.routes.chat import ChatCompletions
from server.routes.completions import Completions
from server.routes.health import Health
from server.routes.metrics import MetricsPage
from server.routes.models import Models
from server.routes.tokenize import Detokenize, Tokenize, Turns
from server.service import CompletionService

CAPABILITIES = "/v1/capabilities"


def create_app(context: ServerContext) -> Starlette:
    """The server as an ASGI application."""
    app = Starlette(
        routes=_routes(context),
        middleware=[
            Middleware(Envelope),
            Middleware(Guard, allowed_hosts=context.allowed_hosts, max_body_bytes=context.max_body_bytes),
            Middleware(Auth, api_keys=context.api_keys),
            Middleware(Deadline, write_stall_s=context.write_stall_s),
        ],
        exception_handlers={HTTPException: _in_our_words},
    )
    app.router.redirect_slashes = False
    return app


def _routes(context: ServerContext) -> list[BaseRoute]:
    metrics = Metrics(context.engine, context.loop_lag)
    service = CompletionService(context, metrics)
    models, health, turns = Models(context), Health(context), Turns()
    routes: list[BaseRoute] = [
        Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
        Route("/v1/completions", Completions(service), methods=["POST"]),
        Route("/tokenize", Tokenize(service, turns), methods=["POST"]),
        Route("/detokenize", Detokenize(service, turns), methods=["POST"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{model:path}", models.retrieve, methods=["GET"]),
        Route("/health", health.health, methods=["GET"]),
        Route("/livez", health.livez, methods=["GET"]),
        Route("/readyz", health.readyz, methods=["GET"]),
        Route("/metrics", MetricsPage(metrics).show, methods=["GET"]),
    ]
    return [*routes, Route(CAPABILITIES, CapabilitiesPage(service, _endpoints(routes)).show, methods=["GET"])]


def _endpoints(routes: Sequence[BaseRoute]) -> list[str]:
    """Method and path of each route, and of the one that shows them."""
    named = [(route, method) for route in routes if isinstance(route, Route) for method in route.methods or ()]
    return [f"GET {CAPABILITIES}", *(f"{method} {route.path_format}" for route, method in named if method != "HEAD")]


async def _in_our_words(_: Request, error: Exception) -> Response:
    """The router's own refusals as the exceptions of ``errors``, which ``envelope`` answers."""
    allow = (error.headers or {}).get("Allow") if isinstance(error, HTTPException) else None
    raise MethodNotAllowed(", ".join(sorted(allow.split(", ")))) if allow else UnknownRoute
