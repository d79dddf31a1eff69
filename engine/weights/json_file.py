"""JSON out of a model folder, bounded before it is parsed: bytes, number of values, depth.

Used for ``config.json``, shard indexes and safetensors headers. ``msgspec`` bounds the depth itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from engine.errors import MalformedModel
from engine.weights.mapped import map_file

MAX_BYTES = 16 << 20
MAX_VALUES = 1 << 19
"""Four are spent on each tensor of a safetensors header, one on each of an index; a model has at most some 40,000."""

T = TypeVar("T")


def decode_json(source: str, data: bytes, kind: type[T]) -> T:
    """Parse ``data`` as a value of type ``kind``.

    Raises:
        MalformedModel: too large, too deep, not JSON, or of another type.
    """
    if len(data) > MAX_BYTES:
        raise MalformedModel(f"{source}: {len(data)} bytes of JSON are more than the {MAX_BYTES} that are read.")
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise MalformedModel(f"{source}: its JSON holds more than the {MAX_VALUES} values that are read.")
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise MalformedModel(f"{source}: its JSON is nested too deeply.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedModel(f"{source}: its JSON cannot be read: {error}.") from None


def read_json(path: Path, kind: type[T]) -> T:
    """Parse a file, as ``decode_json``.

    Raises:
        ModelNotFound: there is no such file.
        MalformedModel: it is no regular file, or as ``decode_json``.
        ModelError: it cannot be read.
    """
    data = map_file(path, min_bytes=1)
    return decode_json(path.name, data[: MAX_BYTES + 1], kind)
