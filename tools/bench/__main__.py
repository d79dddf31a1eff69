"""``python -m tools.bench``: measure everything, say what came out, and keep it under ``bench-results/``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.tokenizer import load_tokenizer
from engine.weights.locate import model_path
from engine.weights.open import open_checkpoint
from engine.weights.store import resolve_model
from server.settings import DEFAULT_MODEL, cache_dir
from tools.bench.docs import Unexplained, write_docs
from tools.bench.goals import judge
from tools.bench.limits import NotMeasured, cpu_name, higher_of, last_level_cache_bytes, run_program
from tools.bench.measure import Conditions, measure_system
from tools.bench.peers import PeerSettings, find_peers
from tools.bench.plots import draw_plots
from tools.bench.prompts import PromptMaker
from tools.bench.report import print_report
from tools.bench.systems import System, thread_count, upwell
from tools.bench.workloads import KEYS, make_workloads, warm_up
from tools.checkout import commit

RESULTS = Path("bench-results")
WIDTH = 160
"""Of the tables where there is no terminal."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...", description="Measure Upwell, its peers and the machine."
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model as upwell serve takes it")
    parser.add_argument("--only", default="", help="systems to measure, by the start of their names: upwell,openvino")
    parser.add_argument("--workloads", default=",".join(KEYS), help="some of %(default)s")
    parser.add_argument("--threads", type=int, help="threads of every system; without it, the physical cores there are")
    parser.add_argument("--upwell-args", default="", help="more arguments for upwell serve")
    parser.add_argument("--peers", type=Path, default=os.environ.get("UPWELL_BENCH_PEERS"), help="folder of peers")
    parser.add_argument("--llama-server", help="llama.cpp's server (also LLAMA_SERVER, or on PATH)")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: fewer requests, for a first look")
    parser.add_argument("--patience", type=float, default=0, help="seconds to wait before a load for a quiet machine")
    parser.add_argument("--no-limits", action="store_true", help="do not measure the machine")
    parser.add_argument("--write-docs", action="store_true", help="only write docs/benchmarks.md from the last run")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers are ended then too
    console = Console(width=None if sys.stdout.isatty() else WIDTH, soft_wrap=True)
    RESULTS.mkdir(exist_ok=True)
    last = RESULTS / "last.json"
    if args.write_docs:
        rewrite(last, console)
        return
    run = asyncio.run(measure(args, console))
    text = json.dumps(run, indent=1)
    last.write_text(text)
    (RESULTS / f"{run['when'].replace(':', '').replace(' ', '-')}.json").write_text(text)
    show(run, console)


def rewrite(last: Path, console: Console) -> None:
    """The page, from the last run.

    Raises:
        SystemExit: there is none, or the page does not say why a goal was missed.
    """
    if not last.exists():
        raise SystemExit(f"there is no {last}: run make bench first.")
    try:
        run = json.loads(last.read_text())
        stale = write_docs(run, draw_plots(run, RESULTS))
    except Unexplained as error:
        raise SystemExit(str(error)) from None
    for name in stale:
        console.print(f"the page explains {name}, which was not missed: see whether that is still to be said.")


def show(run: dict[str, Any], console: Console) -> None:
    """Tables and plots of a run."""
    print_report(console, run, judge(run))
    for path in draw_plots(run, RESULTS):
        console.print(f"drew {path}")


async def measure(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The whole run."""
    path = model_path(Path(resolve_model(args.model, cache_dir(None)).path))
    weights_bytes = open_checkpoint(path).total_bytes
    console.print(f"{thread_count(args.threads)} threads for every system")
    limits, limits_missing = measure_limits(args, weights_bytes)
    if limits is None:
        console.print(f"The machine's limits are not measured: {limits_missing}")
    maker = PromptMaker(load_tokenizer(path))
    wanted = args.workloads.split(",")
    workloads = [workload for workload in make_workloads(maker, args.scale) if workload.key in wanted]
    conditions = Conditions(warm_up(maker), args.patience, console.print)
    results, again = [], None
    for system in systems(args, path):
        results.append(await measure_system(system, workloads, conditions))
        if len(results) == 1:  # mostly Upwell, which is held to them
            again, _ = measure_limits(args, weights_bytes)
    return {
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": commit(),
        "machine": machine(),
        "threads": thread_count(args.threads),
        "model": path.name,
        "weights_bytes": weights_bytes,
        "scale": args.scale,
        "limits": limits and higher_of(limits, again or limits),
        "limits_missing": limits_missing,
        "systems": results,
        "workloads": {workload.key: workload.title for workload in workloads},
    }


def measure_limits(args: argparse.Namespace, weights_bytes: int) -> tuple[dict[str, Any] | None, str | None]:
    """The machine's limits, some ten seconds; without them, why there are none."""
    if args.no_limits:
        return None, "--no-limits was asked for."
    try:
        return run_program(RESULTS, "--threads", thread_count(args.threads), "--weights-bytes", weights_bytes), None
    except NotMeasured as error:
        return None, str(error)


def machine() -> dict[str, Any]:
    """What this runs on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "python": platform.python_version(),
    }


def systems(args: argparse.Namespace, path: Path) -> list[System]:
    """What is to be measured, Upwell first."""
    settings = PeerSettings(
        gguf=path if path.suffix == ".gguf" else None,
        folder=Path(args.peers) if args.peers else None,
        llama_server=args.llama_server,
        threads=thread_count(args.threads),
        logs=RESULTS,
    )
    found = [
        upwell(args.model, shlex.split(args.upwell_args), thread_count(args.threads), RESULTS),
        *find_peers(settings),
    ]
    starts = tuple(args.only.split(",")) if args.only else ("",)
    return [system for system in found if system.label.startswith(starts)]


if __name__ == "__main__":
    main()
