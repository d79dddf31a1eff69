"""The quantisers that tools.accuracy compares formats by, judged by the ``gguf`` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from kernels.formats import RawTensor, WeightFormat
from kernels.reference.dequant import dequantise
from tools.weight_formats import QUANTISERS

STEP = {
    WeightFormat.Q8_0: 1 / 127,
    WeightFormat.Q4_0: 1 / 8,
    WeightFormat.BF16: 2**-8,
    WeightFormat.F16: 2**-11,
    WeightFormat.F32: 0,
}
"""Of a format, as a share of the largest magnitude of a block."""


@pytest.mark.parametrize("fmt", QUANTISERS)
def test_what_is_made_is_as_close_as_the_gguf_package_makes_it(fmt):
    x = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    x[3], x[4, :32] = 0, -1e-3
    got = dequantise(RawTensor(x.shape, fmt, QUANTISERS[fmt](x)))
    kind = gguf.GGMLQuantizationType[fmt.name]
    judged = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    peak = np.abs(x.reshape(-1, 32)).max(axis=1).repeat(32).reshape(x.shape)
    assert (np.abs(got - x) <= STEP[fmt] * peak).all()
    assert np.abs(got - x).mean() == pytest.approx(np.abs(judged - x).mean(), rel=1e-3, abs=0)
