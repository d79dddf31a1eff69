"""What a server says in Prometheus' text format, and what a load added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """One page of metrics; samples are named with their labels: ``upwell_kv_blocks{state=free}``."""

    def __init__(self, page: str) -> None:
        self._samples = {
            sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    def value(self, name: str) -> float | None:
        """A counter's or a gauge's value, None if there is none of that name."""
        return self._samples.get(name)

    def since(self, before: Scrape, name: str) -> float | None:
        """What a counter has counted since ``before``."""
        now, then = self.value(name), before.value(name)
        return None if now is None or then is None else now - then

    def durations_since(self, before: Scrape, name: str) -> dict[str, Any] | None:
        """What a histogram in seconds has counted since ``before``, as ``Durations`` takes it; None if nothing."""
        start = f"{name}_bucket{{le="
        buckets = {float(key[len(start) : -1]): key for key in self._samples if key.startswith(start)}
        bounds_s = sorted(buckets)
        cumulative = [int(self.since(before, buckets[bound_s]) or 0) for bound_s in bounds_s]
        if not cumulative or not cumulative[-1]:
            return None
        counts = [now - below for now, below in zip(cumulative, [0, *cumulative], strict=False)]
        total_s = self.since(before, f"{name}_sum") or 0.0
        return {"bounds_s": bounds_s[:-1], "counts": counts, "total_s": total_s}


@dataclass(frozen=True)
class Durations:
    """Durations counted by size.

    Attributes:
        bounds_s: upper bounds of the sizes, ascending.
        counts: one more than those: the last are beyond all bounds.
    """

    bounds_s: Sequence[float]
    counts: Sequence[int]
    total_s: float

    @property
    def number(self) -> int:
        """How many there are."""
        return sum(self.counts)

    @property
    def mean_s(self) -> float:
        """Their mean."""
        return self.total_s / self.number

    def share_within(self, bound_s: float) -> float:
        """Which share of them was no longer than one of the bounds."""
        within = sum(count for count, bound in zip(self.counts, self.bounds_s, strict=False) if bound <= bound_s)
        return within / self.number

    def all_within_s(self) -> float | None:
        """The bound that none was beyond, None if some were beyond the last."""
        longest = max(index for index, count in enumerate(self.counts) if count)
        return self.bounds_s[longest] if longest < len(self.bounds_s) else None
