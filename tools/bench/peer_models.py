"""``python -m tools.bench.peer_models GGUF FOLDER``: the model in the formats that peers want.

Writes ``hf`` (bfloat16, a Hugging Face folder) and, with the package ``gguf`` of the extra ``test``, ``bf16.gguf`` and
``q4_0.gguf``. The latter is requantised: a figure of speed, not of quality. OpenVINO's own tool makes its from ``hf``.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import ModelConfig
from engine.tokenizer import Tokenizer, load_tokenizer
from engine.weights.open import open_checkpoint
from engine.weights.shapes import expected_shapes
from kernels.reference.dequant import dequantise

_FILE_TYPES = {"BF16": 32, "Q4_0": 2}
"""``general.file_type`` of GGUF files."""


def write_folder(gguf: Path, folder: Path) -> None:
    """A dense Llama as a Hugging Face folder in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, tokenizer = open_checkpoint(gguf), load_tokenizer(gguf)
    config = checkpoint.config
    tensors = {
        name: _bfloat16(dequantise(checkpoint.tensor(name)))
        for name in expected_shapes(config)
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    _write_safetensors(folder / "model.safetensors", tensors)
    for name, content in (
        ("config.json", _config(config)),
        ("generation_config.json", {"eos_token_id": list(config.eos_token_ids)}),
        ("tokenizer_config.json", _tokenizer_config(tokenizer, config)),
    ):
        (folder / name).write_text(json.dumps(content, indent=1))
    (folder / "tokenizer.json").write_text(tokenizer._backend.to_str())


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_safetensors(path: Path, tensors: dict[str, npt.NDArray[np.uint16]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(data.shape), "data_offsets": [end, end + data.nbytes]}
        end += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for data in tensors.values():
            file.write(data.tobytes())


def _config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": config.eos_token_ids[0],
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def _tokenizer_config(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    named = {name: text for name, text in tokenizer.special_tokens.items() if isinstance(text, str)}
    length = config.max_position_embeddings
    template = {"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **named, **template}


def write_gguf(source: Path, target: Path, kind: str) -> None:
    """The same file with all matrices in another format: BF16 or Q4_0."""
    import gguf  # noqa: PLC0415  (an extra)

    reader, wanted = gguf.GGUFReader(source), gguf.GGMLQuantizationType[kind]
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if key == "general.file_type":
            writer.add_uint32(key, _FILE_TYPES[kind])
        elif not key.startswith("GGUF.") and key != "general.architecture":
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1] if is_array else None)
    for name, values in _float_tensors(reader):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _float_tensors(reader: Any) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    import gguf  # noqa: PLC0415  (an extra)

    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        yield tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    write_folder(source, folder / "hf")
    for kind in _FILE_TYPES:
        write_gguf(source, folder / f"{kind.lower()}.gguf", kind)


if __name__ == "__main__":
    main()
