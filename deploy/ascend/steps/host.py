"""Steps 0 and 1: what of the stack is here, and whether torch reaches the device at all."""

from __future__ import annotations

import os
import time

import numpy as np

from deploy.ascend.steps.bench import GIB, Bench
from deploy.ascend.steps.report import Report
from kernels.ascend.machine import Machine
from kernels.ascend.probe import Verdict, diagnose

UNREACHED = "Nothing later can pass. Run `upwell doctor` and mend what it names; npu-smi info must show the chip."


def doctor(bench: Bench, report: Report) -> None:
    """Step 0: all that ``upwell doctor`` finds."""
    diagnosis = diagnose(Machine(os.environ))
    for finding in diagnosis.findings:
        text = f"{finding.name}: {finding.found or '-'}, wanted: {finding.wanted}"
        text += f" ({finding.detail})" if finding.detail else ""
        if finding in diagnosis.stops or (finding.stops_npu and not bench.emulated):
            report.failed(text, finding.remedy or "See `upwell doctor`.")
        elif finding.verdict is Verdict.OK:
            report.passed(text)
        else:
            report.measured(f"{text}, {finding.verdict}")
    for chip in diagnosis.chips:
        free, total = chip.free_hbm_bytes / GIB, chip.total_hbm_bytes / GIB
        text = f"chip {chip.index}: {chip.name}, {free:.1f} of {total:.1f} GiB of HBM free"
        report.measured(text, free_gib=round(free, 2), total_gib=round(total, 2))


def basics(bench: Bench, report: Report) -> None:
    """Step 1: allocate, add, wait, copy both ways."""
    began_s = time.perf_counter()
    platform = bench.platform
    report.measured(f"{platform.description}; ready in {time.perf_counter() - began_s:.1f} s")
    free = platform.free_bytes()
    report.measured(f"{free / GIB:.2f} GiB of device memory free", free_gib=round(free / GIB, 2))
    torch = bench.torch
    host = np.arange(1 << 16, dtype=np.int32)
    with report.attempt("host to device and back", UNREACHED):
        back = torch.from_numpy(host).to(platform.device).cpu().numpy()
        platform.synchronize()
        report.check(bool((back == host).all()), "int32 to the device and back", UNREACHED)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with report.attempt(f"{dtype}", UNREACHED):
            x = torch.ones(1 << 16, dtype=dtype, device=platform.device)
            total = x + x
            platform.synchronize()
            report.check(bool((total.cpu() == 2).all()), f"{dtype}: 1 + 1 = 2", UNREACHED)
