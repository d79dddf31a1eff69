"""What each operation computes: oracle, tolerance, cases, source."""

from __future__ import annotations

from kernels.spec import OpSpec
from kernels.specs.attention import PAGED_ATTENTION, WRITE_KV
from kernels.specs.products import LINEAR, LOGITS, MOE
from kernels.specs.rows import ADD_RMS_NORM, EMBED, RMS_NORM, ROPE, SILU_MUL
from kernels.specs.sampling import DRAW

ALL_SPECS: tuple[OpSpec, ...] = (
    EMBED,
    RMS_NORM,
    ADD_RMS_NORM,
    LINEAR,
    ROPE,
    WRITE_KV,
    PAGED_ATTENTION,
    SILU_MUL,
    MOE,
    LOGITS,
    DRAW,
)
"""One for each of ``kernels.ops.OPERATIONS``."""
