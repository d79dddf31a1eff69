"""Typed, bounded reading of a model's configuration values; every error names the file and the key.

Used for GGUF metadata and for ``config.json`` alike, so that a missing, ill-typed or senseless value ends the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from engine.errors import MalformedModel, UnsupportedModel
from engine.weights.mapped import shown

MAX_LAYERS = 1024
MAX_HEADS = 1 << 12
MAX_WIDTH = 1 << 22
"""Of a vocabulary, a hidden size, and every other width of a tensor."""
MAX_CONTEXT = 1 << 30


class Fields:
    """Values by key, from one file. A key whose value is None counts as missing.

    Attributes:
        source: the file, for errors.
    """

    def __init__(self, source: str, values: Mapping[str, object]) -> None:
        self.source = source
        self._values = values

    def get(self, key: str) -> object:
        """The value as it is, or None."""
        return self._values.get(key)

    def has(self, key: str) -> bool:
        """Whether the key has a value."""
        return self.get(key) is not None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer between ``low`` and ``high``; ``default`` stands in for a missing one, None for none.

        Raises:
            MalformedModel: missing, no integer, or out of bounds.
        """
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(key, f"must be an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number between ``low`` and ``high``, as ``integer``."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, "must be a number")
        if not low <= value <= high:
            self.fail(key, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """True or false, as ``integer``."""
        value = self._present(key, default)
        if not isinstance(value, bool):
            self.fail(key, "must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string, as ``integer``."""
        value = self._present(key, default)
        if not isinstance(value, str):
            self.fail(key, "must be a string")
        return value

    def fail(self, key: str, what: str) -> NoReturn:
        """Refuse a value.

        Raises:
            MalformedModel: always.
        """
        raise MalformedModel(f"{self.source}: {shown(key)} {what}, but is {shown(self.get(key))}.")

    def refuse(self, key: str, what: str) -> NoReturn:
        """Refuse a sound value that this build cannot serve.

        Raises:
            UnsupportedModel: always.
        """
        raise UnsupportedModel(f"{self.source}: {shown(key)} is {shown(self.get(key))}; {what}.")

    def _present(self, key: str, default: object) -> object:
        value = self.get(key)
        if value is not None:
            return value
        if default is None:
            raise MalformedModel(f"{self.source}: {shown(key)} is missing.")
        return default


def check_heads(fields: Fields, kv_key: str, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Check that query heads fall evenly to the KV heads, and that a head has two rotary halves.

    Raises:
        MalformedModel: they do not.
    """
    if num_heads % num_kv_heads:
        fields.fail(kv_key, f"must divide the {num_heads} query heads")
    if head_dim % 2:
        raise MalformedModel(f"{fields.source}: heads of {head_dim} elements have no two rotary halves.")
