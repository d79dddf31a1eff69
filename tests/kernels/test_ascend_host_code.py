"""Link 2: what triton-ascend lowers the attention kernels to, compiled for this machine by LLVM 19, against NumPy.

Scores as i32 are those of a cache of int8.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from kernels.ascend.plan import NO_WINDOW, SPLIT
from kernels.ascend.variant import HEAD_DIMS, AttentionVariant
from tests.support.ascend_attention import AttentionCase, attention_case, variant_of
from tests.support.ascend_links import BUILT, link
from tools.ascend.host_code import HostKernel
from tools.ascend.lower import lower_combine, lower_split

pytestmark = link(2)

BORDERS = [1, 127, 128, 129, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT + 129]
CORES = 4


@cache
def compiled(variant: AttentionVariant, has_sink: bool) -> tuple[HostKernel, HostKernel]:
    split = HostKernel(lower_split(variant, CORES), BUILT)
    return split, HostKernel(lower_combine(variant, 2 * CORES, has_sink=has_sink), BUILT)


def attended(case: AttentionCase) -> np.ndarray:
    split_kernel, combine_kernel = compiled(case.variant, case.sink is not None)
    split = case.split_arguments(CORES)
    combine = case.combine_arguments(split)
    split_kernel.run(split, CORES)
    combine_kernel.run(combine, 2 * CORES)
    return case.result(combine)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("k_dim", "v_dim"), HEAD_DIMS)
@pytest.mark.parametrize("group", [1, 3, 5, 7, 10, 16])
def test_every_head_size_at_every_border(group, k_dim, v_dim, dtype):
    case = attention_case(variant_of(group, k_dim, v_dim, dtype), BORDERS if dtype == "bf16" else BORDERS[:-2])
    case.check(attended(case))


@pytest.mark.parametrize("scores", ["fp32", "fp16"])
def test_several_splits_in_f16(scores):
    case = attention_case(variant_of(8, 128, 128, "fp16", scores=scores), BORDERS)
    case.check(attended(case))


@pytest.mark.parametrize(("k_dim", "v_dim"), HEAD_DIMS)
@pytest.mark.parametrize("group", [1, 7, 10])
def test_a_cache_of_int8_at_every_border(group, k_dim, v_dim):
    case = attention_case(variant_of(group, k_dim, v_dim, "bf16", scores="i32"), BORDERS)
    case.check(attended(case))


@pytest.mark.parametrize("scores", ["fp32", "i32"])
@pytest.mark.parametrize("window", [1, 100, 128, SPLIT, SPLIT + 100])
def test_windows_and_sinks(window, scores):
    variant = variant_of(3, 64, 64, "bf16", scores=scores)
    case = attention_case(variant, [1, 128, 500, SPLIT + 1, 4000], window=window, sink=True)
    case.check(attended(case))


@pytest.mark.parametrize("window", [NO_WINDOW, 100])
@pytest.mark.parametrize(
    ("group", "scores"), [(3, "fp32"), (7, "fp32"), (16, "fp32"), (1, "i32"), (7, "i32"), (16, "i32")]
)
def test_tiles_of_prompts_give_what_each_query_alone_gets(group, scores, window):
    lengths = [(SPLIT + 7, 40), (5, 5), (1, 1), (140, 11)]
    variant = variant_of(group, 64, 64, "bf16", scores=scores, queries=64 // group)
    case = attention_case(variant, lengths, window=window, sink=True)
    got = attended(case)
    case.check(got)
    for query in range(0, len(got), 5):
        assert got[query].tobytes() == attended(case.only(query))[0].tobytes()


@pytest.mark.parametrize("scores", ["fp32", "i32"])
def test_a_sequence_among_256_others_is_bitwise_what_it_is_alone(scores):
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(1, 500, 200).tolist(), 5000, *rng.integers(1, 2500, 56).tolist()]
    case = attention_case(variant_of(3, 64, 64, "bf16", scores=scores), lengths)
    got = attended(case)
    case.check(got)
    for query in (0, 1, 100, 199, 200, 201, 256):
        assert got[query].tobytes() == attended(case.only(query))[0].tobytes()


@pytest.mark.parametrize("scores", ["fp32", "i32"])
def test_a_context_of_128k(scores):
    case = attention_case(variant_of(8, 128, 128, "bf16", kv_heads=1, scores=scores), [131072, 1])
    case.check(attended(case))


def test_keys_and_values_that_are_not_finite_reach_only_queries_that_see_them():
    case = attention_case(variant_of(2, 64, 64, "bf16"), [300, 700, 129])
    case.v[case.block_table[1, 5], 7, 0, 0] = 0x7FC0
    got = attended(case)
    spoilt = np.isnan((got.astype(np.uint32) << 16).view(np.float32))
    assert spoilt[1, :2, 0].all()
    assert spoilt.sum() == 2
