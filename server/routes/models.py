"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.answers import ModelCard, ModelList
from server.context import ServerContext
from server.errors import UnknownModel


class Models:
    """The names of the one model that this server has."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def list(self, _: Request) -> Response:
        """All served names."""
        return _json(ModelList(data=[self._card(name) for name in self._context.model_names]))

    async def retrieve(self, request: Request) -> Response:
        """One served name.

        Raises:
            UnknownModel: not one of them.
        """
        name = request.path_params["model"]
        if name not in self._context.model_names:
            raise UnknownModel(name)
        return _json(self._card(name))

    def _card(self, name: str) -> ModelCard:
        ready = self._context.engine.ready
        max_model_len = msgspec.UNSET if ready is None else ready.max_model_len
        return ModelCard(id=name, created=self._context.created, max_model_len=max_model_len)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
