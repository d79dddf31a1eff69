"""Chips and their free memory: as torch_npu tells them, and from ``npu-smi info`` where it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from kernels.ascend.errors import explain
from kernels.ascend.machine import Ran, Run

TORCH_NPU_PROGRAM = """
import json, sys
import torch, torch_npu
chips = [
    (index, torch.npu.get_device_name(index), *torch.npu.mem_get_info(index))
    for index in range(torch.npu.device_count())
]
print("chips " + json.dumps(chips))
"""
"""Run on its own: an import of torch_npu may hang, or take the process with it."""
_TORCH_NPU_S = 90.0
_NAME_LINE = re.compile(r"\|\s*(\d+)\s+(\w+)\s*\|\s*([\w-]+)\s*\|")
_USE_LINE = re.compile(r"\|[\s\d]+\|\s*[0-9A-Fa-f]{4}:\S+\s*\|.*?(\d+)\s*/\s*(\d+)\s*\|\s*$")


@dataclass(frozen=True)
class Chip:
    """One NPU; ``health`` is npu-smi's word for it, empty where torch_npu was asked."""

    index: int
    name: str
    free_hbm_bytes: int
    total_hbm_bytes: int
    health: str = ""


def chips_of_torch_npu(run: Run, python: str, environment: Mapping[str, str]) -> tuple[tuple[Chip, ...], str]:
    """Ask torch_npu, in a process of its own.

    Returns:
        The chips, and in one line why there are none.
    """
    env = {**environment, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    ran = run((python, "-P", "-c", TORCH_NPU_PROGRAM), env, _TORCH_NPU_S)
    if ran.code != 0:
        return (), f"torch_npu: {why_it_ended(ran)}"
    try:
        line = next(line for line in ran.stdout.splitlines() if line.startswith("chips "))
        chips = tuple(
            Chip(int(index), str(name), int(free), int(total))
            for index, name, free, total in json.loads(line.removeprefix("chips "))
        )
    except (StopIteration, ValueError, TypeError):
        return (), "torch_npu: it was imported, but said nothing about chips"
    return chips, "" if chips else "torch_npu: it was imported, but finds no device"


def chips_of_npu_smi(text: str) -> tuple[Chip, ...]:
    """The chips of ``npu-smi info``: two lines each, the second with used and total HBM in MB of 1024 squared."""
    found = []
    for first, second in pairwise(text.splitlines()):
        name, use = _NAME_LINE.match(first.strip()), _USE_LINE.match(second.strip())
        if name and use:
            used, total = (int(number) << 20 for number in use.groups())
            found.append(Chip(int(name[1]), name[2], max(total - used, 0), total, name[3]))
    return tuple(found)


def npu_smi_version(text: str) -> str | None:
    """The driver's version in the head of ``npu-smi info``."""
    found = re.search(r"npu-smi \S+\s+Version:\s*(\d[\w.]*)", text)
    return found[1] if found else None


def why_it_ended(ran: Ran) -> str:
    """One line: a known Ascend error explained, else the last thing that was said."""
    if ran.code is None:
        return ran.reason
    known = explain(ran.stderr + "\n" + ran.stdout)
    if known:
        return known
    said = [line.strip() for line in (ran.stdout + "\n" + ran.stderr).splitlines() if line.strip()]
    end = f"ended by signal {-ran.code}" if ran.code < 0 else f"ended with exit code {ran.code}"
    return f"{said[-1][:200]} ({end})" if said else end
