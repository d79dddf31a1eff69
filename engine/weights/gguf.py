"""GGUF files: metadata and tensors of a memory-mapped file, in the file's own names and order of rows.

Used by ``gguf_checkpoint`` for a model and by the tokenizer for its vocabulary. Every count, length, offset and shape
is checked against the file's size before it is used or anything is allocated for it, so a lying header costs one line,
not memory. Source: the GGUF specification (``docs/gguf.md`` of ggml), versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine.errors import MalformedModel, UnsupportedModel
from engine.weights.mapped import map_file, shown
from kernels.formats import RawTensor, WeightFormat

GGUF_MAGIC = b"GGUF"
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ARRAY = 1 << 24
MAX_STRINGS = 1 << 20
"""In all arrays together; the largest vocabulary in use (Gemma's, with its merges) has three quarters of that."""
MAX_TEXT_BYTES = 32 << 20
"""Of all strings together: what bounds the memory that metadata can take."""

_HEADER = struct.Struct("<4sIQQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: dict[int, struct.Struct] = {
    kind: struct.Struct("<" + code)
    for kind, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "B",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_KEY_MIN_BYTES = 8 + 4 + 1
_TENSOR_MIN_BYTES = 8 + 4 + 8 + 4 + 8

_FORMATS: dict[int, WeightFormat] = {
    0: WeightFormat.F32,
    1: WeightFormat.F16,
    2: WeightFormat.Q4_0,
    3: WeightFormat.Q4_1,
    8: WeightFormat.Q8_0,
    12: WeightFormat.Q4_K,
    14: WeightFormat.Q6_K,
    30: WeightFormat.BF16,
}
_OTHER_TYPES: dict[int, str] = {
    **{6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"},
    **{18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16"},
    **{26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        shape: outermost dimension first (the file lists them the other way round).
        offset: bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    format: WeightFormat
    offset: int
    nbytes: int


class GGUFFile:
    """An open GGUF file.

    Attributes:
        name: the file's name, for errors.
        metadata: key -> bool, int, float, str, list[str], or a typed memoryview of numbers or bools.
        tensors: name -> where it lies, in the file's order.
    """

    def __init__(self, name: str, data: mmap.mmap) -> None:
        self.name = name
        self._data = data
        parser = _Parser(name, data)
        num_keys, num_tensors = parser.header()
        metadata = parser.metadata(num_keys)
        tensors = parser.tensor_infos(num_tensors, metadata)
        self.metadata: Mapping[str, object] = MappingProxyType(metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Map the file and read its header, metadata and tensor table.

        Raises:
            ModelNotFound: there is no such file.
            MalformedModel: the file contradicts its format or its size.
            UnsupportedModel: big endian, version 1, or a tensor of a type this build cannot unpack.
        """
        return cls(path.name, map_file(path, min_bytes=_HEADER.size))

    def raw(self, name: str) -> RawTensor:
        """The tensor of that name, a view of the map.

        Raises:
            MalformedModel: it is not there.
        """
        info = self.tensors.get(name)
        if info is None:
            raise MalformedModel(f"{self.name}: tensor {shown(name)} is missing.")
        import numpy as np  # noqa: PLC0415  (the API process reads vocabularies alone, and does without its megabytes)

        flat = np.frombuffer(self._data, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        return RawTensor(info.shape, info.format, flat.reshape(*info.shape[:-1], -1))


class _Parser:
    """Reads a file's head from front to back; every read is checked against the end of the file."""

    def __init__(self, name: str, data: mmap.mmap) -> None:
        self._name = name
        self._data = data
        self._size = len(data)
        self._position = 0
        self._text_budget = MAX_TEXT_BYTES
        self._string_budget = MAX_STRINGS

    def header(self) -> tuple[int, int]:
        """Check magic, version and counts; return the numbers of keys and of tensors."""
        magic, version, num_tensors, num_keys = _HEADER.unpack_from(self._data, 0)
        self._position = _HEADER.size
        if magic != GGUF_MAGIC:
            raise self._malformed("not a GGUF file")
        if version & 0xFFFF == 0:
            raise UnsupportedModel(f"{self._name}: big-endian GGUF is not supported; convert it to little endian.")
        if version not in {2, 3}:
            raise UnsupportedModel(f"{self._name}: GGUF version {version} is not supported, only 2 and 3.")
        self._check_count(num_keys, _KEY_MIN_BYTES, MAX_KEYS, "metadata keys")
        self._check_count(num_tensors, _TENSOR_MIN_BYTES, MAX_TENSORS, "tensors")
        return num_keys, num_tensors

    def metadata(self, count: int) -> dict[str, object]:
        """Read ``count`` keys and values."""
        metadata: dict[str, object] = {}
        for _ in range(count):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._malformed(f"metadata key {shown(key)} occurs twice")
            metadata[key] = self._value(key)
        return metadata

    def tensor_infos(self, count: int, metadata: Mapping[str, object]) -> dict[str, TensorInfo]:
        """Read ``count`` entries of the tensor table; check that the tensors lie apart and inside the file."""
        entries = [self._tensor_entry() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._malformed("general.alignment is not a power of two")
        start = -(-self._position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for info in entries:
            if info.name in tensors:
                raise self._malformed(f"tensor {shown(info.name)} occurs twice")
            if info.offset % alignment:
                raise self._malformed(f"tensor {shown(info.name)} is not aligned to {alignment} bytes")
            if start + info.offset + info.nbytes > self._size:
                raise self._malformed(f"tensor {shown(info.name)} reaches beyond the end of the file")
            tensors[info.name] = TensorInfo(info.name, info.shape, info.format, start + info.offset, info.nbytes)
        for before, after in pairwise(sorted(tensors.values(), key=lambda info: info.offset)):
            if before.offset + before.nbytes > after.offset:
                raise self._malformed(f"tensors {shown(before.name)} and {shown(after.name)} overlap")
        return tensors

    def _tensor_entry(self) -> TensorInfo:
        """One entry of the tensor table, its offset still relative to the data."""
        name = self._string("a tensor's name")
        num_dims = self._u32("a tensor's rank")
        if not 1 <= num_dims <= 4:
            raise self._malformed(f"tensor {shown(name)} has {num_dims} dimensions")
        shape = tuple(reversed([self._u64("a tensor's shape") for _ in range(num_dims)]))
        kind, offset = self._u32("a tensor's type"), self._u64("a tensor's offset")
        if not all(shape):
            raise self._malformed(f"tensor {shown(name)} has a dimension of 0")
        fmt = _FORMATS.get(kind)
        if fmt is None:
            label = _OTHER_TYPES.get(kind, f"number {kind}")
            raise UnsupportedModel(
                f"{self._name}: tensor {shown(name)} is of type {label}, which this build cannot read; "
                f"it reads {', '.join(known.name for known in WeightFormat)}."
            )
        if shape[-1] % fmt.block_elements:
            raise self._malformed(f"rows of tensor {shown(name)} are not whole {fmt.name} blocks")
        return TensorInfo(name, shape, fmt, offset, prod(shape[:-1]) * fmt.row_bytes(shape[-1]))

    def _value(self, key: str) -> object:
        """A value, its type first."""
        what = f"metadata key {shown(key)}"
        kind = self._u32(what)
        if kind == _STRING:
            return self._string(what)
        if kind == _ARRAY:
            return self._array(what)
        return self._number(kind, what)

    def _number(self, kind: int, what: str) -> bool | int | float:
        code = _NUMBERS.get(kind)
        if code is None:
            raise self._malformed(f"{what} has the unknown type {kind}")
        number: int | float = code.unpack_from(self._data, self._advance(code.size, what))[0]
        if kind != _BOOL:
            return number
        if number not in {0, 1}:
            raise self._malformed(f"{what} is a bool of value {number}")
        return bool(number)

    def _array(self, what: str) -> object:
        """A list[str], or a view of the map for numbers, which are little endian as all that Upwell runs on."""
        kind, count = self._u32(what), self._u64(what)
        if kind == _STRING:
            return self._strings(count, what)
        code = _NUMBERS.get(kind)
        if code is None:
            nested = "holds arrays" if kind == _ARRAY else f"holds values of the unknown type {kind}"
            raise self._malformed(f"{what} {nested}")
        self._check_count(count, code.size, MAX_ARRAY, f"values in {what}")
        start = self._advance(count * code.size, what)
        values: Any = memoryview(self._data)[start : start + count * code.size].toreadonly()
        if kind != _BOOL:
            return values.cast(code.format[-1])
        if max(values, default=0) > 1:
            raise self._malformed(f"{what} holds bools that are neither 0 nor 1")
        return values.cast("?")

    def _strings(self, count: int, what: str) -> list[str]:
        """Strings in a tight loop: a vocabulary has some 100,000."""
        self._check_count(count, _U64.size, self._string_budget, f"strings in {what}")
        self._string_budget -= count
        data, size, length_of = self._data, self._size, _U64.unpack_from
        position, texts = self._position, []
        limit = min(size, position + count * _U64.size + self._text_budget)
        try:
            for _ in range(count):
                end = position + 8
                if end > size:
                    raise self._beyond(what)
                start, end = end, end + length_of(data, position)[0]
                if end > limit:
                    raise self._beyond(what) if end > size else self._too_much_text()
                texts.append(str(data[start:end], "utf-8"))
                position = end
        except UnicodeDecodeError:
            raise self._malformed(f"{what} is not valid UTF-8") from None
        self._text_budget -= position - self._position - count * _U64.size
        self._position = position
        return texts

    def _string(self, what: str) -> str:
        length = self._u64(what)
        start = self._advance(length, what)
        self._text_budget -= length
        if self._text_budget < 0:
            raise self._too_much_text()
        try:
            return str(self._data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise self._malformed(f"{what} is not valid UTF-8") from None

    def _u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self._data, self._advance(4, what))[0]
        return value

    def _u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self._data, self._advance(8, what))[0]
        return value

    def _advance(self, num_bytes: int, what: str) -> int:
        """Step over ``num_bytes`` that must be there; return where they start."""
        start = self._position
        if num_bytes > self._size - start:
            raise self._beyond(what)
        self._position = start + num_bytes
        return start

    def _check_count(self, count: int, min_bytes: int, limit: int, what: str) -> None:
        if count * min_bytes > self._size - self._position:
            raise self._malformed(f"it claims {count} {what}, more than fit into its {self._size} bytes")
        if count > limit:
            raise self._malformed(f"it claims {count} {what}; at most {limit} are read")

    def _beyond(self, what: str) -> MalformedModel:
        return self._malformed(f"{what} reaches beyond the end of the file")

    def _too_much_text(self) -> MalformedModel:
        return self._malformed(f"its metadata holds more than {MAX_TEXT_BYTES >> 20} MB of text")

    def _malformed(self, what: str) -> MalformedModel:
        return MalformedModel(f"{self._name} is not a sound GGUF file: {what}.")
