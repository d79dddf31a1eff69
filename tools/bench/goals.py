"""The goals, and whether the figures of one run reach them.

A factor is against the best peer of the same run: the most tokens/s, or the shortest time, that any of them had. A
goal whose figures are missing is neither reached nor missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.bench.limits import Limits

MS_BESIDE_NATIVE, US_PER_TOKEN, START_S, MEMORY_BYTES = 0.8, 25.0, 1.5, 120e6


@dataclass(frozen=True)
class Verdict:
    """One line of the table; texts are ready to be shown.

    Attributes:
        reached: None if it could not be told.
    """

    what: str
    goal: str
    value: str
    peer: str
    share: str
    reached: bool | None


@dataclass(frozen=True)
class Peer:
    """The best figure that a peer has."""

    label: str
    value: float


class Figures:
    """Looks figures up in the results of a run."""

    def __init__(self, systems: list[dict[str, Any]]) -> None:
        self.upwell: Mapping[str, Any] = next((s for s in systems if s["name"] == "upwell"), {"workloads": {}})
        self._peers = [s for s in systems if s["name"] != "upwell" and not s["missing"]]

    def ours(self, workload: str, name: str) -> float | None:
        """Upwell's figure."""
        return _figure(self.upwell, workload, name)

    def best(self, workload: str, name: str, *, low: bool = False, http_only: bool = False) -> Peer | None:
        """The best peer's."""
        found = [
            Peer(system["label"], value)
            for system in self._peers
            if (system["http"] or not http_only) and (value := _figure(system, workload, name)) is not None
        ]
        return (min if low else max)(found, key=lambda peer: peer.value, default=None)

    def best_start(self) -> Peer | None:
        """The peer that starts fastest."""
        found = [Peer(system["label"], system["start_s"]) for system in self._peers if "start_s" in system]
        return min(found, key=lambda peer: peer.value, default=None)


def judge(run: dict[str, Any]) -> list[Verdict]:
    """All goals."""
    figures = Figures(run["systems"])
    limits = Limits.from_raw(run["limits"]) if run["limits"] else None
    return [
        _share(figures, "d1", limits.one_stream if limits else None, 0.70, "memory's limit"),
        _at_least(figures, "1 stream, tokens/s", "d1", "tokens_s", 2.0),
        *(
            line
            for streams in (4, 16)
            for line in (
                _at_least(figures, f"{streams} streams, tokens/s", f"d{streams}", "tokens_s", 3.0),
                _at_most(figures, f"{streams} streams, first token", f"d{streams}", 0.4),
            )
        ),
        _share(figures, "d64", limits.many_streams if limits else None, 0.60, "the int8 ceiling"),
        _at_least(figures, "64 streams, tokens/s", "d64", "tokens_s", 2.2),
        _at_most(figures, "64 streams, first token", "d64", 0.5),
        _prefill(figures, "long1000", "1,000", 1800, limits),
        _prefill(figures, "long4000", "4,000", 1500, limits),
        _at_most(figures, "4,000-token prompt, first token", "long4000", 0.65),
        _warm_prefix(figures),
        _at_least(figures, "tiny requests, requests/s", "tiny", "requests_s", 1.4, http_only=True),
        _beside_native(figures),
        _api_cpu(figures),
        _start(figures),
        _memory(figures, run["weights_bytes"]),
    ]


def _figure(system: Mapping[str, Any], workload: str, name: str) -> float | None:
    figures = system["workloads"].get(workload) or {}
    value: float | None = figures.get(name)
    return None if figures.get("errors") else value


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
    return f"{shown} {unit}".rstrip()


def _share(figures: Figures, workload: str, limit: float | None, least: float, of: str) -> Verdict:
    value = figures.ours(workload, "tokens_s")
    share = value / limit if value is not None and limit else None
    streams = workload.removeprefix("d")
    return Verdict(
        f"{streams} stream{'s' if streams != '1' else ''}, share of {of}",
        f">= {least:.0%} of {_number(limit)}",
        _number(value, "tokens/s"),
        "",
        "-" if share is None else f"{share:.0%}",
        None if share is None else share >= least,
    )


def _at_least(
    figures: Figures, what: str, workload: str, name: str, factor: float, *, http_only: bool = False
) -> Verdict:
    value, best = figures.ours(workload, name), figures.best(workload, name, http_only=http_only)
    ratio = value / best.value if value is not None and best else None
    unit = "requests/s" if name == "requests_s" else "tokens/s"
    goal = f">= {factor:g} x best {'HTTP ' if http_only else ''}peer"
    return Verdict(
        what, goal, _number(value, unit), _against(ratio, best), "", None if ratio is None else ratio >= factor
    )


