"""The only place where a backend is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kernels.ops import OPERATIONS, Ops
from kernels.reference.backend import reference_ops

BACKENDS: dict[str, Callable[[], Ops]] = {"reference": reference_ops}
"""Backend name -> what fills its table. ``auto`` takes the first that works, in this order."""


class BackendUnavailable(Exception):
    """No backend of that name, or it cannot run here; the message says why."""


@dataclass(frozen=True)
class Resolved:
    """A filled table, and where each operation comes from.

    Attributes:
        provenance: operation name -> backend name.
    """

    ops: Ops
    provenance: dict[str, str]


def resolve(device: str) -> Resolved:
    """The table for ``device``, a backend's name or ``auto``.

    Raises:
        BackendUnavailable: naming the choices.
    """
    name = next(iter(BACKENDS)) if device == "auto" else device
    if name not in BACKENDS:
        raise BackendUnavailable(f"there is no device '{name}'; choose auto or one of: {', '.join(BACKENDS)}.")
    ops = BACKENDS[name]()
    return Resolved(ops, dict.fromkeys(OPERATIONS, ops.info.name))
