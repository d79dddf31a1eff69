"""Where the native library lies: beside this file in a wheel, where it was built in an editable installation."""

from __future__ import annotations

from pathlib import Path

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
