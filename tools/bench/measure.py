"""Runs all workloads on one system after the other, and sums up what happened."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.bench.client import Job, Outcome
from tools.bench.processes import StartFailed, busy_s
from tools.bench.scrape import Scrape
from tools.bench.systems import Running, System, Usage, memory
from tools.bench.workloads import Workload

_COUNTERS = {"native_cpu_s": "upwell_native_cpu_seconds_total", "native_wall_s": "upwell_native_wall_seconds_total"}
_DURATIONS = {"between_steps": "upwell_between_steps_seconds", "loop_lag": "upwell_event_loop_lag_seconds"}

QUIET_S, QUIET_SHARE = 2.0, 0.05
"""A machine is quiet when other processes used less than this share of a core for so long."""

Say = Callable[[str], None]
Result = dict[str, Any]


@dataclass(frozen=True)
class Conditions:
    """What is the same for all systems.

    Attributes:
        warm_up: requests made before all loads, unmeasured.
        patience_s: how long to wait, before each load, for other processes to be quiet.
        say: told of every step.
    """

    warm_up: Sequence[Job]
    patience_s: float
    say: Say


async def measure_system(system: System, workloads: Sequence[Workload], conditions: Conditions) -> Result:
    """All workloads on one system, started anew where the shape of its cache must differ."""
    say = conditions.say
    result: Result = {"name": system.name, "weights": system.weights, "label": system.label, "http": system.http}
    result |= {"missing": system.missing, "workloads": {}, "error": None}
    if system.missing:
        say(f"{system.label}: not found ({system.missing})")
        return result
    shapes: list[tuple[bool, list[Workload]]] = [(False, list(workloads))]
    if not system.one_shape:
        shapes = [(long, [w for w in workloads if w.long_context is long]) for long in (False, True)]
    for long_context, chosen in shapes:
        if chosen and result["error"] is None:
            await _measure_shape(system, long_context, chosen, conditions, result)
    return result


async def _measure_shape(
    system: System, long_context: bool, workloads: Sequence[Workload], conditions: Conditions, result: Result
) -> None:
    say = conditions.say
    await wait_until_quiet(conditions.patience_s)
    running = system.start(long_context)
    try:
        await running.ready()
        result.setdefault("start_s", running.start_s)
        result.setdefault("backend", await running.backend())
        result.setdefault("memory_at_start", await _memory(running))
        say(f"{system.label}: ready after {running.start_s:.2f} s")
        await running.run(conditions.warm_up, 2, probe=False)
        for workload in workloads:
            await wait_until_quiet(conditions.patience_s)
            figures = await measure_workload(running, workload)
            result["workloads"][workload.key] = figures
            say(f"{system.label}: {workload.key}: {_in_short(figures)}")
        result["memory_at_end"] = await _memory(running)
    except (StartFailed, OSError) as error:
        result["error"] = str(error) or type(error).__name__
        say(f"{system.label}: {result['error']}")
    finally:
        await running.close()


async def wait_until_quiet(patience_s: float) -> None:
    """Wait until the processor is idle for a moment, or patience is at an end."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        before_s = busy_s()
        await asyncio.sleep(QUIET_S)
        if busy_s() - before_s < QUIET_SHARE * QUIET_S:
            return


async def measure_workload(running: Running, workload: Workload) -> Result:
    """One load, with the CPU time of both sides."""
    if workload.prime:
        await running.run(workload.prime, 1, probe=False)
    told = await running.metrics()
    before, client_s, all_s = Usage.of(running), time.process_time(), busy_s()
    outcome = await running.run(workload.jobs, workload.concurrency, probe=workload.probe)
    client_s = time.process_time() - client_s
    cpu_s = Usage.of(running).since(before)
    other_s = busy_s() - all_s - client_s - sum(cpu_s.values())
    figures = summarise(outcome)
    asked = {
        "prompt_tokens": sum(len(job.ids) for job in workload.jobs),
        "tokens": sum(job.max_tokens for job in workload.jobs),
    }
    figures["not_as_asked"] = [name for name, number in asked.items() if figures.get(name) != number]
    if workload.pairs and figures["requests"] == len(workload.jobs):  # or nobody knows which are the second ones
        figures |= {name: statistics.median(figures["first_ms"][i::2]) for i, name in enumerate(("cold_ms", "warm_ms"))}
    figures |= {"cpu_s": cpu_s, "client_share": client_s / outcome.wall_s, "other_share": other_s / outcome.wall_s}
    return figures | _told(told, await running.metrics())


