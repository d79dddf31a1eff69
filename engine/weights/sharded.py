"""A rank's part of a checkpoint: ``--tensor-parallel-size``.

Projections to heads and to the inner size of MLPs and experts are cut by rows, those back to the hidden size by
columns, embedding and output layer by token ids; all else every rank has whole, so also the biases of what is cut by
columns, which are added once, after the sum. Cut is what is stored, still packed, also W8A8, whose scales are those of
the whole rows. Columns that would end amid a block are unpacked to float32: that loses nothing. What is quantised as it
is loaded is cut by rows before that, and by columns after it.
"""

from __future__ import annotations

from math import prod

import msgspec
import numpy as np

from engine.config import MAX_RANKS, ModelConfig
from engine.errors import UnsupportedModel
from engine.token_table import TokenTable
from engine.weights.checkpoint import Checkpoint
from engine.weights.quantised import W8A8Checkpoint
from engine.weights.shapes import Shape, expected_shapes
from kernels.formats import RawTensor, WeightFormat
from kernels.ops import Split
from kernels.reference.dequant import dequantise

_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "outputs"),
    **dict.fromkeys(("o_proj", "down_proj"), "inputs"),
    **dict.fromkeys(("embed_tokens", "lm_head"), "vocabulary"),
}


def split_of(name: str) -> Split:
    """How the tensor of a Hugging Face name is shared out: ``model.layers.0.mlp.up_proj.bias`` as its weight is."""
    return _SPLITS.get(name.split(".")[-2], "none")


class ShardedCheckpoint:
    """What one rank has of a checkpoint.

    Attributes:
        config: with this rank's heads and inner sizes; ``vocab_size`` is the whole vocabulary's.
        total_bytes: bytes of all its tensors as they are handed out.
    """

    def __init__(self, stored: Checkpoint, rank: int, size: int) -> None:
        """Of ``size`` ranks the one with this number.

        Raises:
            UnsupportedModel: the model cannot be cut into so many parts; the message says which numbers can be.
        """
        problem = _problem(stored.config, size)
        if problem:
            others = [str(number) for number in range(1, MAX_RANKS + 1) if not _problem(stored.config, number)]
            raise UnsupportedModel(
                f"--tensor-parallel-size {size}: this model has {problem}, which cannot be shared out so; "
                f"these can be had: {', '.join(others)}."
            )
        self._stored, self._rank, self._size = stored, rank, size
        self._whole = stored.config
        self.config = _config_of(stored.config, size)
        self.total_bytes = sum(self._num_bytes(name, shape) for name, shape in expected_shapes(self._whole).items())

    def tensor(self, name: str) -> RawTensor:
        """This rank's part of the tensor of that name.

        Raises:
            MalformedModel: it is not there.
        """
        if _axis(name) == -2 and isinstance(self._stored, W8A8Checkpoint):
            return self._stored.rows(name, lambda whole: self._cut(name, whole))
        return self._cut(name, self._stored.tensor(name))

    def format(self, name: str) -> WeightFormat:
        """The format in which the tensor of that name is handed out; raises as ``tensor``."""
        stored = self._stored.format(name)
        if _axis(name) != -1:
            return stored
        part = self._part(name, expected_shapes(self._whole)[name][-1])
        return stored if _is_whole_blocks(stored, part) else WeightFormat.F32

    def vocabulary(self) -> TokenTable:
        """What each token id stands for; raises as the checkpoint's own."""
        return self._stored.vocabulary()

    def _cut(self, name: str, raw: RawTensor) -> RawTensor:
        """This rank's part of a whole tensor."""
        axis = _axis(name)
        if axis is None:
            return raw
        part = self._part(name, raw.shape[axis])
        return _columns(raw, part) if axis == -1 else _rows(raw, part)

    def _part(self, name: str, length: int) -> slice:
        """This rank's rows or columns of so many."""
        part = name.split(".")[-2]
        if part in {"k_proj", "v_proj"}:
            return _heads_of(self._rank, self._size, self._whole.num_kv_heads, self._whole.head_dim)
        return slice(length * self._rank // self._size, length * (self._rank + 1) // self._size)

    def _num_bytes(self, name: str, shape: Shape) -> int:
        axis = _axis(name)
        lengths = list(shape)
        if axis is not None:
            part = self._part(name, shape[axis])
            lengths[axis] = part.stop - part.start
        return prod(lengths[:-1]) * self.format(name).row_bytes(lengths[-1])


def _problem(config: ModelConfig, size: int) -> str:
    """What of a model cannot be shared out between so many; empty if all can."""
    dense = not (config.moe_layers and all(config.moe_layers))
    inner = [config.intermediate_size] if dense else []
    if config.moe is not None:
        inner.append(config.moe.intermediate_size)
    problems = [f"an inner size of {width}" for width in inner if width % size]
    if config.num_heads % size:
        problems.append(f"{config.num_heads} heads")
    if config.num_kv_heads % size and size % config.num_kv_heads:
        problems.append(f"{config.num_kv_heads} heads of keys")
    if config.vocab_size < size:
        problems.append(f"{config.vocab_size} tokens in its vocabulary")
    return " and ".join(problems)


def _config_of(config: ModelConfig, size: int) -> ModelConfig:
    moe = config.moe
    return msgspec.structs.replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=max(config.num_kv_heads // size, 1),
        intermediate_size=config.intermediate_size // size,
        moe=None if moe is None else msgspec.structs.replace(moe, intermediate_size=moe.intermediate_size // size),
    )


def _heads_of(rank: int, size: int, num_heads: int, head_dim: int) -> slice:
    """A rank's heads of keys; where there are more ranks, several have the same one."""
    first = num_heads * rank // size
    return slice(first * head_dim, (first + max(num_heads // size, 1)) * head_dim)


def _axis(name: str) -> int | None:
    """Along which axis a tensor is cut: -2 rows, -1 columns or a bias' elements; None if it is not."""
    split, is_bias = split_of(name), name.endswith(".bias")
    if split == "none" or (split == "inputs" and is_bias):
        return None
    return -1 if split == "inputs" or is_bias else -2


def _rows(raw: RawTensor, part: slice) -> RawTensor:
    """Rows of [...,N,K]; a view."""
    return RawTensor((*raw.shape[:-2], part.stop - part.start, raw.shape[-1]), raw.format, raw.data[..., part, :])


def _is_whole_blocks(kind: WeightFormat, part: slice) -> bool:
    return not part.start % kind.block_elements and not part.stop % kind.block_elements


def _columns(raw: RawTensor, part: slice) -> RawTensor:
    """Columns of [...,N,K]; a copy, in float32 if they are not whole blocks."""
    kind, shape = raw.format, (*raw.shape[:-1], part.stop - part.start)
    if _is_whole_blocks(kind, part):
        return RawTensor(shape, kind, _blocks(raw, part))
    size = kind.block_elements
    around = slice(part.start // size * size, -(-part.stop // size) * size)
    floats = dequantise(RawTensor((*raw.shape[:-1], around.stop - around.start), kind, _blocks(raw, around)))
    cut = np.ascontiguousarray(floats[..., part.start - around.start : part.stop - around.start], dtype="<f4")
    return RawTensor(shape, WeightFormat.F32, cut.view(np.uint8))


def _blocks(raw: RawTensor, part: slice) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The bytes of rows whose blocks are those of some columns: their heads are kept."""
    kind = raw.format
    begin, end = (kind.head_bytes + at // kind.block_elements * kind.block_bytes for at in (part.start, part.stop))
    return np.concatenate([raw.data[..., : kind.head_bytes], raw.data[..., begin:end]], axis=-1)
