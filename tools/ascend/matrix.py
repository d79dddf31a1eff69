"""All that is compiled: all kernels of attention for all heads that there are some for, for two chips."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal

from kernels.ascend.attention import PROMPT_ROWS
from kernels.ascend.variant import HEAD_DIMS, MAX_GROUP, AttentionVariant, Dtype
from tools.ascend.bishengir import FLAGS, HIVMC_VERSION, final_hivm
from tools.ascend.hivm.execute import Program, build
from tools.ascend.hivm.module import Module, memory_peaks
from tools.ascend.hivm.translate import translate
from tools.ascend.lower import Lowered, lower_combine, lower_queries, lower_split, lower_store

CUBE_CORES = {"Ascend910B3": 20, "Ascend910B1": 24}
"""Chip -> its matrix cores; there are twice as many vector cores."""
DTYPES: tuple[Dtype, ...] = ("fp16", "bf16")
SCORES: tuple[Dtype, ...] = ("fp32", "fp16", "i32")
"""Of Q Kᵀ on its way between cores; i32 with a cache of int8."""
KV_HEADS = 2
STORED_HEADS = (1, 2, 3, 4, 5, 8, 16, 32)
"""Heads of keys whose numbers go to a cache of int8 as one tile; with heads of 256 elements no more would fit."""
Pass = Literal["split", "combine", "combine, sink", "store", "queries"]
"""Of the attention kernel, and the two that make int8 for it: of keys and values, and of queries."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a specialisation for a chip."""

    variant: AttentionVariant
    which: Pass
    chip: str

    def lowered(self) -> Lowered:
        """In linalg."""
        cores = CUBE_CORES[self.chip]
        if self.which == "split":
            return lower_split(self.variant, cores)
        if self.which == "store":
            return lower_store(self.variant, 2 * cores)
        if self.which == "queries":
            return lower_queries(self.variant, 2 * cores)
        return lower_combine(self.variant, 2 * cores, has_sink=self.which == "combine, sink")


@dataclass(frozen=True)
class Compiled:
    """The final HIVM of a kernel."""

    text: str

    @cached_property
    def module(self) -> Module:
        """Translated for this machine, with what it holds.

        Raises:
            UnknownConstruct: it has something that the model does not know.
        """
        return translate(self.text)

    @property
    def peaks(self) -> Mapping[str, int]:
        """Bytes of UB, L1 and L0C.

        Raises:
            ValueError: a buffer whose place is not known before the kernel runs.
        """
        if any(cast.address is None for cast in self.module.casts):
            raise ValueError(f"{self.module.kernel} chooses the place of a buffer as it runs")
        return memory_peaks(self.module)

    def program(self, folder: Path) -> Program:
        """Built to run here, or as it was built before."""
        return build(self.text, folder)


def compiled(kernel: Kernel, folder: Path) -> Compiled:
    """Compile a kernel; what has been compiled in this folder is used again.

    Raises:
        ToolFailed: it does not compile, or on-chip memory overflows.
    """
    lowered = kernel.lowered()
    made_of = "\n".join((lowered.text, kernel.chip, HIVMC_VERSION, *FLAGS)).encode()
    path = folder / f"{lowered.name}-{hashlib.sha256(made_of).hexdigest()[:16]}.mlir"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = final_hivm(lowered, kernel.chip)
        with tempfile.NamedTemporaryFile("w", dir=folder, encoding="utf-8", delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    return Compiled(path.read_text(encoding="utf-8"))


def variant(
    group: int, k_dim: int, v_dim: int, dtype: Dtype, *, prompt: bool = False, scores: Dtype = "fp32"
) -> AttentionVariant:
    """The specialisation that the backend takes for such heads, for decoding or for prompts."""
    queries = max(1, PROMPT_ROWS // group) if prompt else 1
    return AttentionVariant(KV_HEADS, group, k_dim, v_dim, dtype, scores, queries)


def variants() -> Iterator[AttentionVariant]:
    """All specialisations: 4 sizes of heads, 16 groups, decoding and prompts, 2 dtypes, 3 of scores."""
    for (k_dim, v_dim), group in product(HEAD_DIMS, range(1, MAX_GROUP + 1)):
        for dtype, prompt, scores in product(DTYPES, (False, True), SCORES):
            yield variant(group, k_dim, v_dim, dtype, prompt=prompt, scores=scores)


def kernels(chip: str) -> Iterator[Kernel]:
    """All kernels for a chip: those that do not ask for all of a specialisation once for what they ask for.

    The second pass asks neither for keys nor for scores, but for whether sums are of int8.
    """
    for specialised in variants():
        yield Kernel(specialised, "split", chip)
        if specialised.k_dim == specialised.v_dim and specialised.scores != "fp16":
            yield Kernel(specialised, "combine", chip)
            yield Kernel(specialised, "combine, sink", chip)
        if specialised.planes == 2 and specialised.queries == 1:
            yield Kernel(specialised, "queries", chip)
            if specialised.group == 1:
                for kv_heads in STORED_HEADS:
                    yield Kernel(replace(specialised, kv_heads=kv_heads), "store", chip)
