"""A real engine in this process, as the routes see it: it steps between two turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from engine.engine import Engine
from engine.errors import InvalidRequest
from engine.types import EngineReady, EngineStats, ErrorInfo, FinishReason, GenerateRequest, TokenDelta
from server.engine_client import EngineState, TokenStream


class LocalEngine:
    """Implements ``EngineClient``.

    Attributes:
        submitted: every request handed over, in order.
    """

    state = EngineState.READY
    restarts = 0
    stats = EngineStats()

    def __init__(self, engine: Engine, ready: EngineReady) -> None:
        self.ready = ready
        self.submitted: list[GenerateRequest] = []
        self._engine = engine
        self._streams: dict[str, TokenStream] = {}
        self._stepping: asyncio.Task[None] | None = None

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def submit(self, requests: Sequence[GenerateRequest]) -> TokenStream:
        """See ``EngineClient.submit``."""
        stream = TokenStream([request.request_id for request in requests], self._abort)
        for request in requests:
            self.submitted.append(request)
            self._streams[request.request_id] = stream
            try:
                self._engine.submit(request)
            except InvalidRequest as error:
                self._feed(
                    TokenDelta(
                        request.request_id, [], "",
                        finish=FinishReason.ERROR, error=ErrorInfo(error.code, str(error), error.param),
                    )
                )  # fmt: skip
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.get_running_loop().create_task(self._step())
        return stream

    async def _step(self) -> None:
        while self._engine.has_work:
            for delta in self._engine.step().deltas:
                self._feed(delta)
            await asyncio.sleep(0)

    def _feed(self, delta: TokenDelta) -> None:
        stream = self._streams[delta.request_id]
        if delta.finish is not None:
            del self._streams[delta.request_id]
        stream.feed(delta)

    def _abort(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self._engine.abort(request_id)
