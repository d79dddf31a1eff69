"""What a tokenizer is made of, whichever kind of file it came from.

Filled by ``gguf_tokenizer`` and ``hf_tokenizer``, taken apart by ``Tokenizer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tokenizers

from engine.token_table import TokenTable


@dataclass(frozen=True)
class TokenizerParts:
    """A tokenizer's library object and the facts around it.

    Attributes:
        prefix_ids: tokens that a plain text begins with (the begin-of-sequence token, for models that want one).
        suffix_ids: tokens that it ends with.
        special_tokens: name -> text, as chat templates know them: ``bos_token``, ``eos_token``, ...
        eos_ids: tokens that the tokenizer's own files say end a text; may be empty.
        chat_template: Jinja source, or None.
    """

    backend: tokenizers.Tokenizer
    table: TokenTable
    prefix_ids: list[int]
    suffix_ids: list[int]
    special_tokens: Mapping[str, str]
    eos_ids: tuple[int, ...]
    chat_template: str | None
