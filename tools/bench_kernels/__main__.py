"""``python -m tools.bench_kernels``: measure every native operation beside the machine's limits."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from kernels.cpu.abi import Batch, Library, Op
from kernels.cpu.library import load_library
from kernels.cpu.recorded import Runner
from kernels.cpu.threads import default_threads
from kernels.cpu.weights import Form
from kernels.ops import BackendUnavailable
from tools.bench.limits import NotMeasured, cpu_name
from tools.bench_kernels.chains import GROUPS
from tools.bench_kernels.measure import Figure, measure
from tools.bench_kernels.operands import Label, Operands
from tools.bench_kernels.report import lines_of, print_report, write_docs
from tools.bench_kernels.roofs import Roofs, measure_roofs
from tools.bench_kernels.shapes import DEFAULT, Sizes
from tools.bench_kernels.work import Work
from tools.checkout import commit

RESULTS = Path("bench-results")
WIDTH = 160
"""Of the tables where there is no terminal."""
NOTHING = Label("QUANTISE", "", "no rows", 0)
LAST_LEVEL = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench-kernels ARGS=...", description="Measure every native operation and the machine's limits."
    )
    parser.add_argument("--only", default=",".join(GROUPS), help="some of %(default)s")
    parser.add_argument("--threads", type=int, default=default_threads().count, help="beside one thread; %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts; %(default)s")
    parser.add_argument("--isa", help="an instruction set instead of the best one")
    parser.add_argument("--write-docs", action="store_true", help="only write docs/kernels.md from the last run")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(GROUPS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if args.threads < 1 or args.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    return args


def main() -> None:
    args = arguments()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    RESULTS.mkdir(exist_ok=True)
    last = RESULTS / "kernels.json"
    if args.write_docs:
        if not last.exists():
            sys.exit(f"there is no {last}: run make bench-kernels first")
        write_docs(json.loads(last.read_text()), RESULTS / "roofline.png")
        return
    try:
        library = load_library()
    except BackendUnavailable as error:
        sys.exit(str(error))
    isa = args.isa or library.isas().decode().split()[0]
    if not library.use(isa.encode()):
        sys.exit(f"--isa: there is no {isa} here; there are {library.isas().decode()}")
    try:
        raw = measure_roofs(args.threads, RESULTS)
    except NotMeasured as error:
        sys.exit(str(error))
    run = measure_all(library, raw, args.only.split(","), DEFAULT, args.rounds, cold_bytes())
    run |= {
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": commit(),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "isa": isa,
        "rounds": args.rounds,
    }
    last.write_text(json.dumps(run, indent=1))
    print_report(console, run)
    from tools.bench_kernels.plot import draw_plot  # noqa: PLC0415 - matplotlib is there for benchmarks alone

    console.print(f"wrote {last}, drew {draw_plot(run, RESULTS)}")


def measure_all(
    library: Library, raw: dict[str, Any], groups: Iterable[str], sizes: Sizes, rounds: int, cold_bytes: int = 0
) -> dict[str, Any]:
    """The limits ``raw``, and a line for each operation of the groups; two of products with few rows."""
    roofs = [Roofs.from_raw(raw, one=True)]
    if raw["threads"] > 1:
        roofs.append(Roofs.from_raw(raw, one=False))
    runners = [Runner(library, roof.threads) for roof in roofs]
    figures: list[Figure] = []
    for group in groups:
        for chains in GROUPS[group](lambda: Operands(library, runners[-1]), sizes, cold_bytes):
            figures += measure(chains, runners, rounds)
    nothing = Operands(library, runners[-1])
    call = nothing.call(Op.QUANTISE, nothing.rows(1, 32, Form.FLOATS, Form.BLOCKS), 32, label=NOTHING, work=Work(0, 0))
    seconds = measure([nothing.chain([call], Batch())], runners, rounds)[0].seconds
    overhead = {str(threads): each * 1e6 for threads, each in seconds.items()}
    return {"limits": raw, "overhead_us": overhead, "lines": lines_of(figures, roofs)}


def cold_bytes() -> int:
    """Bytes that the last level of caches does not hold."""
    text = LAST_LEVEL.read_text().strip() if LAST_LEVEL.exists() else "64M"
    return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]] * 5 // 4


if __name__ == "__main__":
    main()
