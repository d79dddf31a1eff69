"""Which model class serves which architecture."""

from __future__ import annotations

from engine.errors import UnsupportedModel
from engine.models.decoder import Decoder

ARCHITECTURES: dict[str, type[Decoder]] = {
    "LlamaForCausalLM": Decoder,
    "MistralForCausalLM": Decoder,
    "Qwen2ForCausalLM": Decoder,
    "Qwen3ForCausalLM": Decoder,
    "Qwen3MoeForCausalLM": Decoder,
    "SeedOssForCausalLM": Decoder,
}
"""Hugging Face class name -> model class."""


def model_class(architecture: str) -> type[Decoder]:
    """The class for an architecture.

    Raises:
        UnsupportedModel: naming those we serve.
    """
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(f"architecture {architecture} is not supported; these are: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[architecture]
