"""Writes GGUF files byte by byte, so that any part of one can be made to lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def text(value: str | bytes) -> bytes:
    """A string: length, then its bytes."""
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def number(kind: int, value: float) -> bytes:
    """A typed number."""
    return struct.pack("<I" + _CODES[kind], kind, value)


def string(value: str | bytes) -> bytes:
    """A typed string."""
    return struct.pack("<I", STRING) + text(value)


def array(kind: int, values: Sequence[float | str], count: int | None = None) -> bytes:
    """A typed array that claims ``count`` values."""
    body = b"".join(text(v) if isinstance(v, str) else struct.pack("<" + _CODES[kind], v) for v in values)
    return struct.pack("<IIQ", ARRAY, kind, len(values) if count is None else count) + body


@dataclass(frozen=True)
class Tensor:
    """An entry of the tensor table. ``dims`` are in the file's order, the innermost first."""

    name: str | bytes
    dims: tuple[int, ...]
    kind: int = 0
    offset: int = 0

    def encode(self) -> bytes:
        head = text(self.name) + struct.pack("<I", len(self.dims))
        return head + struct.pack(f"<{len(self.dims)}QIQ", *self.dims, self.kind, self.offset)


def gguf_bytes(
    keys: Sequence[tuple[str | bytes, bytes]] = (),
    tensors: Sequence[Tensor] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts may claim something else than there is."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head += b"".join(text(key) + value for key, value in keys)
    head += b"".join(tensor.encode() for tensor in tensors)
    return head + bytes(-len(head) % alignment) + data


def write_gguf(path: Path, content: bytes) -> Path:
    """Put ``content`` into a file and return its path."""
    path.write_bytes(content)
    return path
