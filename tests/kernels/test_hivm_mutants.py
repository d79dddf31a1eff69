"""Defects planted in final HIVM modules are caught, and what is not caught is excused only for a reason."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.hivm_modules import FOLDER, Core, module
from tests.support.ascend_links import link
from tools.ascend.hivm.build import model_library
from tools.ascend.hivm.execute import Value, build
from tools.ascend.hivm.mutate import Behaviour, Case, Mutant, Reason, behaviour, classify, mutants

pytestmark = link(4)

ARGUMENTS = [("f32", 0), ("f32", 1)]


def exponentials(*, spare_barrier: bool = False) -> str:
    """exp(max(x, 0.5)) of 64 numbers, twice over the same buffers."""
    core = Core(["f32", "f32"])
    a, b, c = (core.buffer("ub", at, "64", "f32") for at in (0, 256, 512))
    core.buffer("ub", 768, "64", "f32")
    temp = core.buffer("ub", 0, "0", "f32")
    if spare_barrier:
        core.barrier("V")
    core.load(core.argument(0, "64", "1"), a, "f32")
    core.call("broadcast_scalar_float_to_1d", core.constant(0.5, "f32"), b)
    core.sync("MTE2", "V")
    core.barrier("V")
    core.call("vmax_1d_float", a, b, c, temp)
    core.barrier("V")
    core.call("vexp_1d_float", c, c, temp)
    core.sync("V", "MTE3")
    core.store(c, core.argument(1, "64", "1"), "f32")
    return module(ARGUMENTS, vector=core)


def case() -> Case:
    numbers = np.linspace(-1, 1, 64, dtype=np.float32)

    def accepts(arguments: Sequence[Value]) -> bool:
        return bool(np.allclose(arguments[1], np.exp(np.maximum(numbers, 0.5)), 1e-5))

    return Case(lambda: [numbers, np.zeros(64, dtype=np.float32)], 1, accepts)


@pytest.fixture(scope="module")
def original() -> Behaviour:
    return behaviour(build(exponentials(), FOLDER), [case()])


def test_every_mutant_of_a_small_kernel_is_caught_or_excused(original: Behaviour):
    caught: dict[str, str | None] = {}
    for mutant in mutants(exponentials()):
        verdict = classify(mutant, original, [case()], FOLDER / "mutants")
        assert not verdict.survived, verdict
        caught[mutant.name.partition(": ")[2] or mutant.name] = verdict.caught_by
    assert caught["pipe_barrier[V] dropped"] == "race"
    assert caught["flag tiny <PIPE_MTE2>, <PIPE_V>, <EVENT_ID0> dropped everywhere"] == "race"
    assert caught["flag tiny <PIPE_V>, <PIPE_MTE3>, <EVENT_ID0> dropped everywhere"] == "race"
    assert caught["set_flag[MTE2, V, ID0] dropped"] == "wait without set"
    assert caught["wait_flag[MTE2, V, ID0] dropped"] == "race"
    assert caught["vmax_1d_float made vmin_1d_float"] == "results"
    assert caught["vexp_1d_float dropped"] == "results"
    assert caught["load_gm_to_ubuf_1d_float dropped"] == "uninitialised"
    assert caught["UB buffer at 256 moved onto another"] == "race"
    assert caught["UB buffer at 512 moved out"] == "out of range"


def test_a_barrier_that_orders_nothing_is_excused():
    spare = exponentials(spare_barrier=True)
    first = next(mutant for mutant in mutants(spare) if "pipe_barrier" in mutant.name)
    verdict = classify(first, behaviour(build(spare, FOLDER), [case()]), [case()], FOLDER / "mutants")
    assert (verdict.caught_by, verdict.reason) == (None, Reason.ORDERS_NOTHING)


def test_only_what_does_the_same_is_excused(original: Behaviour):
    almost = exponentials().replace("5.000000000e-01", "5.000001000e-01")
    verdict = classify(Mutant("almost", almost, Reason.ORDERS_NOTHING), original, [case()], FOLDER / "mutants")
    assert verdict.survived
    verdict = classify(Mutant("itself", exponentials()), original, [case()], FOLDER / "mutants")
    assert verdict.survived
    with pytest.raises(ValueError, match="does not pass"):
        classify(Mutant("itself", almost), Behaviour((), (), ()), [case()], FOLDER)


def test_a_fill_that_is_left_out_is_excused_only_if_nan_in_its_place_changes_nothing(original: Behaviour):
    almost = exponentials().replace("5.000000000e-01", "5.000001000e-01")
    for poisoned, survived in ((exponentials(), False), (almost, True)):
        mutant = Mutant("itself", exponentials(), Reason.PADDING, poisoned)
        assert classify(mutant, original, [case()], FOLDER / "mutants").survived is survived
    fill = next(mutant for mutant in mutants(exponentials()) if "broadcast_scalar_float_to_1d dropped" in mutant.name)
    assert fill.poisoned is not None
    assert "0x7FC00000" in fill.poisoned
    nan = behaviour(build(fill.poisoned, FOLDER), [case()])
    assert nan.accepted == (False,)


def test_a_mutant_that_does_not_build_is_caught(original: Behaviour):
    broken = exponentials().replace("hivm.hir.pipe_barrier", "hivm.hir.pipe_fence")
    assert classify(Mutant("broken", broken), original, [case()], FOLDER).caught_by == "build"


def test_processes_may_build_the_same_at_once(tmp_path: Path):
    (tmp_path / model_library(FOLDER).name).symlink_to(model_library(FOLDER))
    text = exponentials()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        built = [job.result() for job in [pool.submit(_results, text, tmp_path) for _ in range(2)]]
    assert built[0] == built[1] == [()]
    assert len(list(tmp_path.glob("kernel-*.so"))) == 1
    assert len(list(tmp_path.iterdir())) == 2


def _results(text: str, folder: Path) -> list[tuple[str, ...]]:
    return [report.errors for report in behaviour(build(text, folder), [case()]).reports]
