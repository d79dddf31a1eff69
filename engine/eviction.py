"""Which cached block is given up next, and which ones have been; the block pool's, and known to nothing else."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator


class EvictionOrder:
    """Cached blocks that nobody reads, in the order in which they are given up; every call takes constant time.

    The least recently used goes first, but those to keep go after all others. At most ``max_kept`` are kept: one more,
    and the least recently used of them becomes one of the others, as if it had just been used. So kept blocks cannot
    push all others out, and a block once kept is not so for ever.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._others: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._to_keep: set[int] = set()

    def __len__(self) -> int:
        """Blocks that can be given up."""
        return len(self._others) + len(self._kept)

    def __iter__(self) -> Iterator[int]:
        """Blocks, the next one to be given up first."""
        yield from self._others
        yield from self._kept

    @property
    def num_kept(self) -> int:
        """Blocks that go after all others."""
        return len(self._kept)

    def add(self, block: int, *, keep: bool) -> None:
        """``block`` has lost its last reader. Once kept, it is kept after readers too that did not ask for it."""
        if keep:
            self._to_keep.add(block)
        if block not in self._to_keep:
            self._others[block] = None
            return
        self._kept[block] = None
        if len(self._kept) > self._max_kept:
            demoted, _ = self._kept.popitem(last=False)
            self._to_keep.discard(demoted)
            self._others[demoted] = None

    def take(self, block: int) -> None:
        """``block`` has a reader again."""
        del (self._kept if block in self._to_keep else self._others)[block]

    def pop(self) -> int:
        """Give a block up.

        Raises:
            KeyError: there is none.
        """
        block, _ = (self._others or self._kept).popitem(last=False)
        return block

    def forget(self, block: int) -> None:
        """The content of ``block``, which is not among these, is no longer what was to be kept."""
        self._to_keep.discard(block)


class EvictedNames:
    """Remembers names of blocks that were given up, 8 bytes each, in constant time.

    A table of a fixed size in which each name has one place: a later name of the same place takes it over, so that a
    name is forgotten sooner or later. One that was never added is taken for one that was once in 2**64 times.

    Args:
        num_places: names that fit, if none share a place.
    """

    def __init__(self, num_places: int) -> None:
        self._places = array("Q", bytes(8 * num_places))

    def add(self, name: bytes) -> None:
        """Remember ``name``, a hash of 8 bytes or more."""
        key = _key(name)
        self._places[key % len(self._places)] = key

    def __contains__(self, name: bytes) -> bool:
        """Whether it was added and is still remembered."""
        key = _key(name)
        return self._places[key % len(self._places)] == key


def _key(name: bytes) -> int:
    return int.from_bytes(name[:8], "big")
