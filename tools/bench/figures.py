"""Looks figures up in the results of a run.

A load counts if every request was answered, with as many tokens as were asked for: neither Upwell nor a peer is judged
by another, and no peer is the best by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.bench.scrape import Durations


@dataclass(frozen=True)
class Peer:
    """The best figure that a peer has."""

    label: str
    value: float


class Figures:
    """The figures of Upwell and of its peers."""

    def __init__(self, systems: list[dict[str, Any]]) -> None:
        self.upwell: Mapping[str, Any] = next((s for s in systems if s["name"] == "upwell"), {"workloads": {}})
        self._peers = [s for s in systems if s["name"] != "upwell" and not s["missing"]]

    def load(self, workload: str) -> Mapping[str, Any]:
        """All of Upwell's figures of a load; none if it does not count."""
        return counted(self.upwell, workload)

    def ours(self, workload: str, name: str) -> float | None:
        """Upwell's figure."""
        return self.load(workload).get(name)

    def durations(self, workload: str, name: str) -> Durations | None:
        """What a histogram of Upwell's counted during a load."""
        found = self.load(workload).get(name)
        return Durations(**found) if found else None

    def best(self, workload: str, name: str, *, low: bool = False, http_only: bool = False) -> Peer | None:
        """The best peer's."""
        found = [
            Peer(system["label"], value)
            for system in self._peers
            if (system["http"] or not http_only) and (value := counted(system, workload).get(name)) is not None
        ]
        return (min if low else max)(found, key=lambda peer: peer.value, default=None)

    def best_start(self) -> Peer | None:
        """The peer that starts fastest, of those that then answered something as asked."""
        found = [
            Peer(system["label"], system["start_s"])
            for system in self._peers
            if "start_s" in system and any(counted(system, workload) for workload in system["workloads"])
        ]
        return min(found, key=lambda peer: peer.value, default=None)


def counted(system: Mapping[str, Any], workload: str) -> Mapping[str, Any]:
    """A system's figures of a load; none if there are none, or if there is an ``objection``."""
    figures: Mapping[str, Any] = system["workloads"].get(workload) or {}
    return {} if objection(figures) else figures


def objection(figures: Mapping[str, Any]) -> str | None:
    """Why the figures of a load do not count, None if they do."""
    if figures.get("errors"):
        return f"{figures['errors']} requests failed, the first: {figures.get('first_error')}"
    if figures.get("not_as_asked"):
        return f"other numbers of {' and '.join(figures['not_as_asked'])} than were asked for"
    return None


def beside_weights(system: Mapping[str, Any], weights_bytes: int) -> float | None:
    """PSS after all loads, less the weights as stored and the blocks of the KV cache that hold something."""
    end = system.get("memory_at_end")
    if not end or "kv_written_bytes" not in end:
        return None
    beside: float = end["pss"] - weights_bytes - end["kv_written_bytes"]
    return beside
