"""What the executor of final HIVM reports, on modules that have one defect each, and that it reports nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.hivm_modules import Core, Operand, module, program, run
from tests.support.ascend_links import link
from tools.ascend.hivm.build import UnknownCall, check_calls
from tools.ascend.hivm.execute import Report, Traffic, Vector
from tools.ascend.hivm.translate import translate

pytestmark = link(4)

IN_OUT = [("f32", 0), ("f32", 1)]
COPY = "copy_ubuf_to_ubuf_1d_float"


def doubled(*, leave: str = "", size: int = 64, target: int = 1024, turns: int = 1) -> Core:
    """Load, add to itself, store; without the one synchronisation that is named."""
    core = Core(["f32", "f32"])
    source, result = core.argument(0, str(size), "1"), core.argument(1, str(size), "1")
    a = core.buffer("ub", 0, str(size), "f32")
    b, c = core.buffer("ub", target, str(size), "f32"), core.buffer("ub", 8192, str(size), "f32")
    temp = core.buffer("ub", 0, "0", "f32")
    for _ in range(turns):
        core.load(source, a, "f32")
        if leave != "MTE2 -> V":
            core.sync("MTE2", "V")
        core.call("vadd_1d_float", a, a, b, temp)
        if leave != "barrier":
            core.barrier("V")
        core.call("vadd_1d_float", b, a, c, temp)
        if leave != "V -> MTE3":
            core.sync("V", "MTE3")
        core.store(c, result, "f32")
        core.sync("V", "MTE2")
        if turns > 1 and leave != "MTE3 -> V":
            core.sync("MTE3", "V")
        if turns > 1:
            core.barrier("V")
            core.barrier("MTE3")
    return core


def launch(core: Core, *, source: int = 64, result: int = 64, num_cores: int = 1) -> Report:
    values = [np.arange(source, dtype=np.float32), np.zeros(result, dtype=np.float32)]
    return run(IN_OUT, values, vector=core, num_cores=num_cores)


def part_of(core: Core, whole: Operand, first: int, size: int) -> Operand:
    """A part of a vector in UB."""
    kind = f"memref<{size}xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>"
    part = core.new(f"memref.subview {whole.name}[{first}] [{size}] [1] : {whole.type} to {kind}", kind)
    return core.dynamic(part, 1, "f32", "ub")


def only(report: Report, *words: str) -> None:
    """One error or more, all about the same."""
    assert report.errors
    for error in report.errors:
        assert all(word in error for word in words), error


def test_a_sound_kernel_has_no_error_and_its_work_is_counted():
    core, values = doubled(), [np.arange(64, dtype=np.float32), np.zeros(64, dtype=np.float32)]
    report = run(IN_OUT, values, vector=core)
    assert report.errors == ()
    np.testing.assert_array_equal(values[1], 3 * np.arange(64))
    assert report.counters.traffic == {0: Traffic(256, 0), 1: Traffic(0, 256)}
    assert report.counters.vector == {"float": Vector(2, 128)}
    assert (report.counters.unaligned_operands, report.counters.vector_operands) == (0, 6)
    assert report.peaks == {"UB": 8192 + 256, "L1": 0, "L0C": 0}


@pytest.mark.parametrize("leave", ["MTE2 -> V", "barrier", "V -> MTE3"])
def test_a_missing_flag_or_barrier_is_a_race(leave: str):
    assert "race" in launch(doubled(leave=leave)).errors[0]


def test_overwriting_what_is_still_being_stored_is_a_race():
    assert launch(doubled(turns=2)).errors == ()
    only(launch(doubled(turns=2, leave="MTE3 -> V")), "race", "vadd_1d_float writes UB", "MTE3 reads")


def test_groups_that_write_the_same_place_race():
    only(launch(doubled(), num_cores=2), "race", "argument 4", "group 0 writes")


def test_bytes_of_one_block_that_two_groups_write_do_not_race():
    core = Core(["f32"])
    value = core.buffer("ub", 0, "8", "f32")
    core.call("broadcast_scalar_float_to_1d", core.constant(1.0, "f32"), value)
    core.sync("V", "MTE3")
    index = core.new("hivm.hir.get_block_idx -> i64", "i64")
    place = core.new(f"arith.index_cast {index.name} : i64 to index", "index")
    gm = "#hivm.address_space<gm>"
    kind = f"memref<1xf32, strided<[1], offset: ?>, {gm}>"
    view = core.new(
        f"memref.reinterpret_cast %arg3 to offset: [{place.name}], sizes: [1], strides: [1]"
        f" : memref<?xf32, {gm}> to {kind}",
        kind,
    )
    core.store(part_of(core, value, 0, 1), core.dynamic(view, 1, "f32", "gm"), "f32")
    values = [np.zeros(4, dtype=np.float32)]
    assert run([("f32", 1)], values, vector=core, num_cores=4).errors == ()
    np.testing.assert_array_equal(values[0], np.ones(4))


def test_memory_that_nobody_wrote_is_not_read():
    core = Core(["f32"])
    core.call(
        "vexp_1d_float", *(core.buffer("ub", at, "64", "f32") for at in (0, 256)), core.buffer("ub", 0, "0", "f32")
    )
    only(run([("f32", 1)], [np.zeros(1, dtype=np.float32)], vector=core), "vexp_1d_float reads UB at 0, where nothing")
    core = Core(["f32"])
    core.load(core.argument(0, "8", "1"), core.buffer("ub", 0, "8", "f32"), "f32")
    only(run([("f32", 1)], [np.zeros(8, dtype=np.float32)], vector=core), "reads argument 3 at 0, where nothing")


def test_scratch_memory_keeps_nothing():
    core = Core(["f32"])
    a, b = core.buffer("ub", 0, "8", "f32"), core.buffer("ub", 256, "8", "f32")
    core.call("broadcast_scalar_float_to_1d", core.constant(1.0, "f32"), a)
    core.barrier("V")
    core.call("vexp_1d_float", a, b, a)
    core.barrier("V")
    core.call("vexp_1d_float", a, b, core.buffer("ub", 0, "0", "f32"))
    only(run([("f32", 1)], [np.zeros(1, dtype=np.float32)], vector=core), "where nothing has been written")


def test_memory_written_as_another_type_is_not_read():
    core = Core(["f32"])
    a = core.buffer("ub", 0, "16", "f16")
    core.call("broadcast_scalar_half_to_1d", core.constant(1.0, "f16"), a)
    core.barrier("V")
    core.call(COPY, core.buffer("ub", 0, "8", "f32"), core.buffer("ub", 64, "8", "f32"), core.constant(0, "i32"),
              core.constant(0.0, "f32"))  # fmt: skip
    only(run([("f32", 1)], [np.zeros(1, dtype=np.float32)], vector=core), "written as another type")


def test_arguments_end_where_their_arrays_end():
    only(launch(doubled(), source=63), "load_gm_to_ubuf_1d_float reads argument 3 at 0 to 256, which ends at 252")
    only(launch(doubled(), result=32), "store_ubuf_to_gm_1d_float writes argument 4 at 0 to 256, which ends at 128")


def test_an_input_is_not_written():
    values = [np.zeros(64, dtype=np.float32) for _ in range(2)]
    only(run([("f32", 0), ("f32", 0)], values, vector=doubled()), "writes argument 4, an input")


def test_addresses_lie_within_their_memory_and_on_its_blocks():
    errors = launch(doubled(target=(192 << 10) - 64)).errors
    assert any("leads out of it" in error for error in errors)
    assert any("vadd_1d_float writes UB" in error and "which ends at 196608" in error for error in errors)
    core = Core(["f32"])
    core.load(core.argument(0, "8", "1"), core.buffer("ub", 16, "8", "f32"), "f32")
    report = run([("f32", 0)], [np.zeros(8, dtype=np.float32)], vector=core)
    assert len(report.errors) == 2
    assert "a pointer_cast to UB at 16 is misaligned" in report.errors[0]
    assert "writes UB at 16, not a multiple of 32" in report.errors[1]


def test_a_vector_operand_off_its_block_is_counted():
    core = Core(["f32"])
    whole = core.buffer("ub", 0, "64", "f32")
    core.call("broadcast_scalar_float_to_1d", core.constant(1.0, "f32"), whole)
    core.barrier("V")
    core.call(
        "vexp_1d_float",
        part_of(core, whole, 4, 8),
        core.buffer("ub", 512, "8", "f32"),
        core.buffer("ub", 0, "0", "f32"),
    )
    report = run([("f32", 1)], [np.zeros(1, dtype=np.float32)], vector=core)
    assert report.errors == ()
    assert (report.counters.unaligned_operands, report.counters.vector_operands) == (1, 3)


def test_flags_are_set_and_waited_for_in_turn():
    def flags(*verbs: str) -> Report:
        core = Core(["f32"])
        for verb in verbs:
            core.flag(verb, "MTE2", "V", 3)
        return run([("f32", 1)], [np.zeros(1, dtype=np.float32)], vector=core)

    assert flags("set", "wait", "set", "wait").errors == ()
    only(flags("wait"), "flag MTE2 -> V 3 is waited for, and nothing sets it")
    only(flags("set", "set", "wait"), "flag MTE2 -> V 3 is set, and has been since line")
    only(flags("set"), "flag MTE2 -> V is still set at the end")


def handed_over(*, wait: bool = True, answers: int = 1, pipe: str = "MTE3", waiting: str = "S") -> tuple[Core, Core]:
    """A value from the vector cores by way of global memory to the cube core."""
    cube, vector = Core(["f16"]), Core(["f16"])
    value = vector.buffer("ub", 0, "16", "f16")
    vector.call("broadcast_scalar_half_to_1d", vector.constant(1.0, "f16"), value)
    vector.sync("V", "MTE3")
    sub = vector.new("hivm.hir.get_sub_block_idx -> i64", "i64")
    row = vector.new(f"arith.index_cast {sub.name} : i64 to index", "index")
    whole = vector.argument(0, "2, 16", "16, 1")
    kind = "memref<16xf16, strided<[?], offset: ?>, #hivm.address_space<gm>>"
    vector.store(
        value,
        vector.new(f"memref.subview {whole.name}[{row.name}, 0] [1, 16] [1, 1] : {whole.type} to {kind}", kind),
        "f16",
    )
    for _ in range(answers):
        vector.block("set", "VECTOR", pipe, 3)
    if wait:
        cube.block("wait", "CUBE", pipe, 3, waiting=waiting)
    cube.call("nd2nz_half", cube.argument(0, "2, 16", "16, 1"), cube.buffer("cbuf", 0, "1x1x16x16", "f16"))
    return cube, vector


def mixed(cores: tuple[Core, Core]) -> Report:
    return run([("f16", 1)], [np.zeros(32, dtype=np.float16)], cube=cores[0], vector=cores[1])


def test_a_cross_core_flag_orders_cores():
    assert mixed(handed_over()).errors == ()


def test_without_it_the_cores_race():
    errors = mixed(handed_over(wait=False)).errors
    assert any("race" in error or "nothing has been written" in error for error in errors)
    text = module([("f16", 1)], cube=handed_over(wait=False)[0], vector=handed_over()[1])
    assert "sync_block_wait" not in text
    values = [np.zeros(32, dtype=np.float16)]
    late = program([("f16", 1)], cube=handed_over(wait=False)[0], vector=handed_over()[1])
    assert any("race: nd2nz_half reads argument 3" in error for error in late.run(values, 1, vectors_first=True).errors)


def test_a_cross_core_flag_of_a_pipe_that_did_not_write_orders_nothing():
    assert any("race: nd2nz_half reads argument 3" in error for error in vectors_first(handed_over(pipe="V")).errors)


def test_only_what_a_pipe_does_that_waits_is_behind_a_cross_core_flag():
    assert vectors_first(handed_over(waiting="MTE2")).errors == ()
    errors = vectors_first(handed_over(waiting="MTE1")).errors
    assert any("race: nd2nz_half reads argument 3" in error for error in errors)


def vectors_first(cores: tuple[Core, Core]) -> Report:
    built = program([("f16", 1)], cube=cores[0], vector=cores[1])
    return built.run([np.zeros(32, dtype=np.float16)], 1, vectors_first=True)


def test_waiting_for_what_nobody_sets_is_a_deadlock():
    only(mixed(handed_over(answers=0)), "cube", "deadlock: cross-core flag 3 is never set")


def test_cross_core_flags_balance_and_stay_below_sixteen():
    only(mixed(handed_over(answers=2)), "cross-core flag 3 is still set at the end")
    assert any("more than 15 times" in error for error in mixed(handed_over(answers=17)).errors)


def test_a_run_ends():
    core = doubled(turns=2)
    built = program(IN_OUT, vector=core)
    values = [np.zeros(64, dtype=np.float32), np.zeros(64, dtype=np.float32)]
    assert any("more instructions" in error for error in built.run(values, 1, most_instructions=10).errors)
    assert built.run(values, 1).errors == ()


def test_arguments_are_those_of_the_kernel():
    built, good = program(IN_OUT, vector=doubled()), np.zeros(64, dtype=np.float32)
    for values, words in (
        ([good], "has 2 arguments, but 1 are given"),
        ([good, good], "the same array"),
        ([good, 1.0], "argument 4 is a buffer"),
        ([good, np.zeros(64)], "argument 4 has elements of type f32, but is float64"),
        ([good, np.zeros((64, 2), np.float32)[:, 0]], "a contiguous array"),
    ):
        with pytest.raises(ValueError, match=words):
            built.run(values, 1)


def test_calls_that_are_not_modelled_do_not_build():
    core = Core(["f32"])
    core.call("vsinh_1d_float", core.buffer("ub", 0, "8", "f32"))
    with pytest.raises(UnknownCall, match="vsinh_1d_float"):
        program([("f32", 1)], vector=core)
    translated = translate(module(IN_OUT, vector=doubled()))
    with pytest.raises(UnknownCall, match=r"load_gm_to_ubuf_1d_float.*modelled is i1 ->"):
        check_calls(translated, dict.fromkeys(translated.signatures, "i1 -> "))
