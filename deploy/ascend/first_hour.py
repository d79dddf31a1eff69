"""The first hour with an Ascend 910B, in numbered steps: does it launch, is it right, is it the same, how fast is it.

    python deploy/ascend/first_hour.py                      every step, each in a process of its own
    python deploy/ascend/first_hour.py --step 4             one step, in this process
    python deploy/ascend/first_hour.py --json FILE          also what was found, for programs
    python deploy/ascend/first_hour.py --emulated           on this machine's processor: proves the script, not the chip

Every finding is PASS, FAIL with what to do next, or MEASURED: a figure that nobody has known before. A step that fails,
hangs or takes its process with it does not keep the next from being tried; the exit code is 1 if anything failed. Run
it from a checkout, in the environment that serves. deploy/ascend/README.md says what each step decides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as host
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # or `deploy` and `tools` are not found where the script is run by its path
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # torch_npu is imported where its failure can be told

from deploy.ascend.steps.bench import Bench  # noqa: E402
from deploy.ascend.steps.child import run_child  # noqa: E402
from deploy.ascend.steps.report import Report, Verdict  # noqa: E402
from kernels.ascend.chips import why_it_ended  # noqa: E402
from kernels.ascend.machine import installed_version  # noqa: E402
from server.settings import DEFAULT_MODEL  # noqa: E402

EMULATED = "EMULATED: proves the script, not the chip"
STEP_S = 1800.0
"""How long a step may take; compiling a kernel is part of it."""
PACKAGES = ("upwell", "torch", "torch-npu", "triton-ascend", "numpy")


@dataclass(frozen=True)
class Step:
    """One step: its title, and where its function is; imported when it is run, so that one cannot stop the others."""

    title: str
    module: str
    function: str


STEPS = (
    Step("doctor: driver, CANN, versions, chips, HBM, and whether the kernel compiles", "host", "doctor"),
    Step("torch_npu: allocate, add, synchronise", "host", "basics"),
    Step("each operation of torch_npu that the backend calls, against NumPy in float64", "operations", "accuracy"),
    Step("rows: the same row alone and among others, bit for bit", "operations", "invariance"),
    Step("the attention kernel: launch, accuracy, alone and among 256 others", "attention", "kernel"),
    Step("the attention kernel beside npu_fused_infer_attention_score", "fused", "against_fused"),
    Step("achieved bandwidth of decoding, beside a copy", "bandwidth", "bandwidth"),
    Step("graphs: captured, replayed, and equal to eager steps, with either cache", "graphs", "graphs"),
    Step("a whole engine: eagerly, with graphs, with a cache of int8; alone and together", "serving", "serving"),
    Step("several chips: one model by several processes, beside one; alone and together", "several", "several"),
)


def main(argv: Sequence[str] | None = None, new_platform: Callable[[], Any] | None = None) -> int:
    """Run the steps.

    Args:
        argv: the command line; None takes this process's own.
        new_platform: makes the platform of steps that run in this process; None takes the one that the flags name.

    Returns:
        1 if anything failed, else 0.
    """
    args = parsed(argv)
    numbers = sorted(set(args.step)) if args.step else list(range(len(STEPS)))
    bench = Bench(new_platform or (emulated if args.emulated else npu), **settings(args))
    if not args.no_header:
        print("\n".join(header(args, bench)), flush=True)
    reports = []
    for number in numbers:
        reports.append(run_here(bench, number) if args.step else run_apart(args, number))
        write(args, bench, reports)
    if not args.no_header:
        print("\n".join(summary(args, reports)), flush=True)
    return 1 if any(report.verdict is Verdict.FAIL for report in reports) else 0


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    listed = "; ".join(f"{number} {step.title}" for number, step in enumerate(STEPS))
    parser.add_argument("--emulated", action="store_true", help=f"run on this machine's processor. {EMULATED}")
    parser.add_argument(
        "--step", type=int, action="append", choices=range(len(STEPS)), metavar="N", help=f"only this one: {listed}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to a file")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="of steps 8 and 9: an alias, a GGUF file or a folder")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16"), help="what is computed in (default: bfloat16; emulated, float16)"
    )
    parser.add_argument("--timeout-s", type=float, default=STEP_S, help="seconds that a step may take (default: 1800)")
    parser.add_argument("--no-header", action="store_true", help=argparse.SUPPRESS)  # a step of a whole run
    return parser.parse_args(argv)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say about the bench."""
    dtype = args.dtype or ("float16" if args.emulated else "bfloat16")
    return {"emulated": args.emulated, "dtype": dtype, "model": args.model, "timeout_s": args.timeout_s}


