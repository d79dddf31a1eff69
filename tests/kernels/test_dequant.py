"""Unpacking of weight formats, judged by the ``gguf`` package."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from kernels.formats import RawTensor, WeightFormat
from kernels.reference import dequant
from kernels.reference.dequant import dequantise

SPECIAL_HALVES = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00], dtype="<u2")
"""Zeros, subnormals, largest values, infinities and a NaN, as float16."""

GGUF_FORMATS = [fmt for fmt in WeightFormat if fmt is not WeightFormat.W8A8]

HALF_OFFSETS = {
    WeightFormat.Q8_0: (0,),
    WeightFormat.Q4_0: (0,),
    WeightFormat.Q4_1: (0, 2),
    WeightFormat.Q4_K: (0, 2),
    WeightFormat.Q6_K: (208,),
}


def random_tensor(fmt: WeightFormat, shape: tuple[int, ...], seed: int = 0, *, special: bool = False) -> RawTensor:
    """Random bytes in the quantised part, random finite scales (or every special one in turn)."""
    rng = np.random.default_rng(seed)
    rows = int(np.prod(shape[:-1]))
    blocks = rng.integers(0, 256, (rows * shape[-1] // fmt.block_elements, fmt.block_bytes), dtype=np.uint8)
    for offset in HALF_OFFSETS.get(fmt, ()):
        halves = rng.normal(size=len(blocks)).astype("<f2").view("<u2")
        if special:
            halves[:: 1 + offset] = np.resize(SPECIAL_HALVES, len(halves[:: 1 + offset]))
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    return RawTensor(shape, fmt, blocks.reshape(*shape[:-1], fmt.row_bytes(shape[-1])))


def judge(raw: RawTensor) -> np.ndarray:
    """The same tensor unpacked by the ``gguf`` package."""
    kind = GGMLQuantizationType[raw.format.name]
    native = {"F32": np.float32, "F16": np.float16}.get(raw.format.name, np.uint8)
    data = raw.data.view(native)
    with np.errstate(all="ignore"):
        return dequantize(np.ascontiguousarray(data), kind).reshape(raw.shape)


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype == np.float32
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("fmt", GGUF_FORMATS, ids=lambda f: f.label)
@pytest.mark.parametrize("special", [False, True], ids=["finite", "special"])
def test_equal_to_the_bit(fmt: WeightFormat, special: bool) -> None:
    raw = random_tensor(fmt, (37, 512), special=special)
    assert_same_bits(dequantise(raw), judge(raw))


@pytest.mark.parametrize("fmt", GGUF_FORMATS, ids=lambda f: f.label)
def test_slabs_do_not_show(fmt: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_tensor(fmt, (3, 5, 768), seed=1)
    whole = dequantise(raw)
    monkeypatch.setattr(dequant, "SLAB_ELEMENTS", 512)
    assert_same_bits(dequantise(raw), whole)
    assert_same_bits(whole, judge(raw))


@pytest.mark.parametrize("fmt", GGUF_FORMATS, ids=lambda f: f.label)
def test_picked_rows(fmt: WeightFormat) -> None:
    raw = random_tensor(fmt, (16, 256), seed=2)
    index = np.array([5, 0, 0, 15])
    assert_same_bits(dequantise(raw.rows(index)), dequantise(raw)[index])


def test_vector_and_empty() -> None:
    vector = random_tensor(WeightFormat.F32, (7,), seed=3)
    assert_same_bits(dequantise(vector), vector.data.view(np.float32))
    assert dequantise(RawTensor((0, 32), WeightFormat.Q8_0, np.empty((0, 34), np.uint8))).shape == (0, 32)


def test_result_is_its_own_memory() -> None:
    raw = random_tensor(WeightFormat.F32, (4, 8))
    raw.data.flags.writeable = False
    out = dequantise(raw)
    out += 1
    assert not np.shares_memory(out, raw.data)


def test_data_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="not a tensor of shape"):
        dequantise(RawTensor((2, 32), WeightFormat.Q8_0, np.zeros((1, 34), np.uint8)))
