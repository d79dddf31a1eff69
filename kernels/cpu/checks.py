"""What the operations of the CPU backend take: native code trusts shapes and dtypes, so they are held against it first.

Called where an operation is called on arrays or recorded; what changes from step to step, ``recorded.py`` and the
library itself look at (``csrc/check.cpp``). Every refusal begins with the argument's name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cpu import graph as g
from kernels.formats import fits


def tensor(name: str, x: object, *shape: int | None) -> int | None:
    """A tensor f32[T, *shape], of any size where the shape says None; returns T, or None while recording.

    Raises:
        TypeError: it is none of this backend's.
        ValueError: it is not of that shape, or its rows are sampled ones.
    """
    if not isinstance(x, g.Tensor):
        raise TypeError(f"{name} must be a tensor of this backend, but is a {type(x).__name__}; upload it")
    if not fits(x.shape, shape):
        raise ValueError(f"{name} must be f32{_shown('T', *shape)}, but is f32{_shown('T', *x.shape)}")
    if x.value.axis is not g.Axis.TOKENS:
        raise ValueError(f"{name} must have a row for each token, not for each that is sampled")
    return None if x.value.data is None else len(x.value.data)


def array(name: str, x: object, dtype: type[np.generic], *shape: int | None) -> None:
    """A contiguous NumPy array of that dtype and shape, of any size where the shape says None.

    Raises:
        TypeError: it is no array.
        ValueError: it is of another dtype or shape, or not contiguous.
    """
    wanted = f"{np.dtype(dtype)}{_shown(*shape)}"
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be {wanted}, but is a {type(x).__name__}")
    if x.dtype != dtype or not fits(x.shape, shape):
        raise ValueError(f"{name} must be {wanted}, but is {x.dtype}{_shown(*x.shape)}")
    if not x.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous")


def same(name: str, got: Any, want: Any, what: str) -> None:
    """A number that another argument sets.

    Raises:
        ValueError: it is another one.
    """
    if got != want:
        raise ValueError(f"{name} must have {want} {what}, but has {got}")


def _shown(*shape: object) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
