"""Where a walk over a client's schema has come to.

Made by ``schema``; ``one_schema`` goes on from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.errors import InvalidRequest

_PLAIN_NAME = re.compile(r"[\w$-]{1,64}")


class Path:
    """Where something is in the request. Written out only for a message."""

    __slots__ = ("_parent", "_piece")

    def __init__(self, parent: Path | None, piece: str | int) -> None:
        self._parent, self._piece = parent, piece

    def __truediv__(self, piece: str | int) -> Path:
        return Path(self, piece)

    def joined(self, pieces: Iterable[str | int]) -> Path:
        """Several steps further."""
        path = self
        for piece in pieces:
            path /= piece
        return path

    def __str__(self) -> str:
        if self._parent is None:
            return str(self._piece)
        if isinstance(self._piece, int):
            return f"{self._parent}[{self._piece}]"
        if _PLAIN_NAME.fullmatch(self._piece):
            return f"{self._parent}.{self._piece}"
        return f"{self._parent}[{json.dumps(self._piece[:64])}]"


@dataclass(frozen=True)
class Place:
    """How a schema was come to.

    Attributes:
        path: in the request.
        depth: how many schemas it is in, within its definition.
        within: the definition whose values it describes as a whole.
        forced: the definition each of whose values has a part that it describes.
        has_id: it is in a part with an identifier, which gives pointers another root.
    """

    path: Path
    depth: int = 1
    within: int | None = None
    forced: int | None = None
    has_id: bool = False

    def beside(self, *pieces: str | int, always: bool = True) -> Place:
        """Of a schema for the same value; for every such value, or for some."""
        forced = self.forced if always else None
        return replace(self, path=self.path.joined(pieces), depth=self.depth + 1, forced=forced)

    def inside(self, *pieces: str | int, always: bool) -> Place:
        """Of a schema for a part of the value; which every value has or some have."""
        forced = self.forced if always else None
        return replace(self, path=self.path.joined(pieces), depth=self.depth + 1, within=None, forced=forced)


def refused(path: Path, problem: str, code: str = "invalid_value") -> InvalidRequest:
    """A refusal, with a sentence that begins with the path."""
    return InvalidRequest(f"{path} {problem}", param=str(path), code=code)
