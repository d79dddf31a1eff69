"""A GGUF file as a ``Checkpoint``: tensors renamed, and rows of q and k put into Hugging Face's order.

Used by ``open_checkpoint``. Opening checks every tensor's shape against the configuration. A tensor is a view of the
file, except q and k of the llama family, whose rows are picked in another order, still packed. Source: llama.cpp's
conversion of Hugging Face models, undone.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.errors import MalformedModel
from engine.gguf_vocabulary import read_vocabulary
from engine.token_table import TokenTable
from engine.weights.gguf import GGUFFile
from engine.weights.gguf_config import family_of, read_config
from engine.weights.mapped import shown
from engine.weights.shapes import Shape, check_no_others, check_shapes, expected_shapes
from kernels.formats import RawTensor, WeightFormat

_GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_ROTATED = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(?:weight|bias)")


class GGUFCheckpoint:
    """An opened GGUF model.

    Attributes:
        file: the file itself, with its vocabulary and chat template.
        config: the model's configuration, complete and checked.
        total_bytes: bytes of all tensors that the model needs, as stored.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check it whole.

        Raises:
            ModelNotFound: there is no such file.
            MalformedModel: it contradicts its format, its size or itself.
            UnsupportedModel: it needs something this build does not have.
        """
        self.file = GGUFFile.open(path)
        self._family = family_of(self.file)
        self.config = read_config(self.file, self._family)
        check_shapes(self.file.name, self.config, self._shape)
        names = {name: self._file_name(name) for name in expected_shapes(self.config)}
        used = {*names.values(), "rope_freqs.weight"}
        check_no_others(self.file.name, self.config.architecture, (n for n in self.file.tensors if n not in used))
        self.total_bytes = sum(self.file.tensors[name].nbytes for name in names.values() if name is not None)

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that Hugging Face name.

        Raises:
            MalformedModel: it is not there, or is a bias in blocks whose order must change.
        """
        raw = self.file.raw(self._found(name))
        rotated = _ROTATED.fullmatch(name) if self._family.interleaved_rope else None
        if rotated is None:
            return raw
        num_heads = self.config.num_heads if rotated[1] == "q" else self.config.num_kv_heads
        return _pick(raw, split_halves(num_heads, self.config.head_dim))

    def format(self, name: str) -> WeightFormat:
        """The format in which the tensor of that name is handed out; raises as ``tensor``."""
        return self.file.tensors[self._found(name)].format

    def vocabulary(self) -> TokenTable:
        """What each token id stands for. Raises as ``gguf_vocabulary.read_vocabulary`` does."""
        return read_vocabulary(self.file.metadata).table()

    def _shape(self, name: str) -> Shape | None:
        file_name = self._file_name(name)
        info = self.file.tensors.get(file_name) if file_name is not None else None
        return info.shape if info is not None else None

    def _found(self, name: str) -> str:
        """The file's name of a tensor that it has.

        Raises:
            MalformedModel: it has none.
        """
        file_name = self._file_name(name)
        if file_name is None or file_name not in self.file.tensors:
            raise MalformedModel(f"{self.file.name}: tensor {shown(name)} is missing.")
        return file_name

    def _file_name(self, name: str) -> str | None:
        """The file's name for a Hugging Face name, None if there cannot be one."""
        match = _LAYER_NAME.fullmatch(name)
        if match is None:
            return _GLOBAL.get(name)
        layer, part, suffix = match.groups()
        own = self._family.post_norm if part == "post_attention_layernorm" else _LAYER.get(part)
        return f"blk.{layer}.{own}.{suffix}" if own is not None else None


def split_halves(num_heads: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Which row of an interleaved weight is each row of one whose rotary halves lie apart.

    Row (head, half, i) of the result is row (head, i, half) of the file.

    Shapes: intp[num_heads * head_dim].
    """
    rows = np.arange(num_heads * head_dim, dtype=np.intp).reshape(num_heads, head_dim // 2, 2)
    return rows.transpose(0, 2, 1).reshape(-1)


def _pick(raw: RawTensor, index: npt.NDArray[np.intp]) -> RawTensor:
    """Rows of a matrix, or elements of a vector."""
    if len(raw.shape) > 1:
        return raw.rows(index)
    if raw.format.block_elements != 1:
        raise MalformedModel(f"a bias of {prod(raw.shape)} elements is stored in {raw.format.name} blocks.")
    elements = raw.data.reshape(-1, raw.format.block_bytes)
    return RawTensor(raw.shape, raw.format, elements[index].reshape(-1))
