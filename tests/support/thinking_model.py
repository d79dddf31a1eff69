"""A tiny model with random weights that thinks: by its chat template, and by the tokens of its vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.tokenizer import Tokenizer, load_tokenizer
from engine.types import EngineReady
from tests.support.tiny_models import GOLDEN

THINK_ID, END_THINK_ID, END_ID = 256, 257, 258
TURNS = (
    "{% for m in messages %}{{ m.role }}: {% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)
SWITCHED = TURNS + (
    "{% if add_generation_prompt %}assistant: "
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Thinks if it likes to, or not at all; as Qwen3's."""
OPENED = TURNS + "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
"""Always thinks; as DeepSeek-R1's."""


def thinking_model(folder: Path, markers: str) -> tuple[Tokenizer, Engine, EngineReady]:
    """The model that ``write_thinking_model`` writes."""
    write_thinking_model(folder, markers, SWITCHED)
    config = EngineConfig(model_path=str(folder), device="reference", max_model_len=1000)
    engine, ready = load_engine(config, lambda *_: None)
    return load_tokenizer(folder), engine, ready


def write_thinking_model(folder: Path, markers: str, template: str) -> None:
    """The golden tiny Mistral with another vocabulary.

    Args:
        folder: where its files go.
        markers: "control" or "added" tokens, or "text" where they are neither.
        template: of its chats.
    """
    shutil.copytree(GOLDEN / "tiny-mistral", folder, dirs_exist_ok=True)
    source = json.loads((folder / "tokenizer.json").read_text())
    for token, text in zip(source["added_tokens"], ("<think>", "</think>"), strict=False):
        if markers != "text":
            source["model"]["vocab"].pop(token["content"], None)
            token.update(content=text, special=markers == "control")
    (folder / "tokenizer.json").write_text(json.dumps(source))
    (folder / "chat_template.jinja").write_text(template)
