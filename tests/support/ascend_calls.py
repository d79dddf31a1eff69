"""What tests of emulated torch_npu operations share: inputs, tolerances, refusals, and rows without neighbours.

Tolerances: an emulation computes in float32 and rounds once. So a result may be off by the unit roundoff of its dtype
(``ROUNDOFF``), and by float32's own, which grows with the root of the longest sum: ``close`` allows for both.
"""

import numpy as np
import pytest
import torch

ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
HALVES = (torch.float16, torch.bfloat16)
FLOATS = tuple(ROUNDOFF)


def normal(rng, *shape, dtype=torch.float16):
    return torch.randn(*shape, generator=rng).to(dtype)


def codes(rng, *shape):
    return torch.randint(-127, 128, shape, generator=rng, dtype=torch.int8)


def f64(tensor):
    return tensor.to(torch.float64).numpy()


def close(got, want, terms=1, magnitude=None):
    """Whether a tensor is the float64 array ``want`` within the rounding of its dtype and of a sum of ``terms``."""
    largest = np.abs(want).max() if magnitude is None else magnitude
    slack = 4 * 2.0**-24 * np.sqrt(terms) * largest
    assert got.shape == want.shape
    assert (np.abs(f64(got) - want) <= ROUNDOFF[got.dtype] * np.abs(want) + slack).all()


def refused(reason, function, *args, **kwargs):
    with pytest.raises(RuntimeError, match=reason):
        function(*args, **kwargs)


def same_alone(function, *rows):
    """Whether each row's result is, to the bit, what it is without the others, and in any company."""
    together = function(*rows)
    for begin, end in [(index, index + 1) for index in range(len(rows[0]))] + [(1, 4), (0, 3)]:
        part = function(*(tensor[begin:end].clone() for tensor in rows))
        for whole, got in zip(together, part, strict=True):
            assert torch.equal(whole[begin:end], got)
