"""The paged KV cache's bookkeeping: which block belongs to whom, and which blocks may be reused.

Called by the scheduler and the engine, in one thread. A block is in exactly one of three states:

    used     reference count > 0: one or more sequences read it
    cached   reference count 0, content known by its hash: reusable by a prompt with the same prefix, or evictable
    free     reference count 0, content forgotten

A full block is named by SHA-256 over its tokens and the name of the block before it,
the first one over a salt of the tenant's, so equal names mean equal prefixes of one tenant. A block's content depends
on its prefix alone (the rule of the house), so sharing one cannot change an answer. Full blocks are shared; of a block
that only begins as the prompt goes on, a copy is made, and the prompt computes from where they differ. Such a block be
the last one of a prompt, named by the tokens that it has. So the n choices of one request compute their prompt once,
and a token each; where the prefix cache is off too, under a salt of the request's.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from engine.config import CacheConfig
from engine.errors import UpwellError
from engine.eviction import EvictedNames, EvictionOrder
from engine.sequence import Sequence
from engine.types import CacheMiss

MAX_CANDIDATES = 8
"""How many blocks are looked at for one that begins as a prompt goes on."""
KEPT_SHARE = 2
"""One in so many blocks may be kept in the cache before all others."""
EVICTED_NAMES, MIN_EVICTED_NAMES = 4, 4096
"""Places for names of evicted blocks: so many for each block, so that 4 in 5 are still known after as many evictions as
there are blocks; and 32 KB of them for small pools."""


class BlockPoolCorrupt(UpwellError):
    """The pool's own books do not add up; raised by ``BlockPool.check``."""


class _Content(NamedTuple):
    """What a block holds that may be copied: the name of the block before it, and its own tokens, maybe not all."""

    parent: bytes
    token_ids: list[int]


