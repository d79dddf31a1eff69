"""The GGUF reader: sound files as the ``gguf`` package writes them, and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import MalformedModel, ModelNotFound, UnsupportedModel
from engine.weights.gguf import GGUFFile
from kernels.formats import WeightFormat
from kernels.reference.dequant import dequantise
from tests.support import gguf_writer as w
from tests.support.gguf_writer import Tensor, array, gguf_bytes, number, string, write_gguf
from tests.support.memory import peak_of_failing_open

HUGE = 2**63


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


class TestSoundFiles:
    def test_metadata_as_the_gguf_package_writes_it(self, path: Path) -> None:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint8("u8", 255)
        writer.add_int8("i8", -128)
        writer.add_uint16("u16", 65535)
        writer.add_int16("i16", -32768)
        writer.add_uint32("u32", 2**32 - 1)
        writer.add_int32("i32", -(2**31))
        writer.add_uint64("u64", 2**64 - 1)
        writer.add_int64("i64", -(2**63))
        writer.add_float32("f32", 0.5)
        writer.add_float64("f64", 0.1)
        writer.add_bool("yes", True)
        writer.add_bool("no", False)
        writer.add_string("text", "größe 模型 🙂")
        writer.add_array("ints", [1, -2, 3])
        writer.add_array("floats", [0.5, -1.5])
        writer.add_array("bools", [True, False, True])
        writer.add_array("texts", ["", "a", "模型"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        metadata = GGUFFile.open(path).metadata
        plain = {k: v for k, v in metadata.items() if not isinstance(v, memoryview)}
        assert plain == {
            "general.architecture": "llama",
            **{"u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31)},
            **{"u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "yes": True, "no": False},
            "text": "größe 模型 🙂",
            "texts": ["", "a", "模型"],
        }
        assert type(metadata["yes"]) is bool
        arrays = {k: v.tolist() for k, v in metadata.items() if isinstance(v, memoryview)}
        assert arrays == {"ints": [1, -2, 3], "floats": [0.5, -1.5], "bools": [True, False, True]}
        assert metadata["bools"].format == "?"

    def test_tensors_as_the_gguf_package_writes_them(self, path: Path) -> None:
        rng = np.random.default_rng(0)
        weight, bias = rng.normal(size=(4, 3, 64)).astype(np.float32), rng.normal(size=7).astype(np.float16)
        packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_custom_alignment(64)
        writer.add_tensor("weight", weight)
        writer.add_tensor("bias", bias)
        writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file = GGUFFile.open(path)
        assert list(file.tensors) == ["weight", "bias", "packed"]
        assert np.array_equal(dequantise(file.raw("weight")), weight)
        assert np.array_equal(dequantise(file.raw("bias")), bias.astype(np.float32))
        raw = file.raw("packed")
        assert (raw.format, raw.shape, raw.nbytes) == (WeightFormat.Q8_0, (4, 3, 64), packed.nbytes)
        assert np.array_equal(raw.data, packed)

    def test_tensors_are_views_and_outlive_the_file_object(self, path: Path) -> None:
        write_gguf(path, gguf_bytes((), [Tensor("t", (4,))], np.arange(4, dtype="<f4").tobytes()))
        raw = GGUFFile.open(path).raw("t")
        assert not raw.data.flags.owndata
        assert not raw.data.flags.writeable
        assert dequantise(raw).tolist() == [0, 1, 2, 3]

    def test_version_2_and_an_empty_file(self, path: Path) -> None:
        file = GGUFFile.open(write_gguf(path, gguf_bytes(version=2)))
        assert (dict(file.metadata), dict(file.tensors)) == ({}, {})

    def test_a_tensor_that_is_not_there(self, path: Path) -> None:
        file = GGUFFile.open(write_gguf(path, gguf_bytes()))
        with pytest.raises(MalformedModel, match=r"model\.gguf: tensor 'x\\n' is missing"):
            file.raw("x\n")

    def test_no_such_file_and_not_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="no file"):
            GGUFFile.open(tmp_path / "absent.gguf")
        with pytest.raises(MalformedModel, match="not a regular file"):
            GGUFFile.open(tmp_path)


ROW = bytes(32)
LYING: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "magic": (gguf_bytes(magic=b"GGML"), "not a GGUF file"),
    "keys": (gguf_bytes(num_keys=HUGE), "claims 9223372036854775808 metadata keys"),
    "tensors": (gguf_bytes(num_tensors=HUGE), "claims 9223372036854775808 tensors"),
    "one key too many": (gguf_bytes([("a", number(w.U8, 1))], num_keys=2, alignment=1), "claims 2 metadata keys"),
    "one tensor too many": (gguf_bytes((), [Tensor("t", (8,))], ROW * 2, num_tensors=2), "0 dimensions"),
    "key length": (gguf_bytes([("k" * 9, b"")])[:24] + struct.pack("<Q", HUGE) + ROW, "beyond the end"),
    "string length": (gguf_bytes([("k", struct.pack("<IQ", w.STRING, HUGE))]), "'k' reaches beyond the end"),
    "string by one": (gguf_bytes([("k", struct.pack("<IQ", w.STRING, 33))], (), ROW, alignment=1), "beyond the end"),
    "array length": (gguf_bytes([("k", array(w.U64, [], HUGE))]), "claims 9223372036854775808 values"),
    "array by one": (gguf_bytes([("k", array(w.U64, [1, 2], 3))], alignment=1), "claims 3 values"),
    "string array length": (gguf_bytes([("k", array(w.STRING, [], HUGE))]), "claims 9223372036854775808 strings"),
    "string in array": (gguf_bytes([("k", array(w.STRING, ["a"]) + ROW)])[:-41] + b"\xff" * 41, "beyond the end"),
    "strings run out": (gguf_bytes([("k", array(w.STRING, ["x" * 20], 2))], alignment=1), "'k' reaches beyond the end"),
    "array of arrays": (gguf_bytes([("k", array(w.ARRAY, [], 1) + array(w.U8, [1]))]), "holds arrays"),
    "array of what": (gguf_bytes([("k", struct.pack("<IIQ", w.ARRAY, 13, 1) + ROW)]), "unknown type 13"),
    "value of what": (gguf_bytes([("k", struct.pack("<I", 13) + ROW)]), "unknown type 13"),
    "a bool of 2": (gguf_bytes([("k", number(w.BOOL, 2))]), "bool of value 2"),
    "bools of 2": (gguf_bytes([("k", array(w.BOOL, [0, 1, 2]))]), "neither 0 nor 1"),
    "key not UTF-8": (gguf_bytes([(b"\xff", number(w.U8, 1))]), "not valid UTF-8"),
    "string not UTF-8": (gguf_bytes([("k", string(b"\xc3("))]), "'k' is not valid UTF-8"),
    "token not UTF-8": (gguf_bytes([("k", array(w.STRING, ["aa"]).replace(b"aa", b"\xc3("))]), "'k' is not valid"),
    "key twice": (gguf_bytes([("k", number(w.U8, 1))] * 2), "'k' occurs twice"),
    "alignment 0": (gguf_bytes([("general.alignment", number(w.U32, 0))]), "power of two"),
    "alignment 48": (gguf_bytes([("general.alignment", number(w.U32, 48))]), "power of two"),
    "alignment huge": (gguf_bytes([("general.alignment", number(w.U64, HUGE))]), "power of two"),
    "alignment a text": (gguf_bytes([("general.alignment", string("32"))]), "power of two"),
    "no dimensions": (gguf_bytes((), [Tensor("t", ())], ROW), "0 dimensions"),
    "five dimensions": (gguf_bytes((), [Tensor("t", (1,) * 5)], ROW), "5 dimensions"),
    "2^32 dimensions": (gguf_bytes((), [Tensor("t", (8,))], ROW).replace(b"t\1", b"t\xff"), "dimensions"),
    "dimension 0": (gguf_bytes((), [Tensor("t", (8, 0))], ROW), "dimension of 0"),
    "dimension huge": (gguf_bytes((), [Tensor("t", (HUGE,))], ROW), "'t' reaches beyond the end"),
    "product overflows": (gguf_bytes((), [Tensor("t", (2**32, 2**32))], ROW), "beyond the end"),
    "half a block": (gguf_bytes((), [Tensor("t", (16,), 8)], ROW), "not whole Q8_0 blocks"),
    "larger by one": (gguf_bytes((), [Tensor("t", (9,))], ROW), "beyond the end"),
    "offset huge": (gguf_bytes((), [Tensor("t", (8,), offset=2**64 - 32)], ROW), "beyond the end"),
    "offset unaligned": (gguf_bytes((), [Tensor("t", (4,), offset=8)], ROW), "not aligned"),
    "tensor twice": (gguf_bytes((), [Tensor("t", (8,)), Tensor("t", (8,), offset=32)], ROW * 2), "'t' occurs twice"),
    "overlap": (gguf_bytes((), [Tensor("a", (9,)), Tensor("b", (8,), offset=32)], ROW * 2), "'a' and 'b' overlap"),
    "same place": (gguf_bytes((), [Tensor("a", (8,)), Tensor("b", (8,))], ROW), "overlap"),
    "tensor name length": (gguf_bytes((), [Tensor("t" * 40, (8,))]).replace(b"\x28\0", b"\xff\xff"), "beyond the end"),
    "newline in a name": (gguf_bytes((), [Tensor("a\nb\x1b[31m", (9,))], ROW), r"'a\\nb\\x1b\[31m' reaches"),
}


@pytest.mark.parametrize(("content", "match"), LYING.values(), ids=LYING)
def test_a_lie_ends_in_one_line(path: Path, content: bytes, match: str) -> None:
    with pytest.raises(MalformedModel, match=match) as caught:
        GGUFFile.open(write_gguf(path, content))
    assert "\n" not in str(caught.value)
    assert "model.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (gguf_bytes(version=1), "version 1 is not supported"),
        (gguf_bytes(version=4), "version 4 is not supported"),
        (gguf_bytes(version=3 << 24), "big-endian"),
        (gguf_bytes((), [Tensor("blk.0.x", (256,), 10)], ROW), r"tensor 'blk\.0\.x' is of type Q2_K"),
        (gguf_bytes((), [Tensor("blk.0.x", (256,), 999)], ROW), "of type number 999"),
    ],
    ids=["version 1", "version 4", "big endian", "Q2_K", "type 999"],
)
def test_what_is_not_supported(path: Path, content: bytes, match: str) -> None:
    with pytest.raises(UnsupportedModel, match=match):
        GGUFFile.open(write_gguf(path, content))


def test_text_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.weights.gguf.MAX_TEXT_BYTES", 100)
    fits = gguf_bytes([("k", array(w.STRING, ["x" * 49] * 2)), ("", string(""))])
    GGUFFile.open(write_gguf(path, fits))
    half = array(w.STRING, ["x" * 25] * 2)
    for keys in ([("k", array(w.STRING, ["x" * 50] * 2))], [("k", string("x" * 100))], [("a", half), ("b", half)]):
        with pytest.raises(MalformedModel, match="MB of text"):
            GGUFFile.open(write_gguf(path, gguf_bytes(keys)))


def test_strings_are_bounded_over_all_arrays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.weights.gguf.MAX_STRINGS", 3)
    pair = array(w.STRING, ["a", "b"])
    GGUFFile.open(write_gguf(path, gguf_bytes([("a", pair), ("b", array(w.STRING, ["c"]))])))
    with pytest.raises(MalformedModel, match="claims 2 strings in metadata key 'b'; at most 1"):
        GGUFFile.open(write_gguf(path, gguf_bytes([("a", pair), ("b", pair)])))


@pytest.mark.parametrize(
    "content",
    [
        gguf_bytes(num_keys=HUGE, num_tensors=HUGE),
        gguf_bytes([("k", struct.pack("<IQ", w.STRING, HUGE))]),
        gguf_bytes([("k", array(w.STRING, [], 2**40))]),
        gguf_bytes([("k", array(w.F64, [], 2**40))]),
        gguf_bytes((), [Tensor("t", (2**40, 2**20))], ROW),
        gguf_bytes([("k", array(w.STRING, [""] * (1 << 21)))]),
    ],
    ids=["counts", "string", "strings", "numbers", "tensor", "two million strings"],
)
def test_a_lie_takes_no_memory(path: Path, content: bytes) -> None:
    write_gguf(path, content)
    assert peak_of_failing_open("engine.weights.gguf", "GGUFFile.open", path) < 100 << 20


SOUND = gguf_bytes(
    [
        ("general.architecture", string("llama")),
        ("general.alignment", number(w.U32, 32)),
        ("tokens", array(w.STRING, ["<s>", "</s>", "模型"])),
        ("types", array(w.I32, [1, 2, 3])),
        ("flags", array(w.BOOL, [0, 1])),
        ("eps", number(w.F32, 1e-5)),
    ],
    [Tensor("a", (32, 2), 8), Tensor("b", (4,), 0, 96), Tensor("c", (2, 2, 2), 1, 128)],
    bytes(range(144)),
)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, len(SOUND) - 1),
            st.sampled_from([b"\0", b"\1", b"\xff", b"\x80", b"\xff" * 4, b"\xff" * 8, struct.pack("<Q", HUGE)])
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
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    write_gguf(path, bytes(content[:length]))
    try:
        file = GGUFFile.open(path)
    except (MalformedModel, UnsupportedModel):
        return
    for name, info in file.tensors.items():
        raw = file.raw(name)
        assert raw.nbytes == info.nbytes
        assert dequantise(raw).shape == info.shape