def _at_most(figures: Figures, what: str, workload: str, factor: float) -> Verdict:
    value, best = figures.ours(workload, "ttft_p50_ms"), figures.best(workload, "ttft_p50_ms", low=True)
    ratio = value / best.value if value is not None and best else None
    goal = f"<= {factor:g} x best peer"
    return Verdict(
        what, goal, _number(value, "ms"), _against(ratio, best), "", None if ratio is None else ratio <= factor
    )


def _against(ratio: float | None, best: Peer | None) -> str:
    return "-" if best is None else f"{_number(ratio)} x {best.label} ({_number(best.value)})"


def _prefill(figures: Figures, workload: str, tokens: str, least: float, limits: Limits | None) -> Verdict:
    value, best = figures.ours(workload, "prompt_tokens_s"), figures.best(workload, "prompt_tokens_s")
    ratio = value / best.value if value is not None and best else None
    return Verdict(
        f"{tokens}-token prompt, cold",
        f">= {least:,.0f} tokens/s",
        _number(value, "tokens/s"),
        _against(ratio, best),
        f"{value / limits.prefill:.0%}" if value is not None and limits else "",
        None if value is None else value >= least,
    )


def _warm_prefix(figures: Figures) -> Verdict:
    cold, warm = figures.ours("warm", "cold_ms"), figures.ours("warm", "warm_ms")
    share = warm / cold if warm is not None and cold else None
    best = figures.best("warm", "warm_ms", low=True)
    return Verdict(
        "warm prefix, first token",
        "< 5 % of cold",
        "-" if share is None else f"{share:.1%} ({_number(warm)} of {_number(cold)} ms)",
        _against(warm / best.value if warm is not None and best else None, best),
        "",
        None if share is None else share < 0.05,
    )


def _beside_native(figures: Figures) -> Verdict:
    workload = figures.upwell["workloads"].get("tiny") or {}
    value = None
    if workload.get("requests"):
        outside_s = sum(workload["cpu_s"].values()) - workload.get("native_cpu_s", 0.0)
        value = outside_s / workload["requests"] * 1e3
    told = "native_cpu_s" in workload
    shown = _number(value, "ms") + ("" if told or value is None else " (all CPU: the native part is not told)")
    reached = None if value is None or (not told and value >= MS_BESIDE_NATIVE) else value < MS_BESIDE_NATIVE
    return Verdict(
        "tiny requests, CPU outside native code", f"< {MS_BESIDE_NATIVE} ms a request", shown, "", "", reached
    )


def _api_cpu(figures: Figures) -> Verdict:
    workload = figures.upwell["workloads"].get("d64") or {}
    value = workload["cpu_s"]["api"] / workload["tokens"] * 1e6 if workload.get("tokens") else None
    reached = None if value is None else value < US_PER_TOKEN
    goal = f"< {US_PER_TOKEN:g} us a streamed token"
    return Verdict("64 streams, CPU of the API process", goal, _number(value, "us"), "", "", reached)


def _start(figures: Figures) -> Verdict:
    value: float | None = figures.upwell.get("start_s")
    best = figures.best_start()
    ratio = value / best.value if value is not None and best else None
    reached = None if value is None else value < START_S
    return Verdict("start until ready", f"< {START_S} s", _number(value, "s"), _against(ratio, best), "", reached)


def _memory(figures: Figures, weights_bytes: int) -> Verdict:
    value = beside_weights(figures.upwell, weights_bytes)
    shown = "-" if value is None else f"{value / 1e6:,.0f} MB"
    reached = None if value is None else value < MEMORY_BYTES
    return Verdict("memory beside weights and KV cache", f"< {MEMORY_BYTES / 1e6:.0f} MB", shown, "", "", reached)


def beside_weights(system: Mapping[str, Any], weights_bytes: int) -> float | None:
    """PSS after all loads, less the weights as stored and as much of the KV cache as is resident.

    A cache that was resident when the server started counts whole; else the blocks that hold something count.
    """
    start, end = system.get("memory_at_start"), system.get("memory_at_end")
    if not start or not end or "kv_bytes" not in end:
        return None
    whole = start["pss"] - weights_bytes > end["kv_bytes"]
    resident: float = end["pss"] - weights_bytes - (end["kv_bytes"] if whole else end["kv_written_bytes"])
    return resident
