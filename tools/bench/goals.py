"""The goals, and whether the figures of one run reach them.

A factor is against the best peer of the same run: the most tokens/s, or the shortest time, that any of them had. A
goal whose figures are missing is neither reached nor missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tools.bench.figures import Figures, Peer, beside_weights
from tools.bench.limits import Limits

MS_BESIDE_NATIVE, US_PER_TOKEN, START_S, MEMORY_BYTES = 0.8, 25.0, 1.5, 120e6
LAG_SHOWN_S = 0.01
"""One of the histogram's bounds."""


@dataclass(frozen=True)
class Goal:
    """One demand on a figure.

    Attributes:
        name: what it is against, in a word.
        reached: None if it could not be told.
    """

    name: str
    text: str
    reached: bool | None


@dataclass(frozen=True)
class Verdict:
    """One line of the table; texts are ready to be shown. Without goals the figure is only shown.

    Attributes:
        what: names the line, and stays the same from run to run.
        value: what was measured.
        peer: the ratio to the best peer.
        share: the share of what the machine can do.
    """

    what: str
    goals: tuple[Goal, ...]
    value: str
    peer: str = ""
    share: str = ""

    @property
    def goal(self) -> str:
        """All that is demanded."""
        return " and ".join(goal.text for goal in self.goals) or "(shown)"

    @property
    def reached(self) -> bool | None:
        """False if any goal is missed, None if one could not be told or there is none."""
        found = {goal.reached for goal in self.goals}
        return False if False in found else None if None in found or not found else True

    @property
    def answer(self) -> str:
        """``reached`` as a word; where several goals differ, with one word for each."""
        words = {True: "yes", False: "no", None: "?"}
        if not self.goals:
            return ""
        each = [f"{goal.name}: {words[goal.reached]}" for goal in self.goals]
        return words[self.reached] + (f" ({', '.join(each)})" if len({one.reached for one in self.goals}) > 1 else "")


def judge(run: dict[str, Any]) -> list[Verdict]:
    """All lines of the table."""
    figures = Figures(run["systems"])
    limits = Limits.from_raw(run["limits"]) if run["limits"] else None
    return [
        _one_stream(figures, limits),
        *(
            line
            for streams in (4, 16)
            for line in (
                _some_streams(figures, streams, limits),
                _first_token(figures, f"{streams} streams", f"d{streams}", 0.4),
            )
        ),
        _many_streams(figures, limits),
        _first_token(figures, "64 streams", "d64", 0.5),
        _prefill(figures, "1,000", "long1000", 1800, limits),
        _prefill(figures, "4,000", "long4000", 1500, limits),
        _first_token(figures, "4,000-token prompt", "long4000", 0.65),
        _warm_prefix(figures),
        _tiny(figures, limits),
        _beside_native(figures),
        _between_steps(figures, "1 stream", "d1", 150e-6),
        _between_steps(figures, "64 streams", "d64", 1e-3),
        _api_cpu(figures),
        _loop_lag(figures),
        _start(figures),
        _memory(figures, run["weights_bytes"]),
    ]


def _one_stream(figures: Figures, limits: Limits | None) -> Verdict:
    value = figures.ours("d1", "tokens_s")
    weights, large = (limits.one_stream, limits.one_stream_from_memory) if limits else (None, None)
    share = f"{_share(value, weights)} (weights' size); {_share(value, large)} (1 GiB)" if limits else ""
    limit = _limit_goal(value, weights, 0.70, "of reading the weights")
    return _rate(figures, "1 stream, tokens/s", "d1", 2.0, share, (limit,))


def _some_streams(figures: Figures, streams: int, limits: Limits | None) -> Verdict:
    value = figures.ours(f"d{streams}", "tokens_s")
    share = _share(value, min(streams * limits.one_stream, limits.many_streams)) if limits else ""
    return _rate(figures, f"{streams} streams, tokens/s", f"d{streams}", 3.0, share)


def _many_streams(figures: Figures, limits: Limits | None) -> Verdict:
    value = figures.ours("d64", "tokens_s")
    ceiling = limits.many_streams if limits else None
    goal = _limit_goal(value, ceiling, 0.60, "of the int8 ceiling")
    return _rate(figures, "64 streams, tokens/s", "d64", 2.2, _share(value, ceiling), (goal,))


def _limit_goal(value: float | None, limit: float | None, least: float, of: str) -> Goal:
    reached = value >= least * limit if value is not None and limit else None
    return Goal("limit", f">= {least:.0%} {of}" + (f" ({_number(limit)})" if limit else ""), reached)


def _rate(
    figures: Figures, what: str, workload: str, factor: float, share: str, goals: tuple[Goal, ...] = ()
) -> Verdict:
    value, best = figures.ours(workload, "tokens_s"), figures.best(workload, "tokens_s")
    goal = _factor_goal(value, best, factor)
    return Verdict(what, (*goals, goal), _number(value, "tokens/s"), _against(value, best), share)


def _factor_goal(value: float | None, best: Peer | None, factor: float, peer: str = "best peer") -> Goal:
    reached = value >= factor * best.value if value is not None and best else None
    return Goal("peer", f">= {factor:g} x {peer}", reached)


