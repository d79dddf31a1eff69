"""The roofline plot: operations a second by operations a byte, under the limits that were measured. Needs matplotlib.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.bench_kernels.roofs import Roofs
from tools.bench_kernels.work import Unit

_SIZE_INCHES, _DPI = (11, 4.6), 110
_COLOURS: dict[Unit, str] = {"int8": "#0b6e99", "i16": "#b5651d", "f32": "#7a7a7a"}
_MARKERS = {"LINEAR": "o", "SILU_LINEAR": "s", "ATTENTION": "^", "EXPERT_UP": "P", "EXPERT_DOWN": "X", "DRAW": "v"}
_OTHERS = "."
_INTENSITIES = (0.05, 5000.0)


def draw_plot(run: dict[str, Any], folder: Path) -> Path:
    """Draw one panel for each number of threads; return the file."""
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    counts = list(run["lines"][0]["threads"])
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    most = max(gops for threads in counts for gops in Roofs.from_raw(run["limits"], one=threads == "1").gops.values())
    for axes, threads in zip(panels, counts, strict=True):
        _panel(axes, run, threads, most)
    panels[0].set_ylabel("GOP/s")
    panels[-1].legend(fontsize=7, frameon=False, loc="lower right")
    path = folder / "roofline.png"
    figure.savefig(path)
    return path


def _panel(axes: Axes, run: dict[str, Any], threads: str, most: float) -> None:
    roofs = Roofs.from_raw(run["limits"], one=threads == "1")
    cache_gbs = max(gbs for _, gbs in roofs.reads)
    for unit, gops in roofs.gops.items():
        for gbs, style in ((roofs.memory_gbs, "-"), (cache_gbs, ":")):
            knee = gops / gbs
            xs, ys = [_INTENSITIES[0], knee, _INTENSITIES[1]], [_INTENSITIES[0] * gbs, gops, gops]
            axes.plot(xs, ys, style, color=_COLOURS[unit], linewidth=0.9)
        axes.annotate(f"{unit} {gops:,.0f}", (_INTENSITIES[1], gops), fontsize=7, ha="right", va="bottom")
    for unit, colour in _COLOURS.items():
        for op in dict.fromkeys(line["op"] for line in run["lines"]):
            points = [
                (line["ops"] / line["bytes"], line["threads"][threads]["gops"])
                for line in run["lines"]
                if line["op"] == op and line["unit"] == unit and line["ops"]
            ]
            if points:
                label = f"{op} ({unit})" if op in _MARKERS else "_others"
                axes.plot(
                    *zip(*points, strict=True), _MARKERS.get(op, _OTHERS), color=colour, markersize=4, label=label
                )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", xlim=_INTENSITIES, ylim=(0.1, 2 * most))
    axes.set_title(f"{threads} thread{'s' * (threads != '1')}; solid: memory {roofs.memory_gbs:,.0f} GB/s, "
                   f"dotted: cache {cache_gbs:,.0f} GB/s", fontsize=9)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
