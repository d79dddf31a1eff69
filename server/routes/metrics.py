"""GET /metrics, for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from server.metrics import CONTENT_TYPE, Metrics


class MetricsPage:
    """The text exposition of all metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def show(self, _: Request) -> Response:
        """All metrics, as they are now."""
        return Response(self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})
