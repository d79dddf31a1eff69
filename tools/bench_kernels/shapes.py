"""Which sizes are measured."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.formats import WeightFormat as W


@dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes, and the formats in which its matrices, its gates and its output layer are measured.

    Attributes:
        matrices: (outputs, inputs) of those that LINEAR multiplies with, the output layer aside.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    matrices: tuple[tuple[int, int], ...]
    formats: tuple[W, ...]
    gate_formats: tuple[W, ...]
    output_formats: tuple[W, ...]

    @property
    def head_shape(self) -> str:
        """Heads / key heads x size."""
        return f"{self.heads}/{self.kv_heads} x {self.head_dim}"


@dataclass(frozen=True)
class ExpertShape:
    """Routed experts: sizes of each, how many there are, how many a token goes to."""

    hidden: int
    inner: int
    num_experts: int
    top_k: int
    format: W


@dataclass(frozen=True)
class Sizes:
    """What a run measures.

    Attributes:
        rows: tokens of a step; sampled are at most ``sampled`` of them.
        context: tokens in the cache of a sequence that decodes, or into which a chunk of a prompt goes.
        chunk: tokens of such a chunk.
        sequences: at most so many decode, of the small model and of the large one.
    """

    small: ModelShape
    large: ModelShape
    experts: ExpertShape
    rows: tuple[int, ...] = (1, 4, 16, 64, 512)
    sampled: int = 64
    context: int = 1024
    chunk: int = 512
    sequences: tuple[int, int] = (64, 16)
    block_size: int = 16


DEFAULT = Sizes(
    # SmolLM2-135M, as the default model is stored
    small=ModelShape(
        hidden=576, heads=9, kv_heads=3, head_dim=64, inner=1536, vocab=49152,
        matrices=((960, 576), (576, 576), (576, 1536)),
        formats=(W.Q4_1,), gate_formats=(W.Q4_1,), output_formats=(W.Q8_0,),
    ),
    # Llama-3-8B, without its output layer; gates in more formats of floats would take long and tell nothing new
    large=ModelShape(
        hidden=4096, heads=32, kv_heads=8, head_dim=128, inner=14336, vocab=0,
        matrices=((4096, 4096), (4096, 14336)),
        formats=tuple(W), gate_formats=(W.BF16, W.Q8_0, W.Q4_0, W.Q4_1, W.Q4_K, W.Q6_K, W.W8A8), output_formats=(),
    ),
    experts=ExpertShape(hidden=1024, inner=512, num_experts=32, top_k=8, format=W.Q4_K),
)  # fmt: skip
