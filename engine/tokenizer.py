"""Text to token ids and back.

``Tokenizer`` is used by the server to encode prompts and by the engine to turn ids into text; it never changes after it
is built, and may be used from any thread (encoding releases the GIL). It wraps the ``tokenizers`` library and decides
the one thing that library leaves open: which parts of a text may become control tokens. Of a plain text (``encode``)
all may, of a rendered chat (``guard``, ``encode_rendered``) only what the template wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from engine.gguf_tokenizer import build_gguf_tokenizer
from engine.hf_tokenizer import load_hf_tokenizer
from engine.inert_encoder import InertEncoder, encode_ids
from engine.special_guard import Guarded, SpecialGuard, remove_mark
from engine.tokenizer_parts import TokenizerParts
from engine.weights.gguf import GGUFFile

_MARKER = re.compile(r"<.*>|\[.*\]", re.DOTALL)
"""How added tokens look that structure a chat; others are runs of blanks and the like."""


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model: a ``.gguf`` file or a Hugging Face folder.

    Raises:
        ModelNotFound: there is no such file, or no tokenizer in the folder.
        MalformedModel: a file that contradicts itself.
        UnsupportedModel: a kind of tokenizer that this build does not know.
    """
    if path.is_dir():
        return Tokenizer.from_folder(path)
    return Tokenizer.from_gguf(GGUFFile.open(path).metadata)


class Tokenizer:
    """One model's tokenizer.

    Attributes:
        special_tokens: name -> text, as chat templates know them: ``bos_token``, ``eos_token``, ...
        eos_ids: tokens that the tokenizer's own files say end a text; may be empty.
        chat_template: the model's Jinja template, or None.
    """

    def __init__(self, parts: TokenizerParts, meant: str = "") -> None:
        """``meant``: see ``guarding``."""
        self._parts = parts
        self._backend = parts.backend
        self._table = parts.table
        self._prefix_ids = parts.prefix_ids
        self._suffix_ids = parts.suffix_ids
        added = parts.backend.get_added_tokens_decoder().values()
        control = [
            token
            for token in added
            if token.special or (token.content in meant and _MARKER.fullmatch(token.content) is not None)
        ]
        self._guarded = frozenset(token.content for token in control if token.content)
        # A control token that is looked for in normalised text may be there although its own text is not.
        self._always_inert = parts.backend.normalizer is not None and any(token.normalized for token in control)
        self._guard = SpecialGuard(self._guarded)
        self.special_tokens: Mapping[str, str] = MappingProxyType(dict(parts.special_tokens))
        self.eos_ids = parts.eos_ids
        self.chat_template = parts.chat_template

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The tokenizer of a Hugging Face folder. Raises as ``load_tokenizer`` does."""
        return cls(load_hf_tokenizer(folder))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Self:
        """The tokenizer in a GGUF file's metadata. Raises as ``load_tokenizer`` does."""
        return cls(build_gguf_tokenizer(metadata))

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id; a model's own vocabulary may be padded to more."""
        return len(self._table)

    @property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token, so at most as many characters."""
        return max(self._table.longest, 1)

    @property
    def special_ids(self) -> frozenset[int]:
        """All control tokens, which add nothing to an answer unless they are to be shown."""
        return self._table.special

    @property
    def bos_token(self) -> str | None:
        """Text of the token that begins a sequence."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Text of the token that ends a sequence."""
        return self.special_tokens.get("eos_token")

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """The ids of a trusted text: control tokens written in it count as such.

        Args:
            text: any valid Unicode.
            add_special: put the tokens around it that the model expects around a plain text; a rendered chat
                template has them already.

        Raises:
            InvalidRequest: the text holds a lone surrogate.
        """
        return self._ends(encode_ids(self._backend, text), add_special)

    def guarding(self, meant: str) -> Tokenizer:
        """The same tokenizer, but in chats more tokens count as control tokens, which clients cannot write.

        Models have tokens that structure a chat, or an answer, and yet are shown as text: ``<think>``, ``<tool_call>``.

        Args:
            meant: a text with such tokens in it, such as the model's chat template; only those that stand in brackets,
                ``<>`` or ``[]``, are taken.
        """
        return Tokenizer(self._parts, meant)

    def guard(self, value: Any) -> Guarded:
        """Make messages (and tools) safe to render: see ``special_guard``.

        Raises:
            InvalidRequest: the texts leave no character free that could serve as a mark.
        """
        return self._guard.protect(value)

    def encode_rendered(self, rendered: str, mark: str | None) -> list[int]:
        """The ids of a rendered chat: the template's control tokens count as such, those of clients are text.

        Args:
            rendered: what the template made of guarded messages.
            mark: as ``guard`` returned it with those messages.

        Raises:
            InvalidRequest: the text holds a lone surrogate, or a client's character that is a control token.
        """
        if mark is None and not self._always_inert:
            return encode_ids(self._backend, rendered)
        vouched = self._inert.vouch(rendered, mark)
        return self._inert.encode(vouched if mark is None else remove_mark(vouched, mark))

    def prepare(self) -> None:
        """Build what is otherwise built when it is first needed, which takes a few tenths of a second."""
        _ = self._inert

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of a sequence of ids; what is not valid UTF-8 becomes U+FFFD."""
        table = self._table
        shown = (i for i in ids if not (skip_special and i in table.special))
        return b"".join(map(table.token_bytes, shown)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, a control token's too; none for an id outside the vocabulary."""
        return self._table.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """One token as a readable text, its invalid UTF-8 replaced."""
        return self._table.token_bytes(token_id).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which adds nothing to an answer."""
        return token_id in self._table.special

    @cached_property
    def _inert(self) -> InertEncoder:
        return InertEncoder(self._backend, self._guarded)

    def _ends(self, ids: list[int], add_special: bool) -> list[int]:
        return [*self._prefix_ids, *ids, *self._suffix_ids] if add_special else ids