def npu() -> Any:
    """The first NPU."""
    from kernels.ascend.platform import npu_platform  # noqa: PLC0415

    return npu_platform()


def emulated() -> Any:
    """This machine's processor, with stubs of the driver that are kept from one process to the next."""
    from tools.ascend.emulation.platform import BUILT, emulated_platform  # noqa: PLC0415
    from tools.ascend.stubs import load  # noqa: PLC0415

    load(BUILT / "stubs")
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    return emulated_platform()


def header(args: argparse.Namespace, bench: Bench) -> list[str]:
    """What is run where; every line says so if nothing of it is a chip."""
    versions = ", ".join(f"{name} {installed_version(name) or 'not installed'}" for name in PACKAGES)
    lines = [
        f"first hour on an Ascend 910B, {bench.dtype}, model {bench.model}",
        f"{host.system()} {host.machine()}, Python {host.python_version()}",
        versions,
    ]
    return [f"{EMULATED} | {line}" for line in lines] if args.emulated else lines


def run_here(bench: Bench, number: int) -> Report:
    """A step in this process."""
    step = STEPS[number]
    report = Report(number, step.title)
    with report.timed(" [EMULATED]" if bench.emulated else ""):
        function = getattr(import_module(f"deploy.ascend.steps.{step.module}"), step.function)
        function(bench, report)
    return report


def run_apart(args: argparse.Namespace, number: int) -> Report:
    """A step in a process of its own, which may hang or crash: what it found, and that it did."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "step.json"
        ran = run_child([*command(args), "--step", str(number), "--json", str(found)], args.timeout_s, own_session=True)
        report = None
        with suppress(OSError, ValueError, LookupError, TypeError):
            report = Report.of_facts(json.loads(found.read_text(encoding="utf-8"))["steps"][0])
    if report is None:
        report = Report(number, STEPS[number].title)
        remedy = f"Run it alone: {Path(__file__).name} --step {number}. What is in ~/ascend/log/debug/plog tells more."
        report.failed(f"its process ended: {why_it_ended(ran)}", remedy)
    elif ran.code is None or ran.code < 0:
        report.measured(f"its process had done all, but ended badly: {why_it_ended(ran)}")
    return report


def command(args: argparse.Namespace) -> list[str]:
    """This script again, with the same flags but for steps."""
    words = [sys.executable, str(Path(__file__).resolve()), "--no-header", "--model", args.model]
    words += ["--timeout-s", str(args.timeout_s)]
    words += ["--emulated"] if args.emulated else []
    return words + (["--dtype", args.dtype] if args.dtype else [])


def write(args: argparse.Namespace, bench: Bench, reports: Sequence[Report]) -> None:
    """What was found so far, if a file was asked for."""
    if args.json is None:
        return
    facts = {
        "emulated": args.emulated,
        "note": EMULATED if args.emulated else "",
        "dtype": bench.dtype,
        "model": bench.model,
        "host": f"{host.system()} {host.machine()}, Python {host.python_version()}",
        "versions": {name: installed_version(name) for name in PACKAGES},
        "steps": [report.facts() for report in reports],
    }
    args.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def summary(args: argparse.Namespace, reports: Sequence[Report]) -> list[str]:
    """A line a step, and what failed."""
    lines = ["", "--- summary"]
    for report in reports:
        lines.append(f"  {report.verdict:<9}  step {report.number}: {report.title} ({report.seconds:.1f} s)")
        lines += [f"             {line.text}" for line in report.lines if line.verdict is Verdict.FAIL]
    failed = [str(report.number) for report in reports if report.verdict is Verdict.FAIL]
    lines.append(f"failed: step {', '.join(failed)}" if failed else "nothing failed")
    return [*lines, EMULATED] if args.emulated else lines


if __name__ == "__main__":
    sys.exit(main())
