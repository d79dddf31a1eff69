"""A Hugging Face folder as a ``Checkpoint``: ``config.json`` and safetensors.

Used by ``open_checkpoint``. Opening checks every tensor's shape against the configuration. A tensor is a view of its
file; experts that lie one by one are stacked when they are asked for, and int8 rows are put behind their scales, which
lie in a tensor of their own (``up_proj.weight_scale`` beside ``up_proj.weight``). Nothing in the folder is ever run or
unpickled.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import numpy as np

from engine.errors import MalformedModel, ModelNotFound, UnsupportedModel
from engine.hf_vocabulary import read_tokenizer_json, read_vocabulary
from engine.token_table import TokenTable
from engine.weights.hf_config import read_config
from engine.weights.hf_quantization import read_quantization
from engine.weights.mapped import shown
from engine.weights.safetensors import TensorInfo, open_folder
from engine.weights.shapes import Shape, check_no_others, check_shapes, expected_shapes
from kernels.formats import RawTensor, WeightFormat

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

_LINEAR = re.compile(r"lm_head\.weight|model\.layers\.\d+\.(?:.+_proj|mlp\.gate)\.weight")
_EXPERTS = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(gate|up|down)_proj\.weight")


class HFCheckpoint:
    """An opened Hugging Face folder.

    Attributes:
        config: the model's configuration, complete and checked.
        total_bytes: bytes of all tensors that the model needs, as they are handed out.
    """

    def __init__(self, folder: Path) -> None:
        """Read the configuration, map the files, and check them against each other.

        Raises:
            ModelNotFound: no ``config.json``, or no weights.
            MalformedModel: a file contradicts its format, its size or another file.
            UnsupportedModel: pickled or quantised weights, or something else this build does not have.
        """
        self._folder = folder
        self._name = folder.name or str(folder)
        self.config = read_config(folder)
        self._has_int8 = read_quantization(folder)
        _refuse_pickles(folder)
        self._files = open_folder(folder)
        check_shapes(self._name, self.config, self._shape)
        names = expected_shapes(self.config)
        used = {part for name in names for part in self._parts(name)}
        int8 = sorted(part for part in used if self._info(part).format is None)
        for part in int8:
            self._check_int8(part)
        used.update(map(_scales_of, int8))
        others = (name for name in self._files if name not in used and not self._is_spare(name))
        check_no_others(self._name, self.config.architecture, others)
        self.total_bytes = sum(self._num_bytes(name, shape) for name, shape in names.items())

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name.

        Raises:
            MalformedModel: it is not there.
        """
        parts = self._found(name)
        raws = [self._raw(part) for part in parts]
        if parts == [name]:
            return raws[0]
        if _are_fused(parts):
            return _half(raws[0], name)
        shape = (len(raws), *raws[0].shape)
        return RawTensor(shape, raws[0].format, np.stack([raw.data for raw in raws]))

    def format(self, name: str) -> WeightFormat:
        """The format in which the tensor of that name is handed out; raises as ``tensor``."""
        return self._info(self._found(name)[0]).format or WeightFormat.W8A8

    def vocabulary(self) -> TokenTable:
        """What each token id stands for. Raises as ``hf_vocabulary``'s functions do."""
        return read_vocabulary(read_tokenizer_json(self._folder)).table()

    def _parts(self, name: str) -> list[str]:
        """The files' tensors that the named one is made of; empty if it is not there.

        Experts lie one by one (``experts.3.up_proj.weight``), or fused (``experts.gate_up_proj``, gate first, and
        ``experts.down_proj``), which transformers writes when asked not to keep the model's original layout.
        """
        experts = _EXPERTS.fullmatch(name)
        if experts is None or self.config.moe is None:
            return [name] if name in self._files else []
        prefix, part = experts.groups()
        fused = f"{prefix}.{'down' if part == 'down' else 'gate_up'}_proj"
        if fused in self._files:
            return [fused]
        single = [f"{prefix}.{index}.{part}_proj.weight" for index in range(self.config.moe.num_experts)]
        return single if all(part in self._files for part in single) else []

    def _found(self, name: str) -> list[str]:
        """As ``_parts``, but there are some.

        Raises:
            MalformedModel: the tensor is not there.
        """
        parts = self._parts(name)
        if not parts:
            raise MalformedModel(f"{self._name}: tensor {shown(name)} is missing.")
        return parts

    def _shape(self, name: str) -> Shape | None:
        parts = self._parts(name)
        if not parts:
            return None
        infos = [self._info(part) for part in parts]
        if parts == [name]:
            return infos[0].shape
        if _are_fused(parts):
            return _half_shape(infos[0].shape, name)
        if any((info.shape, info.format) != (infos[0].shape, infos[0].format) for info in infos):
            raise MalformedModel(f"{self._name}: the experts of {name} are not all of one shape and type.")
        return (len(infos), *infos[0].shape)

    def _info(self, part: str) -> TensorInfo:
        return self._files[part].tensors[part]

    def _num_bytes(self, name: str, shape: Shape) -> int:
        """Size of the tensor of that name as it is handed out."""
        *outer, columns = shape
        return prod(outer) * self.format(name).row_bytes(columns)

    def _raw(self, part: str) -> RawTensor:
        if self._info(part).format is not None:
            return self._files[part].raw(part)
        scales = _scales_of(part)
        return self._files[part].w8a8(part, self._files[scales].raw(scales))

    def _check_int8(self, part: str) -> None:
        """Check that int8 codes are a linear layer's of a folder that says so, and have a scale for each row."""
        source = f"{self._name}: tensor {part}"
        if not self._has_int8:
            raise UnsupportedModel(f"{source} is int8, but config.json has no quantization_config that says how.")
        if not _LINEAR.fullmatch(part):
            raise UnsupportedModel(f"{source} is int8; only linear layers that lie one by one are read so.")
        scales, rows = _scales_of(part), self._info(part).shape[0]
        if scales not in self._files:
            raise MalformedModel(f"{self._name}: tensor {scales} is missing; {part} is int8 and needs a scale a row.")
        info = self._info(scales)
        if info.shape != (rows, 1):
            raise MalformedModel(f"{self._name}: tensor {scales} has shape {info.shape}, but {part} needs {(rows, 1)}.")
        if info.format is None:
            raise MalformedModel(f"{self._name}: tensor {scales} is int8, but scales must be F32, F16 or BF16.")

    def _is_spare(self, name: str) -> bool:
        """Tensors that say nothing new: frequencies that older files store, and a tied head stored all the same."""
        tied = self.config.tie_word_embeddings and name == "lm_head.weight"
        return tied or name.endswith("rotary_emb.inv_freq")


