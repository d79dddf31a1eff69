"""The numbers of GET /metrics, in a registry of their own.

Counters about the engine come from ``EngineStats``, which starts again at zero with a new engine; what is exported
never goes back. Label values are fixed sets, so the number of series does not depend on what clients send.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from engine.types import GAP_BOUNDS_S, CacheMiss, EngineStats, Usage
from server.engine_client import EngineClient

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FINISH_REASONS = ("stop", "length", "abort", "error")

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_ENGINE_COUNTERS = {
    "prompt_tokens": "Prompt tokens computed or found in the prefix cache.",
    "generated_tokens": "Tokens generated.",
    "prefix_queried_tokens": "Prompt tokens looked up in the prefix cache.",
    "prefix_hit_tokens": "Prompt tokens found in the prefix cache.",
    "preemptions": "Requests that gave up their blocks and were computed again.",
    "steps": "Steps of the engine.",
    "native_cpu_s": "CPU seconds in native code, all threads, waiting for each other in a step included.",
    "native_wall_s": "Seconds in which native code ran.",
    "native_rested_calls": "Native calls that one of several threads made alone, since others got no processor.",
}


class Metrics:
    """Everything that is measured; one for each app, used on its event loop.

    Args:
        loop_lag: what the HTTP server has measured.
    """

    def __init__(self, engine: EngineClient, loop_lag: Histogram) -> None:
        self._engine = engine
        self._loop_lag = loop_lag
        self._counters = MonotonicCounters()
        self._finished = dict.fromkeys(FINISH_REASONS, 0)
        self._reasoning = 0
        self._predicted = {"accepted": 0, "rejected": 0}
        self._misses = dict.fromkeys(map(str, CacheMiss), 0)
        self._first_token = Histogram("time_to_first_token", "From arrival to the first token.", _LONG_S)
        self._inter_token = Histogram("inter_token", "Between two tokens of a request.", _SHORT_S)
        self._queue = Histogram("queue", "From arrival to the first step.", _LONG_S)
        self._end_to_end = Histogram("end_to_end", "From arrival to the last token.", _LONG_S)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def first_token(self, seconds: float) -> None:
        """A request has its first token, ``seconds`` after its arrival."""
        self._first_token.observe(seconds)

    def next_tokens(self, seconds: float, num_tokens: int) -> None:
        """``num_tokens`` came together, ``seconds`` after the ones before; observed once, as their mean."""
        self._inter_token.observe(seconds / num_tokens)

    def finished(self, reason: str, seconds: float, usage: Usage | None) -> None:
        """A request is complete, ``seconds`` after its arrival."""
        self._finished[reason] += 1
        self._end_to_end.observe(seconds)
        self._queue.observe(usage.queue_s if usage else 0.0)
        self._counters.observe(self._engine.stats, self._engine.restarts)
        if usage is not None:
            self._reasoning += usage.reasoning_tokens
            self._predicted["accepted"] += usage.accepted_tokens
            self._predicted["rejected"] += usage.rejected_tokens
            if usage.cache_miss is not None:
                self._misses[usage.cache_miss] += 1

    def ended_early(self, reason: str, num_requests: int) -> None:
        """Requests ended by the client's leaving (``abort``) or by an ``error``."""
        self._finished[reason] += num_requests

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Part of the registry's protocol: no names to check, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Part of the registry's protocol: all families, with the values of now."""
        stats = self._engine.stats
        self._counters.observe(stats, self._engine.restarts)
        yield GaugeMetricFamily("upwell_requests_running", "Requests in the running batch.", stats.running)
        yield GaugeMetricFamily("upwell_requests_waiting", "Requests waiting for their turn.", stats.waiting)
        blocks = GaugeMetricFamily("upwell_kv_blocks", "Blocks of the KV cache, by state.", labels=["state"])
        for state in ("free", "cached", "used"):
            blocks.add_metric([state], getattr(stats, f"blocks_{state}"))
        yield blocks
        ready = self._engine.ready
        kv_bytes = ready.kv_cache_bytes if ready else 0
        yield GaugeMetricFamily("upwell_kv_cache_bytes", "Bytes of all blocks of the KV cache together.", kv_bytes)
        for name, text in _ENGINE_COUNTERS.items():
            spelled = name.removesuffix("_s") + "_seconds" if name.endswith("_s") else name
            yield CounterMetricFamily(f"upwell_{spelled}", text, self._counters.totals[name])
        yield CounterMetricFamily("upwell_engine_restarts", "Engines started anew.", self._engine.restarts)
        yield from self._of_requests()
        yield _histogram_family(
            "upwell_between_steps_seconds",
            "From one step's native code to the next step's, while there are requests.",
            GAP_BOUNDS_S,
            self._counters.gap_counts,
            self._counters.totals["gaps_s"],
        )
        for histogram in (self._first_token, self._inter_token, self._queue, self._end_to_end, self._loop_lag):
            yield histogram.family()

    def _of_requests(self) -> Iterator[Metric]:
        """Counters of what requests said when they ended."""
        yield CounterMetricFamily("upwell_reasoning_tokens", "Tokens of answers that were thoughts.", self._reasoning)
        yield _labelled("prediction_tokens", "Tokens of predictions, by what became of them.", "fate", self._predicted)
        yield _labelled("cache_misses", "Requests whose prompt was not all cached, by why.", "reason", self._misses)
        yield _labelled("requests_finished", "Requests that ended, by reason.", "reason", self._finished)


def _labelled(name: str, text: str, label: str, numbers: Mapping[str, float]) -> Metric:
    """A counter for each value of one label."""
    family = CounterMetricFamily(f"upwell_{name}", text, labels=[label])
    for value, number in numbers.items():
        family.add_metric([value], number)
    return family


class Histogram:
    """Counts of durations by size. Without the locks and labels of prometheus_client's, since one is moved every token.

    Args:
        bounds_s: upper bounds of the buckets, ascending.
    """

    def __init__(self, name: str, text: str, bounds_s: tuple[float, ...]) -> None:
        self._name = f"upwell_{name}_seconds"
        self._text = text
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def family(self) -> Metric:
        """What has been counted, each bucket with all smaller ones in it."""
        return _histogram_family(self._name, self._text, self._bounds_s, self._counts, self._sum_s)


def _histogram_family(
    name: str, text: str, bounds_s: Sequence[float], counts: Sequence[int], sum_s: float
) -> HistogramMetricFamily:
    """Counts by size as Prometheus has them: each bucket with all smaller ones in it."""
    names = [*map(str, bounds_s), "+Inf"]
    buckets = list(zip(names, accumulate(counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=sum_s)


def loop_lag_histogram() -> Histogram:
    """For how late the event loop is; see ``http_server.HttpServer``."""
    return Histogram("event_loop_lag", "How late the API's event loop was at a timer, twice a second.", _SHORT_S)


class MonotonicCounters:
    """Sums of the engine's counters over all engines there have been.

    What an engine counted after it was last observed, it takes with it; so it is observed after every request as well
    as at every scrape.
    """

    def __init__(self) -> None:
        self._last = EngineStats()
        self._restarts = 0
        self.totals: dict[str, float] = dict.fromkeys((*_ENGINE_COUNTERS, "gaps_s"), 0)
        self.gap_counts = [0] * len(self._last.gap_counts)

    def observe(self, stats: EngineStats, restarts: int) -> None:
        """Add what has been counted since the last call; an engine that was started anew has counted from 0."""
        if restarts != self._restarts:
            self._last, self._restarts = EngineStats(), restarts
        if stats is self._last:
            return
        for name in self.totals:
            self.totals[name] += getattr(stats, name) - getattr(self._last, name)
        for index, (now, last) in enumerate(zip(stats.gap_counts, self._last.gap_counts, strict=True)):
            self.gap_counts[index] += now - last
        self._last = stats