def _first_token(figures: Figures, what: str, workload: str, factor: float) -> Verdict:
    value, best = figures.ours(workload, "ttft_p50_ms"), figures.best(workload, "ttft_p50_ms", low=True)
    reached = value <= factor * best.value if value is not None and best else None
    goal = Goal("peer", f"<= {factor:g} x best peer", reached)
    return Verdict(f"{what}, first token", (goal,), _number(value, "ms"), _against(value, best))


def _prefill(figures: Figures, tokens: str, workload: str, least: float, limits: Limits | None) -> Verdict:
    value, best = figures.ours(workload, "prompt_tokens_s"), figures.best(workload, "prompt_tokens_s")
    goal = Goal("rate", f">= {least:,.0f} tokens/s", None if value is None else value >= least)
    share = _share(value, limits.prefill if limits else None)
    return Verdict(f"{tokens}-token prompt, cold", (goal,), _number(value, "tokens/s"), _against(value, best), share)


def _warm_prefix(figures: Figures) -> Verdict:
    cold, warm = figures.ours("warm", "cold_ms"), figures.ours("warm", "warm_ms")
    share = warm / cold if warm is not None and cold else None
    best = figures.best("warm", "warm_ms", low=True)
    goal = Goal("cold", "< 5 % of cold", None if share is None else share < 0.05)
    shown = "-" if share is None else f"{share:.1%} ({_number(warm)} of {_number(cold)} ms)"
    return Verdict("warm prefix, first token", (goal,), shown, _against(warm, best))


def _tiny(figures: Figures, limits: Limits | None) -> Verdict:
    value, best = figures.ours("tiny", "requests_s"), figures.best("tiny", "requests_s", http_only=True)
    goal = _factor_goal(value, best, 1.4, "best HTTP peer")
    share = _share(value, limits.tiny_requests if limits else None)
    return Verdict("tiny requests, requests/s", (goal,), _number(value, "requests/s"), _against(value, best), share)


def _beside_native(figures: Figures) -> Verdict:
    load, value = figures.load("tiny"), None
    told = "native_cpu_s" in load
    if load:
        value = 1e3 * (sum(load["cpu_s"].values()) - load.get("native_cpu_s", 0.0)) / load["requests"]
    shown = _number(value, "ms") + ("" if told or value is None else " (all CPU: the native part is not told)")
    reached = None if value is None or (not told and value >= MS_BESIDE_NATIVE) else value < MS_BESIDE_NATIVE
    goal = Goal("CPU", f"< {MS_BESIDE_NATIVE} ms a request", reached)
    return Verdict("tiny requests, CPU outside native code", (goal,), shown)


def _between_steps(figures: Figures, streams: str, workload: str, most_s: float) -> Verdict:
    """Judged by the mean, which is what throughput loses."""
    gaps = figures.durations(workload, "between_steps")
    goal = Goal("time", f"< {1e6 * most_s:,.0f} us", None if gaps is None else gaps.mean_s < most_s)
    shown = "-"
    if gaps:
        within = f"{gaps.share_within(most_s):.0%} of {gaps.number:,} within the goal"
        shown = f"{1e6 * gaps.mean_s:,.0f} us (mean); {within}"
    return Verdict(f"{streams}, Python between two native steps", (goal,), shown)


def _api_cpu(figures: Figures) -> Verdict:
    load = figures.load("d64")
    value = 1e6 * load["cpu_s"]["api"] / load["tokens"] if load else None
    goal = Goal("CPU", f"< {US_PER_TOKEN:g} us a streamed token", None if value is None else value < US_PER_TOKEN)
    return Verdict("64 streams, CPU of the API process", (goal,), _number(value, "us"))


def _loop_lag(figures: Figures) -> Verdict:
    lag, shown = figures.durations("d64", "loop_lag"), "-"
    if lag:
        most_s = lag.all_within_s()
        most = "some longer" if most_s is None else f"all within {1e3 * most_s:g} ms"
        within = f"{lag.share_within(LAG_SHOWN_S):.0%} of {lag.number} within {1e3 * LAG_SHOWN_S:g} ms"
        shown = f"{1e3 * lag.mean_s:.2g} ms (mean); {within}, {most}"
    return Verdict("64 streams, lag of the API's event loop", (), shown)


def _start(figures: Figures) -> Verdict:
    value: float | None = figures.upwell.get("start_s")
    goal = Goal("time", f"< {START_S} s", None if value is None else value < START_S)
    return Verdict("start until ready", (goal,), _number(value, "s"), _against(value, figures.best_start()))


def _memory(figures: Figures, weights_bytes: int) -> Verdict:
    value = beside_weights(figures.upwell, weights_bytes)
    goal = Goal("bytes", f"< {MEMORY_BYTES / 1e6:.0f} MB", None if value is None else value < MEMORY_BYTES)
    return Verdict("memory beside weights and KV cache", (goal,), "-" if value is None else f"{value / 1e6:,.0f} MB")


def _against(value: float | None, best: Peer | None) -> str:
    if best is None:
        return "-"
    ratio = "-" if value is None else _number(value / best.value)
    return f"{ratio} x {best.label} ({_number(best.value)})"


def _share(value: float | None, limit: float | None) -> str:
    return f"{value / limit:.0%} of {_number(limit)}" if value is not None and limit else ""


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
    return f"{shown} {unit}".rstrip()
