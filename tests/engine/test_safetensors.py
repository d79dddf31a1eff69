"""The safetensors reader: files as the ``safetensors`` package writes them, and files that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.errors import MalformedModel, ModelError, ModelNotFound, UnsupportedModel
from engine.weights.safetensors import SafetensorsFile, open_folder
from kernels.formats import WeightFormat
from kernels.reference.dequant import dequantise
from tests.support.memory import peak_of_failing_open

HUGE = 2**63


def entry(shape: list[object], begin: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def encode(header: Mapping[str, object] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file whose header may claim another length than it has."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class TestSoundFiles:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_values_as_the_package_writes_them(self, path: Path, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        tensors = {"a": torch.randn(3, 5), "b": torch.randn(7), "c": torch.randn(2, 3, 4), "空": torch.randn(1)}
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(tensors, path, metadata={"format": "pt", "dtype": "x"})
        file = SafetensorsFile.open(path)
        assert set(file.tensors) == set(tensors)
        for name, tensor in tensors.items():
            assert np.array_equal(dequantise(file.raw(name)), tensor.float().numpy())

    def test_scalars_and_empty_tensors(self, path: Path) -> None:
        save_file({"s": torch.tensor(3.5), "e": torch.empty(0, 4), "f": torch.empty(4, 0)}, path)
        file = SafetensorsFile.open(path)
        assert {name: info.shape for name, info in file.tensors.items()} == {"s": (), "e": (0, 4), "f": (4, 0)}
        assert [dequantise(file.raw(name)).shape for name in "sef"] == [(), (0, 4), (4, 0)]

    def test_tensors_are_views(self, path: Path) -> None:
        save_file({"a": torch.ones(3, 5)}, path)
        raw = SafetensorsFile.open(path).raw("a")
        assert (raw.format, raw.shape, raw.nbytes) == (WeightFormat.F32, (3, 5), 60)
        assert not raw.data.flags.owndata
        assert not raw.data.flags.writeable

    def test_no_tensors(self, path: Path) -> None:
        assert dict(SafetensorsFile.open(put(path, encode({}))).tensors) == {}

    def test_missing(self, path: Path) -> None:
        with pytest.raises(ModelNotFound):
            SafetensorsFile.open(path)
        with pytest.raises(MalformedModel, match="'x' is missing"):
            SafetensorsFile.open(put(path, encode({}))).raw("x")


LYING: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "header of 2^63": (encode(b"{}", length=HUGE), "header of 9223372036854775808 bytes reaches beyond"),
    "header by one": (encode(b"{}", length=3), "reaches beyond the end"),
    "header of 100 MB": (encode(b"{" + b" " * (17 << 20)), "longer than"),
    "no JSON": (encode(b"\0" * 8), "cannot be read"),
    "cut JSON": (encode(b'{"a":'), "cannot be read"),
    "not UTF-8": (encode(b'{"\xff":{}}'), "cannot be read"),
    "a list": (encode(b"[]"), "cannot be read"),
    "depth 10^5": (encode(b'{"__metadata__":' + b"[" * 100_000), "cannot be read|nested too deeply"),
    "depth 10^5 in an entry": (encode(b'{"a":' + b'{"a":' * 100_000), "cannot be read|nested too deeply"),
    "too many values": (encode(b"{" + b'"a":0,' * (1 << 20) + b'"a":0}'), "more than the 524288 values"),
    "entry a number": (encode({"a": 1}), "'a': its JSON cannot be read"),
    "entry without offsets": (encode({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "cannot be read"),
    "entry with more": (encode({"a": {**entry([1], 0, 4), "code": "x"}}, bytes(4)), "cannot be read"),
    "three offsets": (encode({"a": {**entry([1], 0, 4), "data_offsets": [0, 4, 4]}}, bytes(4)), "cannot be read"),
    "shape of floats": (encode({"a": entry([1.5], 0, 4)}, bytes(4)), "cannot be read"),
    "shape negative": (encode({"a": entry([-1, -1], 0, 4)}, bytes(4)), "senseless shape"),
    "shape beyond 64 bits": (encode({"a": entry([2**64], 0, 4)}, bytes(4)), "senseless shape|cannot be read"),
    "shape overflow": (encode({"a": entry([2**32, 2**32], 0, 0)}), "other data offsets"),
    "a million dimensions": (encode({"a": entry([9] * 100_000, 0, 4)}, bytes(4)), "senseless shape"),
    "offsets negative": (encode({"a": entry([1], -4, 0)}, bytes(4)), "other data offsets"),
    "offsets backwards": (encode({"a": entry([1], 4, 0)}, bytes(4)), "other data offsets"),
    "offsets of 2^63": (encode({"a": entry([1], HUGE, HUGE + 4)}, bytes(4)), "leaves a gap|cannot be read"),
    "more than the shape": (encode({"a": entry([1], 0, 8)}, bytes(8)), "other data offsets"),
    "another type's size": (encode({"a": entry([4], 0, 8, "F32")}, bytes(8)), "other data offsets"),
    "beyond the end": (encode({"a": entry([2], 0, 8)}, bytes(4)), "end at byte"),
    "bytes left over": (encode({"a": entry([1], 0, 4)}, bytes(8)), "end at byte"),
    "overlap": (encode({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "'b' overlaps"),
    "same place": (encode({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)), "overlaps"),
    "gap": (encode({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)), "'b' leaves a gap"),
    "a name twice": (
        encode(b'{"a":%b,"a":%b}' % tuple(json.dumps(entry([1], b, b + 4)).encode() for b in (0, 4)), bytes(8)),
        "leaves a gap",
    ),
    "newline in a name": (encode({"a\nb": entry([2], 0, 4)}, bytes(4)), r"'a\\nb' has other"),
}


@pytest.mark.parametrize(("content", "match"), LYING.values(), ids=LYING)
def test_a_lie_ends_in_one_line(path: Path, content: bytes, match: str) -> None:
    with pytest.raises(MalformedModel, match=match) as caught:
        SafetensorsFile.open(put(path, content))
    assert "\n" not in str(caught.value)
    assert "model.safetensors" in str(caught.value)


class TestCodes:
    def test_with_their_scales_they_are_w8a8(self, path: Path) -> None:
        save_file(
            {"a": torch.tensor([[-128, 5, 127], [1, 2, 3]], dtype=torch.int8), "s": torch.tensor([[0.5], [2]])}, path
        )
        file = SafetensorsFile.open(path)
        assert file.tensors["a"].format is None
        assert dequantise(file.w8a8("a", file.raw("s"))).tolist() == [[-64, 2.5, 63.5], [2, 4, 6]]

    def test_without_they_say_nothing(self, path: Path) -> None:
        save_file({"a": torch.ones((2, 3), dtype=torch.int8)}, path)
        with pytest.raises(UnsupportedModel, match="'a' is of type I8"):
            SafetensorsFile.open(path).raw("a")

    @pytest.mark.parametrize("other", [torch.ones(2, 3), torch.ones(3, 3).char(), torch.ones(2).char()], ids=str)
    def test_of_other_rows_or_no_codes(self, path: Path, other: torch.Tensor) -> None:
        save_file({"a": other, "s": torch.ones(2, 1)}, path)
        file = SafetensorsFile.open(path)
        with pytest.raises(MalformedModel, match="'a' is not int8 codes of 2 rows"):
            file.w8a8("a", file.raw("s"))


@pytest.mark.parametrize("dtype", ["U8", "F64", "BOOL", "F8_E4M3", "SECRET"])
def test_other_types_are_named(path: Path, dtype: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"'a' is of type '{dtype}'"):
        SafetensorsFile.open(put(path, encode({"a": entry([8], 0, 8, dtype)}, bytes(8))))


@pytest.mark.parametrize(
    "content",
    [
        encode(b"{}", length=HUGE),
        encode(b'{"a":' + b"[" * (15 << 20)),
        encode(b'{"a":{"shape":[' + b"9," * (500_000) + b"9]}}"),
        encode({f"{i:x}": 0 for i in range(1 << 19)}),
        encode({"a": entry([2**40, 2**20], 0, 2**62)}),
    ],
    ids=["length", "depth", "dimensions", "entries", "tensor"],
)
def test_a_lie_takes_no_memory(path: Path, content: bytes) -> None:
    assert peak_of_failing_open("engine.weights.safetensors", "SafetensorsFile.open", put(path, content)) < 200 << 20


SOUND = encode({"a": entry([2, 4], 0, 32), "bb": entry([3], 32, 38, "BF16"), "__metadata__": {"k": "v"}}, bytes(38))


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, len(SOUND) - 1),
            st.sampled_from([b"\0", b"\xff", b"9", b"-1", b"[", b"}", b'"', b"99999999999999999999", b"1e9"])
            | st.binary(min_size=1, max_size=8),
        ),
        max_size=4,
    ),
    length=st.integers(0, len(SOUND)) | st.just(len(SOUND)),
)
def test_mutations_end_in_a_typed_error_or_a_sound_file(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes]], length: int
) -> None:
    content = bytearray(SOUND)
    for position, replacement in edits:
        content[position : position + len(replacement)] = replacement
    path = put(tmp_path_factory.getbasetemp() / "mutated.safetensors", bytes(content[:length]))
    try:
        file = SafetensorsFile.open(path)
    except (MalformedModel, UnsupportedModel):
        return
    for name, info in file.tensors.items():
        assert dequantise(file.raw(name)).shape == info.shape


class TestFolders:
    def shards(self, folder: Path, weight_map: object) -> Path:
        save_file({"a": torch.ones(2)}, folder / "one.safetensors")
        save_file({"b": torch.zeros(3)}, folder / "two.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    def test_shards(self, tmp_path: Path) -> None:
        tensors = open_folder(self.shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))
        assert {name: dequantise(file.raw(name)).tolist() for name, file in tensors.items()} == {
            "a": [1, 1],
            "b": [0, 0, 0],
        }

    def test_a_single_file_of_either_name(self, tmp_path: Path) -> None:
        save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
        assert open_folder(tmp_path)["a"].name == "other.safetensors"
        save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
        assert open_folder(tmp_path)["a"].name == "model.safetensors"

    def test_none_and_several_without_an_index(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"no \.safetensors files"):
            open_folder(tmp_path)
        self.shards(tmp_path, {})
        (tmp_path / "model.safetensors.index.json").unlink()
        with pytest.raises(ModelNotFound, match=r"2 \.safetensors files and no model\.safetensors\.index\.json"):
            open_folder(tmp_path)

    @pytest.mark.parametrize(
        ("shard", "match"),
        [
            ("../one.safetensors", r"'\.\./one\.safetensors' is not the name"),
            ("/etc/one.safetensors", "is not the name"),
            ("sub/one.safetensors", "is not the name"),
            ("sub\\one.safetensors", "is not the name"),
            ("one\0.safetensors", "is not the name"),
            ("..", "is not the name"),
            ("pytorch_model.bin", "is not the name"),
            ("three.safetensors", "'three.safetensors' that it names is missing"),
            ("two.safetensors", "'a' is not in 'two.safetensors'"),
        ],
    )
    def test_an_index_that_lies(self, tmp_path: Path, shard: str, match: str) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
        with pytest.raises(MalformedModel, match=match):
            open_folder(self.shards(folder, {"a": shard}))

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"weight_map":{"a":1}}', b"[" * 100_000])
    def test_an_index_that_is_none(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "model.safetensors.index.json").write_bytes(content)
        with pytest.raises(MalformedModel):
            open_folder(tmp_path)

    def test_a_name_too_long_for_the_file_system(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="cannot be read"):
            open_folder(self.shards(tmp_path, {"a": "x" * 5000 + ".safetensors"}))