def _scales_of(part: str) -> str:
    """What compressed-tensors calls the scales of a weight's rows."""
    return f"{part}_scale"


def _refuse_pickles(folder: Path) -> None:
    suffixes = {path.suffix: path.name for path in folder.iterdir()}
    if ".safetensors" in suffixes:
        return
    for suffix in PICKLES:
        if suffix in suffixes:
            raise UnsupportedModel(
                f"{folder} holds pickled weights ({shown(suffixes[suffix])}), which can run code when they are read; "
                "only safetensors are read: convert the model, or take a revision of it with safetensors."
            )
    raise ModelNotFound(f"{folder} has a config.json, but no .safetensors files.")


def _are_fused(parts: list[str]) -> bool:
    """Whether the parts are one fused stack of experts: those have no ``.weight`` in their names."""
    return not parts[0].endswith((".weight", ".bias"))


def _half(raw: RawTensor, name: str) -> RawTensor:
    """Gate or up out of a fused stack [experts, gate and up, in]; a down stack as it is."""
    shape = _half_shape(raw.shape, name)
    if shape == raw.shape:
        return raw
    rows = shape[1]
    data = raw.data[:, :rows] if ".gate_proj." in name else raw.data[:, rows:]
    return RawTensor(shape, raw.format, data)


def _half_shape(shape: Shape, name: str) -> Shape:
    """Shape of gate or up in a fused stack, whatever its rank may be; a down stack's own."""
    if ".down_proj." in name or len(shape) != 3 or shape[1] % 2:
        return shape
    return (shape[0], shape[1] // 2, shape[2])
