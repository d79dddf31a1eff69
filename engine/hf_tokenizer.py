"""Loads a tokenizer from a Hugging Face folder: ``tokenizer.json`` and the facts beside it.

Called by ``Tokenizer.from_folder``. Which tokens exist (``hf_vocabulary``) and how text is split comes from
``tokenizer.json`` alone; ``tokenizer_config.json`` names the special tokens and may hold the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.errors import MalformedModel, UnsupportedModel
from engine.hf_vocabulary import read_text, read_tokenizer_json, read_vocabulary
from engine.token_table import TokenTable
from engine.tokenizer_parts import TokenizerParts


def load_hf_tokenizer(folder: Path) -> TokenizerParts:
    """The tokenizer of a model folder.

    Raises:
        ModelNotFound: there is no ``tokenizer.json``.
        MalformedModel: a file that cannot be read or contradicts itself.
        UnsupportedModel: a decoder or post-processor that this build does not know.
    """
    source = read_tokenizer_json(folder)
    config = _parse_object(read_text(folder / "tokenizer_config.json") or "{}", "tokenizer_config.json")
    backend = _load_backend(source)
    prefix_ids, suffix_ids = _ends(backend)
    special_tokens = _special_tokens(config)
    return TokenizerParts(
        backend=backend,
        table=_table(backend, source),
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        special_tokens=special_tokens,
        eos_ids=_eos_ids(backend, special_tokens),
        chat_template=_chat_template(folder, config),
    )


def _load_backend(source: str) -> Tokenizer:
    try:
        backend = Tokenizer.from_str(source)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception, or a Rust panic, which is not even that
        raise MalformedModel(f"tokenizer.json cannot be read: {str(error)[:200]}.") from error
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):  # the same text must always give the same ids
        backend.model.dropout = None
    return backend


def _table(backend: Tokenizer, source: str) -> TokenTable:
    """The table that the engine reads from the same file, held against the library."""
    vocabulary = read_vocabulary(source)
    found = {token: token_id for token_id, token in enumerate(vocabulary.tokens) if token is not None}
    if found != backend.get_vocab(with_added_tokens=True):
        raise MalformedModel("tokenizer.json is not clear about the ids of its tokens.")
    # Of a token that is listed twice the library names what the last entry says, and treats it as special if any does.
    if not vocabulary.special >= {i for i, token in backend.get_added_tokens_decoder().items() if token.special}:
        raise MalformedModel("tokenizer.json is not clear about which tokens are special.")
    return vocabulary.table()


def _ends(backend: Tokenizer) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and after a text.

    Raises:
        UnsupportedModel: it does something other than that.
    """
    for text in ("a", "1", "的", " "):
        plain = backend.encode(text, add_special_tokens=False).ids
        whole = backend.encode(text, add_special_tokens=True).ids
        for start in range(len(whole) - len(plain) + 1):
            end = start + len(plain)
            if plain and whole[start:end] == plain:
                return whole[:start], whole[end:]
    raise UnsupportedModel("The post-processor of tokenizer.json does something else than put tokens around a text.")


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Every ``*_token`` of tokenizer_config.json, which gives each as a text or as an object with its content."""
    tokens: dict[str, str] = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _eos_ids(backend: Tokenizer, special_tokens: Mapping[str, str]) -> tuple[int, ...]:
    if "eos_token" not in special_tokens:
        return ()
    token_id = backend.token_to_id(special_tokens["eos_token"])
    if token_id is None:
        raise MalformedModel("tokenizer_config.json names an eos_token that tokenizer.json does not have.")
    return (token_id,)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template: a file of its own, or in tokenizer_config.json as one text or as a list of named ones."""
    template: object = read_text(folder / "chat_template.jinja")
    if template is None:
        template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise MalformedModel("The chat_template in tokenizer_config.json is neither a text nor a list of named texts.")
    return template


def _parse_object(source: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise MalformedModel(f"{name} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise MalformedModel(f"{name} does not hold a JSON object.")
    return value
