"""The only place where a backend is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernels.ascend.backend import ascend_ops
from kernels.cpu.backend import cpu_ops
from kernels.ops import OPERATIONS, BackendOptions, BackendUnavailable, Ops
from kernels.reference.backend import reference_ops

BACKENDS: dict[str, Callable[[BackendOptions], Ops]] = {
    "ascend": ascend_ops,
    "cpu": cpu_ops,
    "reference": reference_ops,
}
"""Backend name -> what fills its table, or raises BackendUnavailable. ``auto`` takes the first that works here."""
NPU_NODES = "davinci[0-9]*"
"""Where the driver has an NPU, there is a node of such a name in /dev."""


@dataclass(frozen=True)
class Resolved:
    """A filled table, and where each operation comes from.

    Attributes:
        provenance: operation name -> backend name.
        notes: why the backends before this one were passed over, one line each.
    """

    ops: Ops
    provenance: dict[str, str]
    notes: tuple[str, ...] = ()


def resolve(device: str, options: BackendOptions) -> Resolved:
    """The table for ``device``, a backend's name or ``auto``.

    Raises:
        BackendUnavailable: there is none of that name, or it cannot do what the options ask; with ``auto``, none can.
    """
    if device != "auto" and device not in BACKENDS:
        raise BackendUnavailable(f"there is no --device {device}; choose auto or one of: {', '.join(BACKENDS)}.")
    notes: list[str] = []
    for name in _candidates() if device == "auto" else (device,):
        try:
            ops = BACKENDS[name](options)
        except BackendUnavailable as error:
            notes.append(f"{name}: {error}")
        else:
            return Resolved(ops, dict.fromkeys(OPERATIONS, ops.info.name), tuple(notes))
    raise BackendUnavailable(f"--device {device} cannot run here. {' '.join(notes)}")


def _candidates() -> list[str]:
    """The backends that ``auto`` tries: NPUs are only looked for where there is one, since torch takes seconds."""
    has_npu = any(Path("/dev").glob(NPU_NODES))
    return [name for name in BACKENDS if name != "ascend" or has_npu]
