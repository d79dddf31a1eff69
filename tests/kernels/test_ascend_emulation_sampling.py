"""Emulated sampling: what top k and top p leave of logits, against NumPy, and refusals."""

import numpy as np
import pytest
import torch

from tests.support.ascend_calls import FLOATS, f64, normal, refused
from tests.support.ascend_links import link

pytestmark = link(5, attention=False)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


def top_k_top_p(logits, p, k):
    """The documented steps, one row, float64."""
    order = np.argsort(logits, kind="stable")
    values = logits[order].copy()
    if k is not None:
        values[values < values[-k]] = -np.inf
    if p is not None:
        exponentials = np.exp(values - values.max())
        dropped = np.cumsum(exponentials / exponentials.sum()) <= 1 - p
        dropped[-1] = False
        values[dropped] = -np.inf
    result = np.empty_like(values)
    result[order] = values
    return result


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kinds", ["pk", "p", "k"])
def test_top_k_top_p(npu, rng, dtype, kinds):
    logits = normal(rng, 5, 200, dtype=dtype)
    logits[3, :100] = logits[3, 100]  # ties
    p = torch.tensor([0.0, 0.3, 0.9, 0.5, 1.0], dtype=dtype) if "p" in kinds else None
    k = torch.tensor([1, 5, 150, 50, 200], dtype=torch.int32) if "k" in kinds else None
    got = npu.npu_top_k_top_p(logits, p, k)
    for index, row in enumerate(f64(logits)):
        want = top_k_top_p(row, None if p is None else float(p[index]), None if k is None else int(k[index]))
        assert np.array_equal(f64(got)[index], want)


def test_a_probability_of_exactly_the_threshold_is_dropped(npu):
    got = npu.npu_top_k_top_p(torch.zeros(1, 64), torch.tensor([0.5]))
    assert got.tolist() == [[-np.inf] * 32 + [0.0] * 32]


def test_top_k_top_p_refuses(npu, rng):
    logits, p, k = normal(rng, 2, 2000), torch.ones(2).half(), torch.ones(2, dtype=torch.int32)
    refused("cannot both be None", npu.npu_top_k_top_p, logits)
    refused("p must be torch.float16", npu.npu_top_k_top_p, logits, p.float(), k)
    refused("k must be int32", npu.npu_top_k_top_p, logits, p, k.long())
    refused("k must be from 1 to 1024", npu.npu_top_k_top_p, logits, p, k + 1024)
    refused("k must be from 1 to 8", npu.npu_top_k_top_p, logits[:, :8], p, k + 8)
    refused("p must be from 0 to 1", npu.npu_top_k_top_p, logits, p + 1, k)
    refused(r"p must be \[2\]", npu.npu_top_k_top_p, logits, p[:1], k)
    refused("must have 2 dimensions", npu.npu_top_k_top_p, logits[0], p, k)
