"""The native library of this installation: beside this file in a wheel, where it was built in an editable one."""

from __future__ import annotations

from pathlib import Path

from kernels.cpu.abi import Library
from kernels.ops import BackendUnavailable

WHY_NOT = (
    "Upwell was installed without its native library: no C++ compiler was found then, or the build failed. "
    "Install g++ or clang++, then Upwell again; `pip install -v` shows the build."
)
"""What to tell whoever asks for the native kernels where ``find_library`` finds none."""

_NAME = "libupwell.so"
_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE, _HERE.parents[1] / "build" / "editable")  # the latter is build-dir in pyproject.toml


def find_library() -> Path | None:
    """The shared library of this installation; None where it was installed as pure Python (see ``WHY_NOT``)."""
    for place in _PLACES:
        if (place / _NAME).is_file():
            return place / _NAME
    return None


def load_library() -> Library:
    """The native library of this installation.

    Raises:
        BackendUnavailable: why there is none.
    """
    path = find_library()
    if path is None:
        raise BackendUnavailable(WHY_NOT)
    try:
        return Library(path)
    except OSError as error:
        raise BackendUnavailable(f"the native library cannot be loaded: {error}. Install Upwell again.") from error
