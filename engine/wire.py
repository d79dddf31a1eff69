"""Frames on the socket between server and engine: four bytes of length, little endian, then a msgpack message."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.errors import UpwellError

MAX_FRAME_BYTES = 1 << 28

_encoder = msgspec.msgpack.Encoder()


class BadFrame(UpwellError):
    """The other end sent something that is not a frame; the link cannot be trusted any more."""


def encode_frame(message: Any) -> bytes:
    """One message, ready to be written."""
    return framed(_encoder.encode(message))


def framed(payload: bytes) -> bytes:
    """Bytes of any kind behind their length."""
    return len(payload).to_bytes(4, "little") + payload


class FrameReader:
    """Cuts a stream of bytes, however it arrives, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that ``data`` completes.

        Raises:
            BadFrame: a length beyond ``MAX_FRAME_BYTES``.
        """
        self._buffer += data
        frames, start = [], 0
        while len(self._buffer) - start >= 4:
            length = int.from_bytes(self._buffer[start : start + 4], "little")
            if length > MAX_FRAME_BYTES:
                raise BadFrame(f"a frame of {length} bytes")
            if len(self._buffer) - start - 4 < length:
                break
            frames.append(bytes(self._buffer[start + 4 : start + 4 + length]))
            start += 4 + length
        del self._buffer[:start]
        return frames
