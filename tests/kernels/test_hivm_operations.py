"""The library calls that the executor of final HIVM models, against NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.kernels.hivm_modules import ELEMENTS, Core, run
from tests.support.ascend_links import link

pytestmark = link(4)

Array = npt.NDArray[Any]
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i8": np.int8, "i16": np.int16, "i32": np.int32}


def bfloats(numbers: Array) -> Array:
    """Bits of float32 numbers that are bfloat16."""
    return (np.asarray(numbers, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def unary(
    call: str, source: Array, element: str, result: str, *more: tuple[float, str], temp: str | None = None
) -> Array:
    """What a call makes of a vector in UB; `more` are scalars after the operands."""
    n, core = source.size, Core([element, result])
    a, b = core.buffer("ub", 0, str(n), element), core.buffer("ub", 16384, str(n), result)
    core.load(core.argument(0, str(n), "1"), a, element)
    core.sync("MTE2", "V")
    operands = [a, b]
    if temp:
        operands.append(core.buffer("ub", 32768, "64", temp))
    core.call(call, *operands, *(core.constant(value, kind) for value, kind in more))
    core.sync("V", "MTE3")
    core.store(b, core.argument(1, str(n), "1"), result)
    out = np.zeros(n, dtype=DTYPES[result])
    report = run([(element, 0), (result, 1)], [source, out], vector=core)
    assert report.errors == ()
    return out


def with_scalar(call: str, source: Array, element: str, scalar: float, *, first: bool = False) -> Array:
    n, core = source.size, Core([element, element])
    a, b = core.buffer("ub", 0, str(n), element), core.buffer("ub", 16384, str(n), element)
    core.load(core.argument(0, str(n), "1"), a, element)
    core.sync("MTE2", "V")
    value = core.constant(scalar, element)
    core.call(call, *((value, a) if first else (a, value)), b, core.buffer("ub", 0, "0", element))
    core.sync("V", "MTE3")
    core.store(b, core.argument(1, str(n), "1"), element)
    out = np.zeros(n, dtype=DTYPES[element])
    assert run([(element, 0), (element, 1)], [source, out], vector=core).errors == ()
    return out


def binary(call: str, left: Array, right: Array, element: str, shape: tuple[int, ...], temp: str = "0") -> Array:
    """Of operands whose axes of size 1 are broadcast."""
    core, rank = Core([element] * 3), len(shape)
    buffers = []
    for i, sizes in enumerate((left.shape, right.shape, shape)):
        strides = ", ".join(str(math.prod(sizes[d + 1 :])) for d in range(rank))
        view = core.argument(i, ", ".join(map(str, sizes)), strides)
        buffers.append((core.buffer("ub", i * 16384, "x".join(map(str, sizes)), element), view))
    for buffer, view in buffers[:2]:
        core.load(view, buffer, element, rank)
    core.sync("MTE2", "V")
    core.call(call, *(buffer for buffer, _ in buffers), core.buffer("ub", 49152, temp, element))
    core.sync("V", "MTE3")
    core.store(*buffers[2], element, rank)
    out = np.zeros(shape, dtype=DTYPES[element])
    assert run([(element, 0), (element, 0), (element, 1)], [left, right, out], vector=core).errors == ()
    return out


@pytest.mark.parametrize("element", ["f32", "f16", "i32", "i16"])
@pytest.mark.parametrize("call", ["vadd", "vsub", "vmul", "vmax", "vmin"])
def test_arithmetic(call: str, element: str):
    rng, dtype = np.random.default_rng(0), DTYPES[element]
    left, right = (np.asarray(rng.integers(-90, 90, (4, 16)), dtype) / dtype(1) for _ in range(2))
    left, right = left.astype(dtype), right.astype(dtype)
    functions = {"vadd": np.add, "vsub": np.subtract, "vmul": np.multiply, "vmax": np.maximum, "vmin": np.minimum}
    want = functions[call](left, right)
    np.testing.assert_array_equal(binary(f"{call}_2d_{ELEMENTS[element]}", left, right, element, (4, 16)), want)
    scalar = with_scalar(
        f"{call}{'' if call == 'vsub' else 's'}_vs_1d_{ELEMENTS[element]}", left.reshape(-1), element, 3
    )
    np.testing.assert_array_equal(scalar, functions[call](left.reshape(-1), dtype(3)))


def test_operands_are_broadcast_along_axes_of_size_one():
    rng = np.random.default_rng(1)
    a, row, column = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 16), (1, 16), (8, 8)))
    np.testing.assert_array_equal(binary("vmul_2d_float", a, row, "f32", (8, 16)), a * row)
    cube, one = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4, 8), (1, 4, 8)))
    np.testing.assert_array_equal(binary("vdiv_3d_float", cube, one, "f32", (3, 4, 8)), cube / one)
    core = Core(["f32", "f32"])
    wide, narrow = core.buffer("ub", 0, "8x16", "f32"), core.buffer("ub", 4096, "8x8", "f32")
    result = core.buffer("ub", 8192, "8x16", "f32")
    core.load(core.argument(0, "8, 8", "8, 1"), narrow, "f32", 2)
    core.call("broadcast_scalar_float_to_2d", core.constant(2.0, "f32"), wide)
    core.sync("MTE2", "V")
    core.barrier("V")
    kind = "memref<8x1xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>"
    first = core.new(f"memref.subview {narrow.name}[0, 0] [8, 1] [1, 1] : {narrow.type} to {kind}", kind)
    core.call("vmul_2d_float", wide, core.dynamic(first, 2, "f32", "ub"), result, core.buffer("ub", 0, "0", "f32"))
    core.sync("V", "MTE3")
    core.store(result, core.argument(1, "8, 16", "16, 1"), "f32", 2)
    out = np.zeros((8, 16), dtype=np.float32)
    assert run([("f32", 0), ("f32", 1)], [column, out], vector=core).errors == ()
    np.testing.assert_array_equal(out, np.broadcast_to(2 * column[:, :1], (8, 16)))


def test_functions():
    numbers = np.linspace(0.1, 6, 64, dtype=np.float32)
    functions = {"vexp": np.exp, "vln": np.log, "vsqrt": np.sqrt, "vrec": lambda x: 1 / x, "vabs": np.abs}
    for call, function in functions.items():
        np.testing.assert_allclose(
            unary(f"{call}_1d_float", numbers, "f32", "f32", temp="f32"), function(numbers), 2e-6
        )
        halves = numbers.astype(np.float16)
        got = unary(f"{call}_1d_half", halves, "f16", "f16", temp="f16")
        np.testing.assert_array_equal(got, function(halves.astype(np.float32)).astype(np.float16))
    np.testing.assert_array_equal(with_scalar("vdiv_sv_1d_float", numbers, "f32", 2.0, first=True), 2 / numbers)
    np.testing.assert_array_equal(with_scalar("vsub_sv_1d_float", numbers, "f32", 2.0, first=True), 2 - numbers)


MODES = {"R": 0, "A": 1, "F": 2, "C": 3, "Z": 4, "O": 5}
TIES = np.array(
    [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.2, 0.8, -0.2, -0.8, 3.0, -3.0, 0.0, 7.25, -7.25, 100.75], np.float32
)


def test_every_rounding_mode_of_casts_to_integers():
    want = {
        "R": np.rint(TIES), "A": np.trunc(TIES + np.copysign(0.5, TIES)), "F": np.floor(TIES), "C": np.ceil(TIES),
        "Z": np.trunc(TIES), "O": np.where(np.floor(TIES) % 2 != 0, np.floor(TIES), np.ceil(TIES)),
    }  # fmt: skip
    for mode, number in MODES.items():
        want_here = np.where(TIES % 1, want[mode], TIES)
        got = unary("vcast_float_to_int32_t_1d_with_mode", TIES, "f32", "i32", (number, "i32"))
        np.testing.assert_array_equal(got, want_here)
        got = unary("vcast_float_to_float_1d_with_mode", TIES, "f32", "f32", (number, "i32"))
        np.testing.assert_array_equal(got, want_here)
        got = unary("vcast_half_to_int8_t_1d_with_mode", TIES.astype(np.float16), "f16", "i8", (number, "i32"))
        np.testing.assert_array_equal(got, want_here)


def test_every_rounding_mode_of_casts_to_half():
    below = np.array([1.0, 1.0 + 2**-10, -1.0, 2**-24, 0.0, 3 * 2**-24, -(2**-20), 1024.0], dtype=np.float16)
    numbers = below.astype(np.float32)
    above = np.nextafter(below, np.where(np.signbit(below), -np.inf, np.inf).astype(np.float16))
    middle = (numbers + above.astype(np.float32)) / 2
    even = np.where(below.view(np.uint16) % 2 == 0, below, above)
    odd = np.where(below.view(np.uint16) % 2 == 1, below, above)
    larger, smaller = np.maximum(below, above), np.minimum(below, above)
    want = {"R": even, "A": above, "F": smaller, "C": larger, "Z": below, "O": odd}
    for mode, number in MODES.items():
        got = unary("vcast_float_to_half_1d_with_mode", middle, "f32", "f16", (number, "i32"))
        np.testing.assert_array_equal(got, want[mode], err_msg=mode)
        exact = unary("vcast_float_to_half_1d_with_mode", numbers, "f32", "f16", (number, "i32"))
        np.testing.assert_array_equal(exact, below)


def test_casts_to_the_nearest():
    rng = np.random.default_rng(2)
    numbers = (rng.standard_normal(4096) * 10.0 ** rng.integers(-9, 4, 4096)).astype(np.float32)
    got = unary("vcast_float_to_half_1d_with_mode", numbers, "f32", "f16", (0, "i32"))
    np.testing.assert_array_equal(got, np.clip(numbers, -65504, 65504).astype(np.float16))
    bits = numbers.view(np.uint32)
    got = unary("vcast_float_to_bfloat16_t_1d_with_mode", numbers, "f32", "bf16", (0, "i32"))
    np.testing.assert_array_equal(got, ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))
    got = unary("vcast_bfloat16_t_to_float_1d_with_mode", bfloats(numbers), "bf16", "f32", (0, "i32"))
    np.testing.assert_array_equal(got, (bfloats(numbers).astype(np.uint32) << 16).view(np.float32))
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[:: 1 << 4]
    finite = every[np.isfinite(every)]
    got = unary("vcast_half_to_float_1d_with_mode", finite, "f16", "f32", (0, "i32"))
    np.testing.assert_array_equal(got, finite.astype(np.float32))


def test_what_is_too_large_becomes_the_largest():
    large = np.array([1e30, -1e30, 65504, 65520, np.inf, -np.inf, np.nan, 70000], dtype=np.float32)
    got = unary("vcast_float_to_half_1d_with_mode", large, "f32", "f16", (0, "i32"))
    np.testing.assert_array_equal(
        got, np.array([65504, -65504, 65504, 65504, np.inf, -np.inf, np.nan, 65504], np.float16)
    )
    got = unary("vcast_float_to_int16_t_1d_with_mode", large, "f32", "i16", (0, "i32"))
    np.testing.assert_array_equal(got, [32767, -32768, 32767, 32767, 32767, -32768, 0, 32767])
    wide = np.array([300, -300, 127, 128, -129, 65535, 1, 0], dtype=np.int32)
    got = unary("vcast_int32_t_to_int8_t_1d_with_overflow", wide, "i32", "i8", (0, "i32"), temp="i32")
    np.testing.assert_array_equal(got, wide.astype(np.int8))


def test_comparisons_select_by_bits():
    rng = np.random.default_rng(3)
    left, right = (rng.integers(-3, 3, 72).astype(np.float32) for _ in range(2))
    for word, holds in {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
                        "ge": np.greater_equal}.items():  # fmt: skip
        core = Core(["f32"] * 3)
        a, b, d = (core.buffer("ub", at, "72", "f32") for at in (0, 1024, 2048))
        bits, none = core.buffer("ub", 4096, "72", "i1"), core.buffer("ub", 0, "0", "i1")
        core.load(core.argument(0, "72", "1"), a, "f32")
        core.load(core.argument(1, "72", "1"), b, "f32")
        core.sync("MTE2", "V")
        core.call(f"vcmp_{word}_1d_float", a, b, bits)
        core.barrier("V")
        core.call("vnot_1d_bool", bits, bits, none)
        core.barrier("V")
        temp = core.buffer("ub", 5120, "16", "f32")
        core.call("vsel_vs_1d_float", bits, a, core.constant(9.0, "f32"), d, temp)
        core.sync("V", "MTE3")
        core.store(d, core.argument(2, "72", "1"), "f32")
        out = np.zeros(72, dtype=np.float32)
        assert run([("f32", 0), ("f32", 0), ("f32", 1)], [left, right, out], vector=core).errors == ()
        np.testing.assert_array_equal(out, np.where(holds(left, right), 9, left), err_msg=word)


@pytest.mark.parametrize(("call", "function"), [("sum", np.sum), ("max", np.max), ("min", np.min)])
def test_reductions(call: str, function: Any):
    numbers = np.random.default_rng(4).integers(-50, 50, (8, 16)).astype(np.float32)
    start = {"sum": 0.0, "max": -1e30, "min": 1e30}[call]
    for kind, axis, shape in (("enablevc_reduce_{}_ar", 1, (8, 1)), ("reduce_{}_ra", 0, (1, 16))):
        core = Core(["f32", "f32"])
        a = core.buffer("ub", 0, "8x16", "f32")
        d = core.buffer("ub", 4096, f"{shape[0]}x{shape[1]}", "f32")
        core.load(core.argument(0, "8, 16", "16, 1"), a, "f32", 2)
        core.sync("MTE2", "V")
        core.call(f"{kind.format(call)}_float", a, d, core.buffer("ub", 8192, "64", "f32"), core.constant(start, "f32"))
        core.sync("V", "MTE3")
        flat = core.buffer("ub", 4096, str(max(shape)), "f32")
        core.store(flat, core.argument(1, str(max(shape)), "1"), "f32")
        out = np.zeros(max(shape), dtype=np.float32)
        assert run([("f32", 0), ("f32", 1)], [numbers, out], vector=core).errors == ()
        np.testing.assert_array_equal(out, function(numbers, axis=axis))


def test_loads_fill_their_last_block():
    core = Core(["f32", "f32"])
    a = core.buffer("ub", 0, "2x5", "f32")
    kind = "memref<2x5xf32, strided<[8, 1]>, #hivm.address_space<ub>>"
    at = core.constant(0, "i64")
    rows = core.new(f"hivm.hir.pointer_cast({at.name}) : memref<2x8xf32, #hivm.address_space<ub>>", "")
    a = core.new(
        f"memref.subview {rows.name}[0, 0] [2, 5] [1, 1] : memref<2x8xf32, #hivm.address_space<ub>> to {kind}", kind
    )
    core.load(core.argument(0, "2, 5", "5, 1"), core.dynamic(a, 2, "f32", "ub"), "f32", 2, pad=(2, -1))
    core.sync("MTE2", "MTE3")
    core.store(core.buffer("ub", 0, "16", "f32"), core.argument(1, "16", "1"), "f32")
    numbers, out = np.arange(10, dtype=np.float32), np.zeros(16, dtype=np.float32)
    assert run([("f32", 0), ("f32", 1)], [numbers, out], vector=core).errors == ()
    np.testing.assert_array_equal(
        out.reshape(2, 8), np.pad(numbers.reshape(2, 5), ((0, 0), (0, 3)), constant_values=-1)
    )


def product(element: str, a: Array, b: Array, *, turned: tuple[bool, bool] = (False, False), result: str = "f32",
            quantise: int = 0, twice: bool = False) -> tuple[Array, int]:  # fmt: skip
    """a b, once or twice over in L0C, and the multiplications counted."""
    m, k, n = (*a.shape, b.shape[1])
    inputs = [np.ascontiguousarray(x.T if turn else x) for x, turn in zip((a, b), turned, strict=True)]
    core, c0 = Core([element, element, result]), {"f32": 8, "f16": 16, "bf16": 16, "i8": 32}[element]
    tiles = []
    for i, matrix in enumerate(inputs):
        rows, columns = matrix.shape
        shape = f"{-(-columns // c0)}x{-(-rows // 16)}x16x{c0}"
        tile = core.buffer("cbuf", i << 17, shape, element)
        core.call(f"nd2nz_{ELEMENTS[element]}", core.argument(i, f"{rows}, {columns}", f"{columns}, 1"), tile)
        tiles.append(tile)
    core.sync("MTE2", "MTE1")
    sum_type = "i32" if element == "i8" else "f32"
    c = core.buffer("cc", 0, f"{-(-n // 16)}x{-(-m // 16)}x16x16", sum_type)
    suffix = "".join(word for word, turn in zip(("_ta", "_tb"), turned, strict=True) if turn)
    for first in (True, False)[: 1 + twice]:
        name = f"mma_tile_{ELEMENTS[element]}_to_{ELEMENTS[sum_type]}{suffix}"
        core.matmul(name, (tiles[0], tiles[1], c), (m, k, n), first=first)
    core.sync("M", "FIX")
    numbers = [core.constant(quantise, "i64"), core.constant(0, "i64")]
    off, unit = core.new("arith.constant false", "i1"), core.constant(0, "i8")
    target = core.argument(2, f"{m}, {n}", f"{n}, 1")
    core.call(f"fixpipe_nz2nd_{ELEMENTS[sum_type]}_to_{ELEMENTS[result]}_4d_to_2d", c, target, *numbers, off, unit)
    out = np.zeros((m, n), dtype=DTYPES[result])
    report = run([(element, 0), (element, 0), (result, 1)], [*inputs, out], cube=core)
    assert report.errors == ()
    return out, report.counters.macs


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("element", ["f32", "f16", "bf16", "i8"])
def test_products_of_every_type_and_turn(element: str, turned: tuple[bool, bool]):
    rng = np.random.default_rng(5)
    a, b = rng.integers(-8, 8, (7, 40)), rng.integers(-8, 8, (40, 33))
    given = [bfloats(x) if element == "bf16" else x.astype(DTYPES[element]) for x in (a, b)]
    result = "i32" if element == "i8" else "f32"
    got, macs = product(element, given[0], given[1], turned=turned, result=result)
    np.testing.assert_array_equal(got, a @ b)
    assert macs == 7 * 40 * 33
    got, macs = product(element, given[0], given[1], turned=turned, result=result, twice=True)
    np.testing.assert_array_equal(got, 2 * (a @ b))
    assert macs == 2 * 7 * 40 * 33


def test_products_are_summed_in_float32_in_the_order_of_k():
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((16, 64)).astype(np.float16), rng.standard_normal((64, 16)).astype(np.float16)
    want = np.zeros((16, 16), dtype=np.float32)
    for k in range(64):
        want += a[:, k : k + 1].astype(np.float32) * b[k : k + 1].astype(np.float32)
    np.testing.assert_array_equal(product("f16", a, b)[0], want)


def test_what_leaves_as_half_is_rounded_to_even_and_cut_to_the_largest():
    a = np.eye(16, dtype=np.float16)
    b = np.zeros((16, 16), dtype=np.float16)
    b[0, :4] = [2049 / 2, 2051 / 2, 60000, -60000]
    a[0, 0] = 2
    got = product("f16", a, b, result="f16", quantise=1)[0]
    assert b[0, 0] == 1024.0
    np.testing.assert_array_equal(got[0, 2:4], [65504, -65504])
    a[0, :2] = [1, 1]
    b[:2, :2] = [[2048, 2050], [1, 1]]
    np.testing.assert_array_equal(product("f16", a, b, result="f16", quantise=1)[0][0, :2], [2048, 2052])


def test_rows_beyond_the_product_mean_nothing():
    core = Core(["f16", "f32"])
    a, b = (core.buffer("cbuf", at, "1x1x16x16", "f16") for at in (0, 4096))
    for tile in (a, b):
        core.call("nd2nz_half", core.argument(0, "16, 16", "16, 1"), tile)
    core.sync("MTE2", "MTE1")
    c = core.buffer("cc", 0, "1x1x16x16", "f32")
    core.matmul("mma_tile_half_to_float", (a, b, c), (3, 16, 16))
    core.sync("M", "FIX")
    zero, off, unit = core.constant(0, "i64"), core.new("arith.constant false", "i1"), core.constant(0, "i8")
    core.call("fixpipe_nz2nd_float_to_float_4d_to_2d", c, core.argument(1, "16, 16", "16, 1"), zero, zero, off, unit)
    out = np.zeros((16, 16), dtype=np.float32)
    assert run([("f16", 0), ("f32", 1)], [np.ones((16, 16), np.float16), out], cube=core).errors == ()
    assert (out[:3] == 16).all()
    assert np.isnan(out[3:]).all()


def test_a_quantisation_that_is_not_modelled_is_an_error():
    core = Core(["f16", "f32"])
    c = core.buffer("cc", 0, "1x1x16x16", "f32")
    quantise, zero = core.constant(3, "i64"), core.constant(0, "i64")
    off, unit = core.new("arith.constant false", "i1"), core.constant(0, "i8")
    core.call(
        "fixpipe_nz2nd_float_to_float_4d_to_2d", c, core.argument(1, "16, 16", "16, 1"), quantise, zero, off, unit
    )
    values = [np.ones(1, np.float16), np.zeros((16, 16), np.float32)]
    (error,) = run([("f16", 0), ("f32", 1)], values, cube=core).errors
    assert "quantisation 3 is not modelled" in error
