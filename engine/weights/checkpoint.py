"""What the model code needs of a checkpoint, whatever its file format.

Tensors go by their Hugging Face names (``model.layers.0.self_attn.q_proj.weight``), in Hugging Face layout: a weight
is [out, in], rotary halves are not interleaved. Routed experts are stacked:
``model.layers.0.mlp.experts.gate_proj.weight`` is [experts, out, in]. A checkpoint in another convention renames and
reorders rows as it hands a tensor out.
"""

from __future__ import annotations

from typing import Protocol

from engine.config import ModelConfig
from engine.token_table import TokenTable
from kernels.formats import RawTensor, WeightFormat


class Checkpoint(Protocol):
    """An opened model: its configuration and its tensors, read lazily."""

    @property
    def config(self) -> ModelConfig:
        """The model's configuration, complete and checked."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as stored."""

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name.

        Raises:
            MalformedModel: it is not there.
        """

    def format(self, name: str) -> WeightFormat:
        """The format in which ``tensor`` hands out the tensor of that name, without reading it.

        Raises:
            MalformedModel: it is not there.
        """

    def vocabulary(self) -> TokenTable:
        """What each token id stands for.

        Raises:
            ModelNotFound: the model comes without a tokenizer.
            MalformedModel: its tokenizer contradicts itself.
            UnsupportedModel: a kind of tokenizer that this build does not know.
        """
