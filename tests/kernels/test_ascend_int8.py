"""A cache of int8, where links of the chain are told apart by little: what is not finite, and the kernels that fill it.

The attention kernel itself is tried with such a cache by the tests of each link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.ascend.plan import SPLIT
from kernels.ascend.variant import HEAD_DIMS, AttentionVariant
from tests.support.ascend_attention import AttentionCase, attention_case, variant_of, widened
from tests.support.ascend_executed import EXECUTOR
from tests.support.ascend_executed import attended as by_executor
from tests.support.ascend_links import BUILT, link
from tools.ascend.executed import CORES
from tools.ascend.host_code import HostKernel
from tools.ascend.int8_cases import QueryCase, StoreCase, query_case, store_case
from tools.ascend.interpret import Interpreter
from tools.ascend.lower import lower_combine, lower_queries, lower_split, lower_store
from tools.ascend.matrix import STORED_HEADS

pytestmark = link(4)

HOST_CORES = 3
DTYPES = ("fp16", "bf16")
LARGEST = [(128, 64, 64), (64, 128, 128), (64, 192, 128), (32, 256, 256)]
"""Heads of keys, and sizes of heads, that go to the cache as one tile; with more, on-chip memory overflows."""

Arguments = dict[str, Any]
Attend = Callable[[AttentionCase], np.ndarray]
Run = Callable[[AttentionVariant, Arguments], None]
"""A kernel by one link: arrays of the arguments are written in place."""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    with Interpreter() as process:
        yield process


@cache
def host_code(lower: Callable[..., Any], variant: AttentionVariant, **options: bool) -> HostKernel:
    return HostKernel(lower(variant, HOST_CORES, **options), BUILT)


def executed(which: Any, variant: AttentionVariant, arguments: Arguments) -> None:
    report = EXECUTOR.program(variant, which).run(list(arguments.values()), 2 * CORES)
    assert report.errors == ()
    assert report.counters.vector_operands
    assert report.counters.unaligned_operands == 0


@pytest.fixture(params=[1, 2, 4], ids="link {}".format)
def store(request: pytest.FixtureRequest, interpreter: Interpreter) -> Run:
    return {
        1: lambda variant, arguments: interpreter.store(variant, arguments, HOST_CORES),
        2: lambda variant, arguments: host_code(lower_store, variant).run(arguments, HOST_CORES),
        4: lambda variant, arguments: executed("store", variant, arguments),
    }[request.param]


@pytest.fixture(params=[1, 2, 4], ids="link {}".format)
def split_queries(request: pytest.FixtureRequest, interpreter: Interpreter) -> Run:
    return {
        1: lambda variant, arguments: interpreter.split_queries(variant, arguments, HOST_CORES),
        2: lambda variant, arguments: host_code(lower_queries, variant).run(arguments, HOST_CORES),
        4: lambda variant, arguments: executed("queries", variant, arguments),
    }[request.param]


@pytest.fixture(params=[1, 2, 4], ids="link {}".format)
def attend(request: pytest.FixtureRequest, interpreter: Interpreter) -> Attend:
    def by_interpreter(case: AttentionCase) -> np.ndarray:
        split = case.split_arguments(HOST_CORES)
        combine = case.combine_arguments(split)
        interpreter.run(case.variant, split, combine, HOST_CORES, case.sink is not None)
        return case.result(combine)

    def by_host_code(case: AttentionCase) -> np.ndarray:
        split = case.split_arguments(HOST_CORES)
        host_code(lower_split, case.variant).run(split, HOST_CORES)
        combine = case.combine_arguments(split)
        host_code(lower_combine, case.variant, has_sink=case.sink is not None).run(combine, HOST_CORES)
        return case.result(combine)

    return {1: by_interpreter, 2: by_host_code, 4: by_executor}[request.param]


def int8(kv_heads: int, k_dim: int, v_dim: int, dtype: Any, *, group: int = 1) -> AttentionVariant:
    return variant_of(group, k_dim, v_dim, dtype, kv_heads=kv_heads, scores="i32")


def check_stored(run: Run, case: StoreCase) -> None:
    arguments = case.arguments()
    run(case.variant, arguments)
    case.check(arguments)


def check_queries(run: Run, case: QueryCase) -> None:
    arguments = case.arguments()
    run(case.variant, arguments)
    case.check(arguments)


@pytest.mark.parametrize(("kv_heads", "dims"), [*zip(STORED_HEADS, 2 * HEAD_DIMS, strict=True)])
@pytest.mark.parametrize("spoilt", [False, True])
def test_keys_and_values_are_stored_as_numpy_rounds_them(store, kv_heads, dims, spoilt):
    variant = int8(kv_heads, *dims, DTYPES[kv_heads % 2])
    check_stored(store, store_case(variant, 90, seed=kv_heads, spoilt=spoilt))


@pytest.mark.parametrize(("kv_heads", "k_dim", "v_dim"), LARGEST)
def test_so_many_heads_of_keys_are_stored_at_once(kv_heads, k_dim, v_dim):
    variant = int8(kv_heads, k_dim, v_dim, "bf16")
    check_stored(lambda *given: executed("store", *given), store_case(variant, 45))


@pytest.mark.parametrize(("group", "dims"), [*zip((1, 3, 7, 16), HEAD_DIMS, strict=True)])
@pytest.mark.parametrize("spoilt", [False, True])
def test_queries_are_split_as_numpy_splits_them(split_queries, group, dims, spoilt):
    variant = int8(1 + group % 3, *dims, DTYPES[group // 2 % 2], group=group)
    check_queries(split_queries, query_case(variant, 45, seed=group, spoilt=spoilt))


@pytest.mark.parametrize("dims", HEAD_DIMS)
def test_a_query_is_off_by_a_1016th_of_its_largest_number_at_most(dims):
    case = query_case(int8(2, *dims, "bf16", group=5), 50)
    q = widened(case.q).transpose(1, 0, 2, 3)
    back = widened(case.wanted["addends_ptr"]).sum(0) * widened(case.wanted["scale_ptr"])[..., None]
    roundings = 4 * 508 * 2.0**-24  # in steps of float32
    assert (np.abs(back - q) <= np.abs(q).max(-1, keepdims=True) * (0.5 + roundings) / 508).all()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kv_heads=st.sampled_from([1, 3]), rows=st.integers(1, 60), seed=st.integers(0, 99), spoilt=st.booleans())
def test_any_keys_and_values(store, kv_heads, rows, seed, spoilt):
    check_stored(store, store_case(int8(kv_heads, 64, 64, "bf16"), rows, seed=seed, spoilt=spoilt))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(group=st.sampled_from([1, 7]), rows=st.integers(1, 60), seed=st.integers(0, 99), spoilt=st.booleans())
def test_any_queries(split_queries, group, rows, seed, spoilt):
    check_queries(split_queries, query_case(int8(2, 64, 64, "bf16", group=group), rows, seed=seed, spoilt=spoilt))


@pytest.mark.parametrize("which", ["k", "v"])
def test_a_step_that_is_nan_reaches_the_queries_that_see_it_and_no_others(attend, which):
    case = attention_case(variant_of(2, 64, 64, "bf16", scores="i32"), [300, SPLIT + 700, 129])
    spoil(case, which, 1, SPLIT + 647)
    assert_spoilt(attend(case), [1])


@pytest.mark.parametrize("which", ["k", "v"])
def test_nor_those_before_it_in_a_tile_nor_those_whose_window_ended(attend, which):
    variant = variant_of(2, 64, 64, "fp16", scores="i32", queries=8)
    case = attention_case(variant, [(140, 140)], window=50)
    spoil(case, which, 0, 60)
    assert_spoilt(attend(case), list(range(60, 110)))


def spoil(case: AttentionCase, which: str, seq: int, token: int) -> None:
    """Make the step of the first head's key or value of a token NaN, as it is stored where a number is not finite."""
    scale = case.k_scale if which == "k" else case.v_scale
    scale[case.block_table[seq, token // 128], 0, token % 128] = np.nan


def assert_spoilt(got: np.ndarray, queries: list[int]) -> None:
    """The first head of keys is not finite in these queries alone, and the second is in none of them."""
    bad = ~np.isfinite(widened(got))
    group = got.shape[1] // 2
    assert bad[queries, :group].all()
    assert bad.sum() == len(queries) * group * got.shape[2]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_query_that_is_not_finite_gives_a_result_that_is_not(attend, number):
    case = attention_case(variant_of(3, 64, 64, "fp16", scores="i32"), [300, 40])
    case.q[0, 5, 7] = number
    bad = np.isnan(widened(attend(case)))
    assert bad[0, 5].all()
    assert bad.sum() == 64
