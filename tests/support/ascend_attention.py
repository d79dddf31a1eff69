"""Cases of the Ascend attention kernel, for tests of every link of the chain: see ``tools.ascend.cases``."""

from __future__ import annotations

from tools.ascend.cases import (
    BORDERS,
    UNIT,
    Array,
    AttentionCase,
    attention_case,
    rounded,
    variant_of,
    widened,
)

__all__ = ["BORDERS", "UNIT", "Array", "AttentionCase", "attention_case", "rounded", "variant_of", "widened"]
