"""``quantization_config`` of a ``config.json``: the one scheme that is read, and by name what is not.

Used by ``hf_checkpoint``. Read is what llm-compressor writes for W8A8 and vLLM serves: compressed-tensors in the format
``int-quantized``, weights int8 with one scale a channel, activations int8 with one scale a token, found as they come.
``targets`` and ``ignore`` say which layers are so; the types of the tensors say it too, and those are what is used: an
int8 weight is of the only scheme there is, a float weight is none. So no pattern out of a file is ever matched.
Source: ``QuantizationConfig`` and ``QuantizationArgs`` of the compressed-tensors package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from engine.errors import UnsupportedModel
from engine.weights.fields import Fields
from engine.weights.json_file import read_json
from engine.weights.mapped import shown

FORMAT = "int-quantized"
_MISSING: dict[str, object] = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
"""What compressed-tensors takes missing keys of a scheme for."""
_WEIGHTS: dict[str, object] = {**_MISSING, "strategy": "channel"}
_ACTIVATIONS: dict[str, object] = {**_MISSING, "strategy": "token", "dynamic": True}


def read_quantization(folder: Path) -> bool:
    """Whether the folder's linear layers may be int8.

    Raises:
        ModelNotFound, MalformedModel: there is no ``config.json``, or it is not JSON.
        UnsupportedModel: its weights are quantised in any other way; the key that says so is named.
    """
    root = Fields("config.json", read_json(folder / "config.json", dict[str, object]))
    if not root.has("quantization_config"):
        return False
    values = root.get("quantization_config")
    method = values.get("quant_method") if isinstance(values, dict) else None
    if method != "compressed-tensors":
        raise UnsupportedModel(
            f"config.json: weights quantised by {shown(method)} are not supported; take the model's unquantised folder "
            "or a GGUF file of it, or int8 weights and activations by compressed-tensors."
        )
    fields = _fields(root, "quantization_config")
    _require(fields, {"format": FORMAT})
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        _require_nothing(fields, key)
    groups = _fields(fields, "config_groups")
    names = cast("dict[str, object]", fields.get("config_groups"))
    if not names:
        fields.refuse("config_groups", "at least one group is needed")
    for name in names:
        _check_group(_fields(groups, name))
    return True


def _check_group(group: Fields) -> None:
    if group.has("format"):
        _require(group, {"format": FORMAT})
    _require_nothing(group, "output_activations")
    weights = _fields(group, "weights")
    by_channel = not weights.has("strategy") and weights.get("group_size") == -1
    _require(weights, {**_WEIGHTS, "strategy": None} if by_channel else _WEIGHTS)
    _require(_fields(group, "input_activations"), _ACTIVATIONS)


def _require(fields: Fields, wanted: Mapping[str, object]) -> None:
    """Refuse the first key that says anything else."""
    for key, want in wanted.items():
        value = fields.get(key) if fields.has(key) else _MISSING.get(key)
        if type(value) is not type(want) or value != want:
            fields.refuse(key, f"only {shown(want)} is read")


def _require_nothing(fields: Fields, key: str) -> None:
    """Refuse a key that has a value; an object without members is none, nor is one that says ``dense``."""
    value = fields.get(key)
    if value not in (None, {}) and not (isinstance(value, dict) and value.get("format") == "dense"):
        fields.refuse(key, "this build cannot apply it")


def _fields(outer: Fields, key: str) -> Fields:
    """An object inside another; errors name the way to it."""
    value = outer.get(key)
    if not isinstance(value, dict):
        outer.refuse(key, "only an object is read")
    return Fields(f"{outer.source}: {shown(key)}", value)