class BlockPool:
    """Allocates, shares, caches and evicts blocks of ``block_size`` token slots."""

    def __init__(self, config: CacheConfig) -> None:
        self.num_blocks = config.num_blocks
        self.block_size = config.block_size
        self._caching = config.enable_prefix_caching
        self._ref_counts = [0] * config.num_blocks
        self._hash_of: list[bytes | None] = [None] * config.num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._contents: dict[int, _Content] = {}
        self._followers: dict[tuple[bytes, int], dict[int, None]] = {}  # parent and first token -> blocks, oldest first
        self._copies: list[tuple[int, int]] = []
        self._free = list(range(config.num_blocks - 1, -1, -1))
        self._cached = EvictionOrder(config.num_blocks // KEPT_SHARE)
        self._evicted = EvictedNames(max(EVICTED_NAMES * config.num_blocks, MIN_EVICTED_NAMES))

    @property
    def num_free(self) -> int:
        """Blocks without content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks without a user whose content may be reused."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - len(self._free) - len(self._cached)

    def fits(self, num_tokens: int) -> bool:
        """Whether a sequence of that many tokens could ever be held, alone in the pool."""
        return self._blocks_for(num_tokens) <= self.num_blocks

    def admit(self, seq: Sequence) -> bool:
        """Give ``seq``, which holds no block, room for all its tokens; reuse cached blocks for its prefix.

        Tokens whose logits are wanted are left to compute, the last one at least. Sets ``seq.num_computed`` to what was
        found.

        Returns:
            False, and nothing has changed, if there is no room.
        """
        matched = self._match(seq) if self._shares(seq) else []
        source, num_alike = self._begins_like(seq, len(matched)) if self._shares(seq) else (-1, 0)
        idle = sum(self._ref_counts[block] == 0 for block in matched)
        needed = self._blocks_for(len(seq.token_ids)) - len(matched)
        if needed > len(self._free) + len(self._cached) - idle:
            return False
        for block in matched:
            self._take(block)
        seq.block_ids = array("i", matched)
        seq.num_committed = len(matched)
        seq.num_computed = len(matched) * self.block_size + num_alike
        self.grow(seq, len(seq.token_ids))
        if num_alike:
            self._copies.append((source, seq.block_ids[len(matched)]))
        return True

    def why_missed(self, seq: Sequence) -> CacheMiss | None:
        """Why no more of ``seq`` was found, which has just been admitted; None if all but its last token was."""
        if seq.num_remaining == 1:
            return None
        if seq.prompt_logprobs is not None and seq.prompt_logprobs.num_left:
            return CacheMiss.PROMPT_LOGPROBS
        if not self._caching:
            return CacheMiss.PREFIX_CACHING_OFF
        if self._name(seq, seq.num_committed, len(seq.token_ids)) in self._evicted:
            return CacheMiss.EVICTED
        return CacheMiss.DIFFERS if seq.num_computed else CacheMiss.NEW

    def take_copies(self) -> list[tuple[int, int]]:
        """Blocks (from, to) whose content is to be copied before the next step computes anything, in this order.

        A source may have been given to someone else meanwhile, even as the target of a later copy: it is overwritten by
        nothing before its own copy is made.
        """
        copies, self._copies = self._copies, []
        return copies

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Make room for ``seq`` up to ``num_tokens``.

        Returns:
            False, and nothing has changed, if there is no room.
        """
        needed = self._blocks_for(num_tokens) - len(seq.block_ids)
        if needed <= 0:
            return True
        if needed > len(self._free) + len(self._cached):
            return False
        for _ in range(needed):
            seq.block_ids.append(self._allocate())
        return True

    def room_of(self, seq: Sequence) -> int:
        """How many tokens ``seq`` has room for in its own blocks and the free ones, with all that is cached left."""
        return (len(seq.block_ids) + len(self._free)) * self.block_size

    def shrink(self, seq: Sequence) -> None:
        """Take back the blocks that ``seq`` has beyond its tokens; nobody else has them, and none has a name."""
        for _ in range(len(seq.block_ids) - self._blocks_for(len(seq.token_ids))):
            block = seq.block_ids.pop()
            self._ref_counts[block] -= 1
            self._free.append(block)

    def commit(self, seq: Sequence) -> None:
        """Offer the blocks that ``seq`` has computed in full to later prompts, and the last one of its prompt."""
        num_full = seq.num_computed // self.block_size
        if (num_full <= seq.num_committed and seq.num_computed != seq.num_prompt) or not self._shares(seq):
            return
        self._extend_hashes(seq, num_full)
        for index in range(seq.num_committed, num_full):
            self._offer(seq, index, seq.block_hashes[index])
        seq.num_committed = max(num_full, seq.num_committed)
        if seq.num_computed == seq.num_prompt and seq.num_computed % self.block_size:
            self._offer(seq, num_full, self._name(seq, num_full, seq.num_computed))

    def release(self, seq: Sequence, *, forget: bool = False) -> None:
        """Take every block back from ``seq``; the one way a sequence loses its blocks.

        Later blocks become evictable before earlier ones, so that a prefix shrinks from its end.

        Args:
            seq: holds nothing afterwards.
            forget: its content is not to be trusted; no later prompt may find it.
        """
        for block in reversed(seq.block_ids):
            if forget:
                self._forget(block)
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if self._hash_of[block] is None:
                    self._free.append(block)
                else:
                    self._cached.add(block, keep=seq.request.keep_cached)
        seq.block_ids = array("i")
        seq.num_computed = 0
        seq.num_committed = 0

    def check(self, holders: Iterable[Sequence]) -> None:
        """Hold the books against the sequences that are alive.

        Raises:
            BlockPoolCorrupt: a block is lost, in two states, miscounted, or found under a wrong name.
        """
        counts = [0] * self.num_blocks
        for seq in holders:
            if len(seq.block_ids) * self.block_size < seq.num_computed:
                raise BlockPoolCorrupt(
                    f"request {seq.request.request_id} has computed more tokens than it has room for"
                )
            for block in seq.block_ids:
                counts[block] += 1
        if counts != self._ref_counts:
            raise BlockPoolCorrupt("reference counts differ from what the living sequences hold")
        idle = [block for block in range(self.num_blocks) if counts[block] == 0]
        if sorted([*self._free, *self._cached]) != idle:
            raise BlockPoolCorrupt("free and cached blocks are not exactly those that nobody holds")
        if any(self._hash_of[block] is None for block in self._cached):
            raise BlockPoolCorrupt("a cached block has no name")
        if any(self._hash_of[block] is not None for block in self._free):
            raise BlockPoolCorrupt("a free block still has a name")
        named = {block: name for block, name in enumerate(self._hash_of) if name is not None}
        if {block: name for name, block in self._by_hash.items()} != named:
            raise BlockPoolCorrupt("names and blocks do not point at each other")
        if self._cached.num_kept * KEPT_SHARE > self.num_blocks:
            raise BlockPoolCorrupt("more blocks are kept than may be")
        if named != {block: chain_hash(held.parent, held.token_ids) for block, held in self._contents.items()}:
            raise BlockPoolCorrupt("a block has another name than its content")
        followers = {block: key for key, blocks in self._followers.items() for block in blocks}
        if followers != {block: (held.parent, held.token_ids[0]) for block, held in self._contents.items()}:
            raise BlockPoolCorrupt("a named block is not found after the one before it")

    def _shares(self, seq: Sequence) -> bool:
        """Whether others may read what ``seq`` has computed."""
        return self._caching or bool(seq.request.group)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _match(self, seq: Sequence) -> list[int]:
        """Blocks of the longest cached prefix that will do."""
        limit = seq.num_findable // self.block_size
        matched: list[int] = []
        for index in range(limit):
            self._extend_hashes(seq, index + 1)
            block = self._by_hash.get(seq.block_hashes[index])
            if block is None:
                break
            matched.append(block)
        return matched

    def _begins_like(self, seq: Sequence, num_matched: int) -> tuple[int, int]:
        """A block that begins as ``seq`` goes on after its matched blocks, and how many tokens they have in common.

        Of several, one of the latest few.
        """
        start = num_matched * self.block_size
        wanted = seq.token_ids[start : min(start + self.block_size, seq.num_findable)]
        if not wanted:
            return -1, 0
        blocks = self._followers.get((self._parent(seq, num_matched), wanted[0]), {})
        best, num_alike = -1, 0
        for block in islice(reversed(blocks), MAX_CANDIDATES):
            length = _num_alike(wanted, self._contents[block].token_ids)
            if length > num_alike:
                best, num_alike = block, length
        return best, num_alike

    def _offer(self, seq: Sequence, index: int, name: bytes) -> None:
        """Let the block at ``index``, as far as it has been computed, be found under ``name``."""
        if name in self._by_hash:  # a twin, computed at the same time or copied, keeps the name
            return
        block, start = seq.block_ids[index], index * self.block_size
        part = self._hash_of[block]
        if part is not None:
            self._evicted.add(part)  # once this block has gone, so has what it began with
            self._forget(block)
        self._by_hash[name] = block
        self._hash_of[block] = name
        tokens = seq.token_ids[start : min(start + self.block_size, seq.num_computed)]
        content = self._contents[block] = _Content(self._parent(seq, index), tokens)
        self._followers.setdefault((content.parent, tokens[0]), {})[block] = None

    def _name(self, seq: Sequence, index: int, end: int) -> bytes:
        """The name of the block at ``index``, whose tokens end before ``end`` if it is not full."""
        start = index * self.block_size
        return chain_hash(self._parent(seq, index), seq.token_ids[start : min(start + self.block_size, end)])

    def _parent(self, seq: Sequence, index: int) -> bytes:
        """The name of the block before the one at ``index``."""
        if index:
            return seq.block_hashes[index - 1]
        return root_hash(seq.request.tenant if self._caching else seq.request.group)

    def _extend_hashes(self, seq: Sequence, num_blocks: int) -> None:
        for index in range(len(seq.block_hashes), num_blocks):
            seq.block_hashes.append(self._name(seq, index, len(seq.token_ids)))

    def _allocate(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block = self._cached.pop()
            name = self._hash_of[block]
            if name is not None:
                self._evicted.add(name)
            self._forget(block)
        self._ref_counts[block] = 1
        return block

    def _take(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            self._cached.take(block)
        self._ref_counts[block] += 1

    def _forget(self, block: int) -> None:
        """Nobody finds the content of ``block``, which is not among the cached ones, any longer."""
        self._cached.forget(block)
        name = self._hash_of[block]
        if name is not None:
            del self._by_hash[name]
            self._hash_of[block] = None
            content = self._contents.pop(block)
            followers = self._followers[content.parent, content.token_ids[0]]
            del followers[block]
            if not followers:
                del self._followers[content.parent, content.token_ids[0]]


def _num_alike(left: list[int], right: list[int]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def root_hash(tenant: str) -> bytes:
    """The name before a tenant's first block: SHA-256, 32 bytes."""
    return hashlib.sha256(b"upwell prefix cache\0" + tenant.encode()).digest()


def chain_hash(parent: bytes, token_ids: list[int]) -> bytes:
    """The name of a full block: SHA-256 over its predecessor's name and its own tokens, as 32-bit integers."""
    return hashlib.sha256(parent + array("i", token_ids).tobytes()).digest()
