"""Read-only memory maps of model files, and how a name out of a file is shown in an error.

Used by the file readers. A map costs address space, not memory; the file must not be truncated while it is mapped,
which ``store`` guarantees for its own files by replacing them whole.
"""

from __future__ import annotations

import mmap
import stat
from pathlib import Path

from engine.errors import MalformedModel, ModelError, ModelNotFound


def map_file(path: Path, *, min_bytes: int) -> mmap.mmap:
    """Map a regular file for reading.

    Raises:
        ModelNotFound: there is no such file.
        MalformedModel: it is no regular file, or shorter than ``min_bytes``.
        ModelError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise MalformedModel(f"{path} is not a regular file.")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < min_bytes:
                raise MalformedModel(f"{path.name} is {size} bytes long, too short for its header.")
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelNotFound(f"There is no file {path}.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None


def shown(value: object, limit: int = 80) -> str:
    """A name or value out of a file as an error may show it: escaped, on one line, at most ``limit`` characters."""
    if isinstance(value, str):
        text = ascii(value[:limit])
    elif isinstance(value, int) and value.bit_length() > 128:
        text = f"an integer of {value.bit_length()} bits"
    elif value is None or isinstance(value, bool | int | float):
        text = str(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
