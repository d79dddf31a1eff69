"""Encodes text in which control tokens are ordinary text, except those that the caller vouches for.

``Tokenizer`` builds one when a client first writes a control token. It is a copy of the tokenizer in which each control
token has another, secret name. So nothing in a text is a control token any more, and one that is meant is written by
its secret name: the library then splits and encodes all the rest exactly as it would have, in one call.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

from tokenizers import AddedToken, Tokenizer

from engine.errors import InvalidRequest
from engine.special_guard import is_broken_up

_BRACKET = "\U0001fffe"
"""A noncharacter around the secret names, and none of those that serve as marks."""


LONG_CHARS = 4096


def encode_ids(backend: Tokenizer, text: str) -> list[int]:
    """The library's ids of ``text``, with nothing put around them. Other threads go on meanwhile if it is long.

    Raises:
        InvalidRequest: the text holds a lone surrogate.
    """
    try:
        if len(text) > LONG_CHARS:  # a batch of one: ``encode`` keeps the interpreter to itself
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        else:
            ids = backend.encode(text, add_special_tokens=False).ids
    except TypeError:  # what the library says of a str that is not valid Unicode
        raise InvalidRequest(
            "The text holds half of a surrogate pair, which is not a character; send valid Unicode.",
            code="invalid_unicode",
        ) from None
    return ids


class InertEncoder:
    """A copy of ``backend`` whose control tokens go by secret names.

    Args:
        controls: their texts.
    """

    def __init__(self, backend: Tokenizer, controls: Collection[str]) -> None:
        added = backend.get_added_tokens_decoder()
        secret = secrets.token_hex(16)
        self._names = {
            token.content: f"{_BRACKET}{secret}{i:x}{_BRACKET}"
            for i, token in enumerate(added.values())
            if token.content in controls
        }
        self._copy = self._renamed_copy(backend)
        real_ids = {self._names.get(token.content, token.content): i for i, token in added.items()}
        self._real_ids = {i: real_ids[token.content] for i, token in self._copy.get_added_tokens_decoder().items()}
        unknown = backend.token_to_id(getattr(backend.model, "unk_token", None) or "")
        self._controls = {i: token.content for i, token in added.items() if token.content in controls and i != unknown}
        longest_first = sorted(added.values(), key=lambda token: len(token.content), reverse=True)
        self._added = re.compile("|".join(_pattern(token) for token in longest_first if token.content) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """The ids of ``text`` with no control token among them, but those written by their secret names.

        Raises:
            InvalidRequest: the text holds a lone surrogate, or a character that is a control token.
        """
        ids: list[int] = []
        for token_id in encode_ids(self._copy, text):
            if token_id in self._real_ids:
                ids.append(self._real_ids[token_id])
            elif token_id in self._controls:  # not matched as a whole, but arrived at by merges
                ids.extend(self._spelled(self._controls[token_id]))
            else:
                ids.append(token_id)
        return ids

    def vouch(self, text: str, mark: str | None) -> str:
        """``text`` with the control tokens that no ``mark`` breaks up by their secret names; ``encode`` takes those."""

        def rename(match: re.Match[str]) -> str:
            token = match[0]
            if mark is not None and len(token) == 1 and is_broken_up(text, match.end(), mark):
                return token
            return self._names.get(token, token)

        return self._added.sub(rename, text)

    def _renamed_copy(self, backend: Tokenizer) -> Tokenizer:
        """A tokenizer of the same parts, the vocabulary shared, not copied: only the added tokens are its own."""
        copy = Tokenizer(backend.model)
        if backend.normalizer is not None:
            copy.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            copy.pre_tokenizer = backend.pre_tokenizer
        copy.add_tokens([self._renamed(token) for _, token in sorted(backend.get_added_tokens_decoder().items())])
        return copy

    def _renamed(self, token: AddedToken) -> AddedToken:
        name = self._names.get(token.content)
        return AddedToken(
            name or token.content,
            single_word=token.single_word and name is None,  # of a renamed one, ``vouch`` decides
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=token.special,
        )

    def _spelled(self, token: str) -> list[int]:
        """Ids that show the same as the vocabulary's ``token``, which is a control token, without being one."""
        if len(token) < 2:
            raise InvalidRequest("The text holds a character that is a control token of this model; leave it out.")
        ids: list[int] = []
        for part in self._copy.model.tokenize(token[:1]) + self._copy.model.tokenize(token[1:]):
            ids.extend(self._spelled(part.value) if part.id in self._controls else [part.id])
        return ids


def _pattern(token: AddedToken) -> str:
    """Where the library would find ``token``."""
    pattern = re.escape(token.content)
    return rf"(?<!\w){pattern}(?!\w)" if token.single_word else pattern
