"""Storage formats: which tensors were cast to FRACTAL_NZ, while their values stay in plain order.

On the device a format belongs to the storage, so views share it; here it is remembered for the storage too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing import reductions

ND = 2
FRACTAL_NZ = 29

_weak: Any = reductions.StorageWeakRef  # equal to, and hashed as, another reference to the same storage
_formats: dict[Any, int] = {}


def format_of(tensor: torch.Tensor) -> int:
    """The format of a tensor's storage: ND unless it was cast."""
    return _formats.get(_weak(tensor.untyped_storage()), ND)


def set_format(tensor: torch.Tensor, acl_format: int) -> None:
    """Remember the format of a tensor's storage for as long as that lives."""
    for storage in [storage for storage in _formats if storage.expired()]:
        del _formats[storage]
    _formats[_weak(tensor.untyped_storage())] = acl_format
