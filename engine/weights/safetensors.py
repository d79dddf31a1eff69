"""Safetensors files: the tensors of one memory-mapped file, or of a folder of shards.

Used by ``hf_checkpoint``. The header is bounded before it is parsed, and every shape and offset is checked against the
file's size before it is used. Source: the safetensors format description: u64 header length, a JSON header, then the
tensors' bytes, without gaps or overlaps.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np
import numpy.typing as npt

from engine.errors import MalformedModel, ModelNotFound, UnsupportedModel
from engine.weights.json_file import MAX_BYTES, decode_json, read_json
from engine.weights.mapped import map_file, shown
from kernels.formats import RawTensor, WeightFormat
from kernels.quantise import w8a8_tensor
from kernels.reference.dequant import dequantise

MAX_RANK = 8
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_LENGTH = struct.Struct("<Q")
_FORMATS = {"F32": WeightFormat.F32, "F16": WeightFormat.F16, "BF16": WeightFormat.BF16}
_CODES = "I8"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor's entry in the header; offsets count from the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct, frozen=True):
    """What we read of ``model.safetensors.index.json``: tensor name -> file name."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file; ``offset`` is bytes from the file's start.

    ``format`` is None for int8 codes, whose scales lie elsewhere.
    """

    shape: tuple[int, ...]
    format: WeightFormat | None
    offset: int
    nbytes: int


class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        name: the file's name, for errors.
        tensors: name -> where it lies.
    """

    def __init__(self, name: str, data: mmap.mmap) -> None:
        self.name = name
        self._data = data
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(_read_header(name, data))

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Map the file and read its header.

        Raises:
            ModelNotFound: there is no such file.
            MalformedModel: the file contradicts its format or its size.
            UnsupportedModel: a tensor of a type other than F32, F16, BF16 and I8.
        """
        return cls(path.name, map_file(path, min_bytes=_LENGTH.size))

    def raw(self, name: str) -> RawTensor:
        """The tensor of that name, a view of the map.

        Raises:
            MalformedModel: it is not there.
            UnsupportedModel: it is int8 codes, which say nothing without their scales.
        """
        info = self._info(name)
        if info.format is None:
            raise UnsupportedModel(f"{self.name}: tensor {shown(name)} is of type {_CODES}, and not with scales.")
        row_bytes = info.format.row_bytes(prod(info.shape[-1:]))
        return RawTensor(info.shape, info.format, self._bytes(info).reshape(*info.shape[:-1], row_bytes))

    def w8a8(self, name: str, scales: RawTensor) -> RawTensor:
        """The int8 codes of that name and the scales of their rows, as one tensor, copied.

        Shapes: codes i8[N,K], scales float[N,1] in any float format -> W8A8 [N,K].

        Raises:
            MalformedModel: it is not there, is no matrix of codes, or is one of another number of rows.
        """
        info = self._info(name)
        if info.format is not None or len(info.shape) != 2 or scales.shape != (info.shape[0], 1):
            raise MalformedModel(f"{self.name}: tensor {shown(name)} is not int8 codes of {scales.shape[0]} rows.")
        return w8a8_tensor(self._bytes(info).reshape(info.shape).view(np.int8), dequantise(scales)[:, 0])

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise MalformedModel(f"{self.name}: tensor {shown(name)} is missing.")
        return info

    def _bytes(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._data, dtype=np.uint8, count=info.nbytes, offset=info.offset)


def _read_header(name: str, data: mmap.mmap) -> dict[str, TensorInfo]:
    """Every tensor of the file, checked."""
    (length,) = _LENGTH.unpack_from(data, 0)
    start = _LENGTH.size + length
    if start > len(data):
        raise _malformed(name, f"a header of {length} bytes reaches beyond the end of the file")
    if length > MAX_BYTES:
        raise _malformed(name, f"a header of {length} bytes is longer than the {MAX_BYTES} that are read")
    entries = decode_json(name, data[_LENGTH.size : start], dict[str, msgspec.Raw])
    entries.pop("__metadata__", None)
    tensors: dict[str, TensorInfo] = {}
    for tensor, entry in entries.items():
        source = f"{name}: tensor {shown(tensor)}"
        tensors[tensor] = _tensor_info(source, decode_json(source, bytes(entry), _Entry), start)
    end = start
    for tensor, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            fault = "overlaps the one before it" if info.offset < end else "leaves a gap before it"
            raise _malformed(name, f"tensor {shown(tensor)} {fault}")
        end += info.nbytes
    if end != len(data):
        raise _malformed(name, f"its tensors end at byte {end}, but the file at byte {len(data)}")
    return tensors


def _tensor_info(source: str, entry: _Entry, start: int) -> TensorInfo:
    """Check one entry by itself."""
    fmt = _FORMATS.get(entry.dtype)
    if fmt is None and entry.dtype != _CODES:
        raise UnsupportedModel(
            f"{source} is of type {shown(entry.dtype)}, which this build cannot read; it reads "
            f"{', '.join((*_FORMATS, _CODES))}."
        )
    if len(entry.shape) > MAX_RANK or any(not 0 <= size < 1 << 63 for size in entry.shape):
        raise MalformedModel(f"{source} has a senseless shape.")
    begin, end = entry.data_offsets
    nbytes = prod(entry.shape) * (fmt.block_bytes if fmt is not None else 1)
    if not 0 <= begin <= end or end - begin != nbytes:
        raise MalformedModel(f"{source} has other data offsets than its type and shape ask for.")
    return TensorInfo(tuple(entry.shape), fmt, start + begin, nbytes)


def _malformed(name: str, what: str) -> MalformedModel:
    return MalformedModel(f"{name} is not a sound safetensors file: {what}.")


def open_folder(folder: Path) -> dict[str, SafetensorsFile]:
    """The tensors of a model folder: tensor name -> the open file that holds it.

    ``model.safetensors`` is taken if it is there, else the shards that the index names, else the only ``.safetensors``
    file. Shards are opened by plain file name, so nothing outside the folder is (unless the folder links to it).

    Raises:
        ModelNotFound: the folder holds no safetensors.
        MalformedModel: a file contradicts itself, or the index names a file or a tensor that is not there.
        UnsupportedModel: a tensor of a type that is not read.
    """
    if (folder / SINGLE).exists():
        return _whole(folder / SINGLE)
    if (folder / INDEX).exists():
        return _shards(folder)
    found = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    if len(found) != 1:
        raise ModelNotFound(f"{folder} holds {len(found) or 'no'} .safetensors files and no {INDEX}.")
    return _whole(found[0])


def _whole(path: Path) -> dict[str, SafetensorsFile]:
    file = SafetensorsFile.open(path)
    return dict.fromkeys(file.tensors, file)


def _shards(folder: Path) -> dict[str, SafetensorsFile]:
    files: dict[str, SafetensorsFile] = {}
    tensors: dict[str, SafetensorsFile] = {}
    for tensor, shard in read_json(folder / INDEX, _Index).weight_map.items():
        if shard not in files:
            files[shard] = _open_shard(folder, shard)
        if tensor not in files[shard].tensors:
            raise MalformedModel(f"{INDEX}: tensor {shown(tensor)} is not in {shown(shard)}, where it should be.")
        tensors[tensor] = files[shard]
    return tensors


def _open_shard(folder: Path, shard: str) -> SafetensorsFile:
    if not shard.endswith(".safetensors") or any(mark in shard for mark in "/\\\0"):
        raise MalformedModel(f"{INDEX}: {shown(shard)} is not the name of a .safetensors file in the folder.")
    try:
        return SafetensorsFile.open(folder / shard)
    except ModelNotFound:
        raise MalformedModel(f"{INDEX}: the file {shown(shard)} that it names is missing from {folder}.") from None
