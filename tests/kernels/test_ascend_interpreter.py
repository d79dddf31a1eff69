"""Link 1: the attention kernels under the Triton interpreter, against NumPy in float64.

Scores as i32 are those of a cache of int8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.ascend.plan import NO_WINDOW, SPLIT
from kernels.ascend.variant import HEAD_DIMS
from tests.support.ascend_attention import AttentionCase, attention_case, variant_of
from tests.support.ascend_links import link
from tools.ascend.interpret import Interpreter

pytestmark = link(1)

BORDERS = [1, 127, 128, 129, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT + 129]
CORES = 3
DTYPES = ("fp16", "bf16")
KINDS = (("fp16", "fp32"), ("bf16", "fp32"), ("bf16", "i32"))
"""Dtypes, and of scores."""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    with Interpreter() as process:
        yield process


def attended(interpreter: Interpreter, case: AttentionCase, cores: int = CORES) -> np.ndarray:
    split = case.split_arguments(cores)
    combine = case.combine_arguments(split)
    interpreter.run(case.variant, split, combine, cores, case.sink is not None)
    return case.result(combine)


@pytest.mark.parametrize(("dtype", "scores"), KINDS)
@pytest.mark.parametrize(("k_dim", "v_dim"), HEAD_DIMS)
def test_every_head_size_at_every_border(interpreter, k_dim, v_dim, dtype, scores):
    case = attention_case(variant_of(5, k_dim, v_dim, dtype, scores=scores), BORDERS)
    case.check(attended(interpreter, case))


@pytest.mark.parametrize("scores", ["fp32", "i32"])
@pytest.mark.parametrize("group", range(1, 17))
def test_every_group(interpreter, group, scores):
    variant = variant_of(group, 64, 64, DTYPES[group % 2], scores=scores)
    case = attention_case(variant, [130, SPLIT + 3], seed=group)
    case.check(attended(interpreter, case))


@pytest.mark.parametrize("scores", ["fp16", "fp32", "i32"])
def test_both_ways_for_scores_and_large_ones(interpreter, scores):
    case = attention_case(variant_of(7, 128, 128, "fp16", scores=scores), [300, SPLIT + 5], loud=4)
    case.check(attended(interpreter, case))


@pytest.mark.parametrize("scores", ["fp32", "i32"])
@pytest.mark.parametrize("window", [1, 100, 128, SPLIT, SPLIT + 100])
def test_windows(interpreter, window, scores):
    variant = variant_of(3, 64, 64, "fp16", scores=scores)
    case = attention_case(variant, [1, 128, 500, SPLIT + 1, 2 * SPLIT + 50], window=window)
    case.check(attended(interpreter, case))


@pytest.mark.parametrize("scores", ["fp32", "i32"])
def test_sinks(interpreter, scores):
    case = attention_case(variant_of(3, 64, 64, "fp16", scores=scores), [1, 500, SPLIT + 1], sink=True)
    got = attended(interpreter, case)
    case.check(got)
    with pytest.raises(AssertionError, match="rounding"):
        replace(case, sink=None).check(got)


@pytest.mark.parametrize("window", [NO_WINDOW, 100])
@pytest.mark.parametrize(("group", "scores"), [(3, "fp32"), (16, "fp32"), (3, "i32"), (16, "i32")])
def test_tiles_of_prompts_give_what_each_query_alone_gets(interpreter, group, scores, window):
    lengths = [(SPLIT + 2, 6), (5, 5), (1, 1)]
    variant = variant_of(group, 64, 64, "fp16", scores=scores, queries=64 // group)
    case = attention_case(variant, lengths, window=window, sink=True)
    got = attended(interpreter, case)
    case.check(got)
    for query in (0, 3, 4, 5, 8, 11):
        assert got[query].tobytes() == attended(interpreter, case.only(query))[0].tobytes()


@pytest.mark.parametrize("scores", ["fp32", "i32"])
def test_a_sequence_among_256_others_is_bitwise_what_it_is_alone(interpreter, scores):
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(1, 129, 200).tolist(), SPLIT + 77, *rng.integers(1, 129, 56).tolist()]
    case = attention_case(variant_of(2, 64, 64, "fp16", kv_heads=1, scores=scores), lengths)
    got = attended(interpreter, case, cores=7)
    for query in (0, 199, 200, 256):
        assert got[query].tobytes() == attended(interpreter, case.only(query))[0].tobytes()


@settings(max_examples=18, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_case(interpreter, data):
    k_dim, v_dim = data.draw(st.sampled_from(HEAD_DIMS))
    queries = data.draw(st.sampled_from([1, 1, 4]))
    group = data.draw(st.integers(1, 16 // queries if queries > 1 else 16))
    dtype, scores = data.draw(st.sampled_from(KINDS))
    kv_heads = data.draw(st.integers(1, 3))
    variant = variant_of(group, k_dim, v_dim, dtype, kv_heads=kv_heads, scores=scores, queries=queries)
    totals = data.draw(st.lists(st.integers(1, 400) | st.integers(SPLIT - 2, SPLIT + 2), min_size=1, max_size=4))
    lengths = [(total, data.draw(st.integers(1, min(total, 2 * queries - 1)))) for total in totals]
    window = data.draw(st.just(NO_WINDOW) | st.integers(1, 500))
    case = attention_case(
        variant, lengths, window=window, sink=data.draw(st.booleans()), seed=data.draw(st.integers(0, 99))
    )
    case.check(attended(interpreter, case, cores=data.draw(st.integers(1, 5))))
