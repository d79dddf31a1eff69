"""What ``$ref`` refers to, within one document: a pointer, an anchor, or the identifier of a part. Nothing is fetched.

Called by ``schema``. A target is known by its location, the keys and indices that lead to it from the root.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from server.grammar.quantities import NotKept

Location = tuple[str | int, ...]


class Document:
    """A schema, and the parts of it that can be referred to."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._found: dict[str, Location] = {}
        self._named: dict[str, Location] | None = None

    def locate(self, reference: str) -> Location:
        """Where a reference leads.

        Raises:
            NotKept: out of the document, or to nothing in it.
        """
        if reference not in self._found:
            self._found[reference] = self._search(reference)
        return self._found[reference]

    def at(self, location: Location) -> Any:
        """What is there."""
        value: Any = self._root
        for key in location:
            value = value[key]
        return value

    def _search(self, reference: str) -> Location:
        base, _, fragment = reference.partition("#")
        if base and base == self._root.get("$id", self._root.get("id")):
            reference = f"#{fragment}"
        if reference in ("#", "#/"):
            return ()
        if reference.startswith("#/"):
            return self._follow(reference[2:])
        if self._named is None:
            self._named = _names_in(self._root)
        if (location := self._named.get(reference)) is None:
            raise NotKept(
                "leads to no anchor of the schema"
                if reference.startswith("#")
                else "leads out of the schema; put what it refers to under $defs"
            )
        return location

    def _follow(self, pointer: str) -> Location:
        value: Any = self._root
        location: list[str | int] = []
        for part in pointer.split("/"):
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            key: str | int = int(name) if isinstance(value, list) and name.isdecimal() and len(name) < 7 else name
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise NotKept("leads to nothing in the schema") from None
            location.append(key)
        return tuple(location)


def _names_in(root: dict[str, Any]) -> dict[str, Location]:
    """Anchors, as ``#name``, and identifiers of parts, with the first that has each."""
    named: dict[str, Location] = {}
    waiting: list[tuple[Any, Location]] = [(root, ())]
    while waiting:
        value, location = waiting.pop()
        if isinstance(value, dict):
            for word in ("$anchor", "$id", "id"):
                if isinstance(name := value.get(word), str):
                    named.setdefault(f"#{name}" if word == "$anchor" else name, location)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [(item, (*location, key)) for key, item in items if isinstance(item, (dict, list))]
    return named