def _told(before: Scrape | None, after: Scrape | None) -> Result:
    """What a server's own metrics say of a load."""
    if before is None or after is None:
        return {}
    counted = {key: after.since(before, name) for key, name in _COUNTERS.items()}
    timed = {key: after.durations_since(before, name) for key, name in _DURATIONS.items()}
    return {key: value for key, value in (counted | timed).items() if value is not None}


def summarise(outcome: Outcome) -> Result:
    """The figures of a load; times in milliseconds, failed requests left out and counted."""
    good = [trace for trace in outcome.traces if trace.error is None]
    errors = [trace.error for trace in outcome.traces if trace.error is not None]
    figures: Result = {"requests": len(good), "errors": len(errors), "wall_s": outcome.wall_s}
    if errors:
        figures["first_error"] = errors[0]
    if not good:
        return figures
    first_ms = [trace.first_token_s * 1e3 for trace in good]
    gaps_ms = [(b - a) * 1e3 for trace in good for a, b in zip(trace.stamps_s, trace.stamps_s[1:], strict=False)]
    tokens = sum(trace.num_tokens for trace in good)
    figures |= {
        "prompt_tokens": sum(trace.prompt_tokens for trace in good),
        "cached_tokens": sum(trace.cached_tokens for trace in good),
        "tokens": tokens,
        "events": sum(len(trace.stamps_s) for trace in good),
        "tokens_s": tokens / outcome.wall_s,
        "requests_s": len(good) / outcome.wall_s,
        "ttft_p50_ms": percentile(first_ms, 50),
        "ttft_p95_ms": percentile(first_ms, 95),
        "first_ms": [round(one, 3) for one in first_ms],
        "prompt_tokens_s": statistics.median(trace.prompt_tokens / trace.first_token_s for trace in good),
    }
    if gaps_ms:
        figures |= {"gap_p50_ms": percentile(gaps_ms, 50), "gap_p95_ms": percentile(gaps_ms, 95)}
    if outcome.probes_s:
        probes_ms = [one * 1e3 for one in outcome.probes_s]
        figures |= {"probe_p50_ms": percentile(probes_ms, 50), "probe_p99_ms": percentile(probes_ms, 99)}
        figures |= {"probe_max_ms": max(probes_ms), "probes": len(probes_ms)}
    return figures


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


async def _memory(running: Running) -> Result:
    """Memory now; where the server tells of its KV cache, also that, and how much of it has been written to."""
    figures: Result = dict(memory(running))
    told = await running.metrics()
    kv_bytes = told.value("upwell_kv_cache_bytes") if told else None
    if told is None or kv_bytes is None:
        return figures
    blocks = {state: told.value(f"upwell_kv_blocks{{state={state}}}") or 0.0 for state in ("free", "cached", "used")}
    in_all = sum(blocks.values())  # 0 until the engine has said something
    written = 1 - blocks["free"] / in_all if in_all else 0.0
    return figures | {"kv_bytes": round(kv_bytes), "kv_written_bytes": round(kv_bytes * written)}


def _in_short(figures: Result) -> str:
    if not figures["requests"]:
        return f"all failed: {figures.get('first_error')}"
    text = f"{figures['tokens_s']:.1f} tokens/s, first token after {figures['ttft_p50_ms']:.0f} ms"
    text += f", {figures['requests_s']:.2f} requests/s, client {figures['client_share']:.1%} of a core"
    return text + (f", {figures['errors']} FAILED: {figures['first_error']}" if figures["errors"] else "")
