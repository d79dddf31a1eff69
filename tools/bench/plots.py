"""Three plots of a run: tokens/s by streams, time to the first token by streams, prompt tokens/s. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.bench.limits import Limits

STREAMS = (1, 4, 16, 64)
PROMPTS = {"long1000": "1,000 tokens", "long4000": "4,000 tokens"}
_SIZE_INCHES, _DPI = (5.6, 3.4), 110
_OURS, _PEERS = "#0b6e99", ("#b5651d", "#7a7a7a", "#8a5fa8", "#4c9a5b", "#c2a83e", "#a33b3b", "#d98cb3", "#5b7fbf")


def draw_plots(run: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what there are figures for; return the files."""
    systems = [system for system in run["systems"] if system["workloads"]]
    limits = Limits.from_raw(run["limits"]) if run["limits"] else None
    drawn = []
    for name, draw in (("throughput", _throughput), ("first-token", _first_token), ("prefill", _prefill)):
        figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
        axes = figure.subplots()
        if draw(axes, systems, limits):
            axes.spines[["top", "right"]].set_visible(False)
            path = folder / f"{name}.png"
            figure.savefig(path)
            drawn.append(path)
    return drawn


def _throughput(axes: Axes, systems: list[dict[str, Any]], limits: Limits | None) -> bool:
    any_lines = _lines(axes, systems, "tokens_s")
    if any_lines and limits:
        ceilings = [limits.one_stream_from_memory, limits.one_stream, limits.many_streams]
        axes.plot([1, 1, 64], ceilings, "k_", markersize=14, label="the machine's limits (1 stream: memory, cache)")
    axes.set(title="128 tokens in, 128 out", ylabel="tokens/s")
    return any_lines and _finish_lines(axes)


def _first_token(axes: Axes, systems: list[dict[str, Any]], limits: Limits | None) -> bool:
    del limits
    axes.set(title="Time to the first token, median", ylabel="ms", yscale="log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return _lines(axes, systems, "ttft_p50_ms") and _finish_lines(axes)


def _lines(axes: Axes, systems: list[dict[str, Any]], name: str) -> bool:
    """One line for each system that has the figure for any number of streams."""
    found = False
    for system, (colour, width) in zip(systems, _styles(systems), strict=True):
        loads = {n: system["workloads"].get(f"d{n}") or {} for n in STREAMS}
        points = {n: load[name] for n, load in loads.items() if name in load}
        if points:
            found = True
            axes.plot(list(points), list(points.values()), "o-", color=colour, linewidth=width, label=system["label"])
    return found


def _finish_lines(axes: Axes) -> bool:
    axes.set_xscale("log", base=4)
    axes.set_xticks(STREAMS, [str(n) for n in STREAMS])
    axes.minorticks_off()
    axes.set_xlabel("streams at once")
    axes.legend(fontsize=7, frameon=False)
    return True


def _prefill(axes: Axes, systems: list[dict[str, Any]], limits: Limits | None) -> bool:
    shown = [s for s in systems if any("prompt_tokens_s" in (s["workloads"].get(key) or {}) for key in PROMPTS)]
    if not shown:
        return False
    width = 0.8 / len(shown)
    for index, (system, (colour, _)) in enumerate(zip(shown, _styles(shown), strict=True)):
        rates = [(system["workloads"].get(key) or {}).get("prompt_tokens_s", 0) for key in PROMPTS]
        places = [group + (index - (len(shown) - 1) / 2) * width for group in range(len(PROMPTS))]
        axes.bar(places, rates, width * 0.92, color=colour, label=system["label"])
    if limits:
        axes.axhline(limits.prefill, color="black", linewidth=0.8, linestyle=":", label="the int8 units' limit")
    axes.set_xticks(range(len(PROMPTS)), list(PROMPTS.values()))
    axes.set(title="A cold prompt", ylabel="prompt tokens/s")
    axes.legend(fontsize=7, frameon=False)
    return True


def _styles(systems: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Colour and line width: Upwell stands out."""
    peers = [system["label"] for system in systems if system["name"] != "upwell"]
    return [
        (_OURS, 2.4) if s["name"] == "upwell" else (_PEERS[peers.index(s["label"]) % len(_PEERS)], 1.2) for s in systems
    ]
