"""Translation of final HIVM: what is found in a module, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.hivm_modules import Core, module, run
from tests.support.ascend_links import link
from tools.ascend.hivm.module import Argument, PointerCast, UnknownConstruct, memory_peaks
from tools.ascend.hivm.translate import translate
from tools.ascend.hivm.types import MemoryType, OperandError, parse_type, split_types

pytestmark = link(4)

ONE = [("f32", 1)]


def text_with(line: str) -> str:
    core = Core(["f32"])
    core.lines.append(line)
    return module(ONE, vector=core)


def test_buffers_calls_and_arguments_are_found():
    core = Core(["f32"])
    rows = core.buffer("ub", 4096, "8x4", "f32")
    kind = "memref<8x3xf32, strided<[4, 1]>, #hivm.address_space<ub>>"
    cast = core.lines[1].split(" = ")[0].strip()
    core.new(f"memref.subview {cast}[0, 0] [8, 3] [1, 1] : memref<8x4xf32, #hivm.address_space<ub>> to {kind}", kind)
    core.call("broadcast_scalar_float_to_2d", core.constant(0.0, "f32"), rows)
    core.buffer("ub", 64, "16", "i1")
    found = translate(module(ONE, vector=core))
    assert found.casts == (PointerCast(5, "tiny", "ub", 4096, 128), PointerCast(11, "tiny", "ub", 64, 2))
    assert memory_peaks(found) == {"UB": 4096 + 128, "L1": 0, "L0C": 0}
    assert found.calls == {"broadcast_scalar_float_to_2d": 1}
    assert (found.kernel, found.has_cube, found.workspace_bytes) == ("tiny", False, 0)
    roles = [argument.role for argument in found.arguments]
    assert roles == ["ffts", "lock", "workspace", "buffer", "grid", "grid", "grid"]
    assert found.arguments[3] == Argument(3, "buffer", "f32", 1)


def test_vector_operands_that_are_known_to_be_unaligned_are_found():
    core = Core(["f32"])
    at = core.constant(0, "i64")
    kind = "memref<8x1xf32, #hivm.address_space<ub>>"
    core.call("vexp_2d_float", core.new(f"hivm.hir.pointer_cast({at.name}) : {kind}", kind))
    (operand,) = translate(module(ONE, vector=core)).unaligned
    assert (operand.call, operand.type, operand.line) == ("vexp_2d_float", kind, 6)


@pytest.mark.parametrize(
    "line",
    [
        "    hivm.hir.load_scalar %arg0",
        "    hivm.hir.sync_block_wait[<VECTOR>, <PIPE_FIX>, <PIPE_NONE>] flag = 1",
        "    hivm.hir.set_flag[<PIPE_NONE>, <PIPE_V>, <EVENT_ID0>]",
        "    %1 = hivm.hir.pointer_cast(%0) : memref<8xf32, #hivm.address_space<gm>>",
        "    %1 = hivm.hir.pointer_cast(%0, %0) : memref<8xf32, #hivm.address_space<ub>>",
        "    %1 = tensor.empty() : tensor<8xf32>",
        "    %1 = memref.load %0[%2] : memref<?xui32>",
        "    %1 = memref.cast %0 : memref<8xf32> to memref<?xf32, #hivm.unheard_of>",
    ],
)
def test_what_is_not_known_is_refused_with_its_line(line: str):
    with pytest.raises(UnknownConstruct, match="line 3: ") as caught:
        translate(text_with(line))
    assert line.strip() in str(caught.value)


def test_a_module_is_one_kernel():
    text = module(ONE, vector=Core(["f32"]))
    function = text[text.index("  func.func") : text.rindex("}")]
    with pytest.raises(UnknownConstruct, match="not one kernel"):
        translate(text.replace(function, function + function.replace("@tiny", "@other")))


def test_the_workspace_is_read():
    kind = "#hacc.function_kind<HOST>"
    head = f"  func.func @tiny_infer_workspace_shape_function() -> index attributes {{hacc.function_kind = {kind}}} {{"
    host = f"""{head}
    %c4096 = arith.constant 4096 : index
    return %c4096 : index
  }}
"""
    text = module(ONE, vector=Core(["f32"]))
    at = text.index("  func.func")
    assert translate(text[:at] + host + text[at:]).workspace_bytes == 4096


def test_the_scalar_unit_reads_and_writes_within_arguments():
    def copied(offset: int) -> tuple[np.ndarray, tuple[str, ...]]:
        core = Core(["f16", "f16"])
        source, target = core.argument(0, "4", "1"), core.argument(1, "4", "1")
        at = core.constant(offset, "index")
        value = core.new(f"memref.load {source.name}[{at.name}] : {source.type}", "f16")
        core.lines.append(f"    memref.store {value.name}, {target.name}[{at.name}] : {target.type}")
        result = np.zeros(4, dtype=np.float16)
        report = run([("f16", 0), ("f16", 1)], [np.arange(4, dtype=np.float16) - 0.5, result], vector=core)
        return result, report.errors

    result, errors = copied(3)
    assert errors == ()
    assert result[3] == 2.5
    errors = copied(4)[1]
    assert "memref.load reads argument 3 at 8 to 10, which ends at 8" in errors[0]
    assert "memref.store writes argument 4 at 8 to 10, which ends at 8" in errors[1]


def test_memory_types():
    text = "memref<4x?xbf16, strided<[?, 1], offset: 8>, #hivm.address_space<ub>>"
    assert parse_type(text) == MemoryType(text, (4, None), "bf16", (None, 1), 8, "ub")
    assert parse_type("memref<2x3x4xi8>").strides == (12, 4, 1)
    assert parse_type("memref<9xi1>").num_bytes == 2
    assert not parse_type("memref<4xf32, strided<[1], offset: 4>>").aligned
    assert parse_type("memref<1x4xf32>").aligned
    for wrong in ("f32", "memref<4xf8>", "memref<4xf32, affine_map<(d0) -> (d0)>>"):
        with pytest.raises(OperandError):
            parse_type(wrong)


def test_types_are_split_outside_brackets():
    assert split_types("memref<?x?xf32, strided<[?, 1], offset: ?>>, i64") == [
        "memref<?x?xf32, strided<[?, 1], offset: ?>>", "i64",
    ]  # fmt: skip
    assert split_types("") == []
