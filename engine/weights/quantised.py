"""Weights quantised as they are loaded: ``--quantization``.

``w8a8`` makes every linear layer of the decoder W8A8, whatever its file holds: the projections of attention, of MLPs,
of routed experts. One that is W8A8 already is taken as it is. Embedding, output layer and router stay as stored, as
vLLM and compressed-tensors have it too.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from engine.config import QUANTIZATIONS, ModelConfig
from engine.errors import ConfigError
from engine.token_table import TokenTable
from engine.weights.checkpoint import Checkpoint
from engine.weights.shapes import Shape, expected_shapes
from kernels.formats import RawTensor, WeightFormat
from kernels.quantise import to_w8a8


class W8A8Checkpoint:
    """A checkpoint whose linear layers are handed out as W8A8.

    Attributes:
        config: as the checkpoint has it.
        total_bytes: bytes of all tensors as they are handed out.
    """

    def __init__(self, stored: Checkpoint) -> None:
        self._stored = stored
        self.config: ModelConfig = stored.config
        shapes = expected_shapes(self.config)
        self.total_bytes = sum(
            _w8a8_bytes(shape) if is_quantised(name) else stored.tensor(name).nbytes for name, shape in shapes.items()
        )

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name.

        Raises:
            MalformedModel: it is not there.
        """
        return self.rows(name, lambda whole: whole)

    def rows(self, name: str, pick: Callable[[RawTensor], RawTensor]) -> RawTensor:
        """Some rows of the tensor of that name, of which no others are quantised: a row's scale is its own.

        Args:
            name: as for ``tensor``, which raises the same.
            pick: from a tensor [...,N,K] as stored to whole rows of it.
        """
        raw = pick(self._stored.tensor(name))
        return to_w8a8(raw) if is_quantised(name) else raw

    def format(self, name: str) -> WeightFormat:
        """The format in which the tensor of that name is handed out; raises as ``tensor``."""
        return WeightFormat.W8A8 if is_quantised(name) else self._stored.format(name)

    def vocabulary(self) -> TokenTable:
        """What each token id stands for; raises as the checkpoint's own."""
        return self._stored.vocabulary()


def quantised(checkpoint: Checkpoint, quantization: str) -> Checkpoint:
    """The checkpoint, its linear layers quantised as asked.

    Raises:
        ConfigError: there is no such quantisation.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"--quantization must be one of {', '.join(QUANTIZATIONS)}, but is {quantization}.")
    return W8A8Checkpoint(checkpoint) if quantization == "w8a8" else checkpoint


def is_quantised(name: str) -> bool:
    """Whether a weight of that Hugging Face name is a linear layer's: ``model.layers.0.mlp.up_proj.weight``."""
    return name.endswith("_proj.weight")


def _w8a8_bytes(shape: Shape) -> int:
    *outer, columns = shape
    return prod(outer) * WeightFormat.W8A8.row_bytes(columns)
