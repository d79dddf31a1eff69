"""What npu_fused_infer_attention_score takes, and which keys each token sees. Sources: see ``attention``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tools.ascend.emulation.registry import refuse, require

NAME = "npu_fused_infer_attention_score"
MASK_SIZE = 2048
"""Side of the triangular mask that sparse modes 3 and 4 want, whatever the lengths."""
MAX_HEADS = 256
MAX_GROUP = 64
MAX_CACHE_ROW = 65535
MAX_TND_SEQUENCES = 4096
MAX_SEQUENCES = 65536
MAX_DIM = 512
MAX_TND_DIM = 256
FAULTY_MASK = 512
"""One mask row for a single query is ignored beyond this position, without an error (vllm-ascend issue 15503)."""


@dataclass(frozen=True)
class Plan:
    """A call that keeps the rules: where each token lies and what it sees.

    Attributes:
        layout: TND, BNSD or BSND.
        query_starts: first row of each sequence, for TND.
        kv_starts: first key of each sequence, for TND without a block table.
        cache_rows: whether the paged cache is [blocks, block_size, KV_N * D] rather than [blocks, KV_N, block_size, D].
        before, after: how far a token sees around the key at its own position, None for no limit.
        hidden: bool [B, Q_S, KV_S] of an explicit mask.
    """

    layout: str
    num_sequences: int
    query_lengths: list[int]
    kv_lengths: list[int]
    query_starts: list[int]
    kv_starts: list[int]
    kv_heads: int
    block_table: torch.Tensor | None
    block_size: int
    cache_rows: bool
    before: int | None
    after: int | None
    hidden: torch.Tensor | None

    def row(self, sequence: int, token: int) -> Any:
        """Index of a token's heads [N, D] in the query."""
        if self.layout == "TND":
            return self.query_starts[sequence] + token
        return (sequence, slice(None), token) if self.layout == "BNSD" else (sequence, token)

    def lse_row(self, sequence: int, token: int) -> Any:
        """Index of a token's heads [N, 1] in the lse."""
        return self.row(sequence, token) if self.layout == "TND" else (sequence, slice(None), token)

    def seen(self, sequence: int, token: int) -> torch.Tensor:
        """Indices of the keys that a token sees, ascending."""
        length = self.kv_lengths[sequence]
        own = token + length - self.query_lengths[sequence]
        first = 0 if self.before is None else max(0, own - self.before)
        last = length if self.after is None else min(length, own + self.after + 1)
        keys = torch.arange(first, max(first, last))
        return keys if self.hidden is None else keys[~self.hidden[sequence, token, keys]]

    def keys_and_values(
        self, sequence: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A sequence's keys and values, float32 [KV_N, L, D]."""
        return self._gather(sequence, key), self._gather(sequence, value)

    def _gather(self, sequence: int, tensor: torch.Tensor) -> torch.Tensor:
        length = self.kv_lengths[sequence]
        if self.block_table is not None:
            blocks = self.block_table[sequence, : -(-length // self.block_size)].to(torch.int64)
            if self.cache_rows:
                rows = tensor[blocks].reshape(-1, self.kv_heads, tensor.shape[-1] // self.kv_heads).transpose(0, 1)
            else:
                rows = tensor[blocks].transpose(0, 1).reshape(self.kv_heads, -1, tensor.shape[-1])
        elif self.layout == "TND":
            start = self.kv_starts[sequence]
            rows = tensor[start : start + length].transpose(0, 1)
        else:
            rows = tensor[sequence] if self.layout == "BNSD" else tensor[sequence].transpose(0, 1)
        return rows[:, :length].to(torch.float32).contiguous()


def plan(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    atten_mask: torch.Tensor | None,
    lengths: list[int] | None,
    kv_lengths: list[int] | None,
    block_table: torch.Tensor | None,
    num_heads: int,
    pre_tokens: int,
    next_tokens: int,
    layout: str,
    num_kv_heads: int,
    sparse_mode: int,
    inner_precise: int,
    block_size: int,
) -> Plan:
    """The call as a plan.

    Raises:
        RuntimeError: the documentation says that the device does not take it.
    """
    kv_heads = num_kv_heads or num_heads
    _check_tensors(query, key, value, layout)
    _check_heads(query, num_heads, kv_heads, layout)
    tokens = 1 if layout == "TND" else query.shape[1 if layout == "BSND" else 2]
    count, own, starts = _query_lengths(query, lengths, layout, tokens)
    if block_table is None:
        _check_plain(key, query, kv_heads, layout)
        keys, kv_starts = _plain_lengths(key, kv_lengths, layout, count)
    else:
        keys, kv_starts = _paged_lengths(kv_lengths, count), [0] * count
        _check_paged(query, key, kv_heads, layout, tokens, block_table, block_size, keys)
    before, after = _check_sparse(atten_mask, sparse_mode, pre_tokens, next_tokens, layout, tokens, own, keys)
    reach = key.shape[1 if layout == "BSND" else 2] if block_table is None and layout != "TND" else 0
    if block_table is not None:
        reach = -(-max(keys, default=0) // block_size) * block_size
    hidden = _explicit_mask(atten_mask, sparse_mode, count, tokens, reach)
    _check_precision(inner_precise, query.dtype, layout, tokens, num_heads == kv_heads)
    return Plan(
        layout, count, own, keys, starts, kv_starts, kv_heads, block_table, block_size, key.dim() == 3, before, after,
        hidden,
    )  # fmt: skip


def _check_tensors(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: str) -> None:
    require(layout in {"TND", "BNSD", "BSND"}, NAME, f'input_layout "{layout}" is not emulated')
    require(query.dim() == (3 if layout == "TND" else 4), NAME, f"query {list(query.shape)} is not {layout}")
    require(query.dtype in {torch.float16, torch.bfloat16}, NAME, f"query of {query.dtype} is not supported")
    require(query.dtype == key.dtype == value.dtype, NAME, "query, key and value must have one dtype")
    require(query.numel() > 0, NAME, "an empty query is not emulated")
    require(key.shape == value.shape, NAME, f"key {list(key.shape)} and value {list(value.shape)} must have one shape")
    for what, tensor in (("query", query), ("key", key), ("value", value)):
        require(tensor.is_contiguous(), NAME, f"{what} must be contiguous")


def _check_heads(query: torch.Tensor, num_heads: int, kv_heads: int, layout: str) -> None:
    heads = query.shape[1] if layout in {"TND", "BNSD"} else query.shape[2]
    require(
        heads == num_heads <= MAX_HEADS, NAME, f"num_heads is {num_heads}, but query {list(query.shape)} is {layout}"
    )
    require(kv_heads > 0 and num_heads % kv_heads == 0, NAME, f"{num_heads} heads do not share {kv_heads} evenly")
    require(num_heads // kv_heads <= MAX_GROUP, NAME, f"at most {MAX_GROUP} heads may share one of keys")
    dim, most = query.shape[-1], MAX_TND_DIM if layout == "TND" else MAX_DIM
    require(dim % 16 == 0 and dim <= most, NAME, f"D must be a multiple of 16 up to {most} in {layout}, but is {dim}")
    fits = layout != "BSND" or num_heads * dim < MAX_CACHE_ROW
    require(fits, NAME, f"N * D must be below {MAX_CACHE_ROW} in BSND")


def _query_lengths(
    query: torch.Tensor, lengths: list[int] | None, layout: str, tokens: int
) -> tuple[int, list[int], list[int]]:
    """Number of sequences, their query lengths, and their first rows."""
    if layout == "TND":
        if not lengths:
            refuse(NAME, "actual_seq_lengths is needed in TND")
        require(len(lengths) <= MAX_TND_SEQUENCES, NAME, f"there may be at most {MAX_TND_SEQUENCES} sequences in TND")
        return len(lengths), *_from_sums("actual_seq_lengths", lengths, len(query))
    count = len(query)
    require(count <= MAX_SEQUENCES, NAME, f"there may be at most {MAX_SEQUENCES} sequences")
    if tokens == 1:  # where the argument has no effect
        return count, [1] * count, []
    return count, _per_sequence("actual_seq_lengths", lengths, count, tokens), []


def _plain_lengths(
    key: torch.Tensor, lengths: list[int] | None, layout: str, count: int
) -> tuple[list[int], list[int]]:
    """Numbers of keys, and the first key of each sequence."""
    if layout == "TND":
        if not lengths or len(lengths) != count:
            refuse(NAME, "actual_seq_lengths_kv must have as many elements as actual_seq_lengths")
        return _from_sums("actual_seq_lengths_kv", lengths, len(key))
    stored = key.shape[1 if layout == "BSND" else 2]
    return _per_sequence("actual_seq_lengths_kv", lengths, count, stored), []


def _paged_lengths(lengths: list[int] | None, count: int) -> list[int]:
    """Numbers of keys; with a block table they are lengths in every layout, never sums."""
    if not lengths:
        refuse(NAME, "actual_seq_lengths_kv is needed with a block_table")
    require(len(lengths) == count, NAME, f"actual_seq_lengths_kv must have {count} elements, but has {len(lengths)}")
    require(min(lengths) >= 0, NAME, "actual_seq_lengths_kv must not be negative")
    return list(lengths)


def _from_sums(what: str, sums: list[int], total: int) -> tuple[list[int], list[int]]:
    starts = [0, *sums[:-1]]
    lengths = [end - start for start, end in zip(starts, sums, strict=True)]
    require(min(lengths) >= 0, NAME, f"{what} must not fall: in TND its elements are sums")
    require(sums[-1] == total, NAME, f"{what} must end in {total}, the number of rows, but ends in {sums[-1]}")
    return lengths, starts


def _per_sequence(what: str, lengths: list[int] | None, count: int, most: int) -> list[int]:
    if not lengths:
        return [most] * count
    require(len(lengths) == 1 or len(lengths) >= count, NAME, f"{what} must have 1 or {count} elements")
    chosen = list(lengths) * count if len(lengths) == 1 else list(lengths[:count])
    require(min(chosen) >= 0 and max(chosen) <= most, NAME, f"{what} must be from 0 to {most}")
    return chosen


def _check_plain(key: torch.Tensor, query: torch.Tensor, kv_heads: int, layout: str) -> None:
    require(key.dim() == query.dim(), NAME, f"key {list(key.shape)} is not {layout}")
    heads = key.shape[1] if layout in {"TND", "BNSD"} else key.shape[2]
    require(heads == kv_heads, NAME, f"num_key_value_heads is {kv_heads}, but key {list(key.shape)} is {layout}")
    require(key.shape[-1] == query.shape[-1], NAME, "query and key must have one head dimension")
    require(layout == "TND" or len(key) == len(query), NAME, "query and key must have one number of sequences")


def _check_paged(
    query: torch.Tensor,
    key: torch.Tensor,
    kv_heads: int,
    layout: str,
    tokens: int,
    block_table: torch.Tensor,
    block_size: int,
    kv_lengths: list[int],
) -> None:
    dim = query.shape[-1]
    rows, heads = (block_size, kv_heads * dim), (kv_heads, block_size, dim)
    taken = (rows, heads) if layout == "BNSD" else (rows,)
    wanted = " or ".join(f"[blocks, {', '.join(map(str, shape))}]" for shape in taken)
    require(tuple(key.shape[1:]) in taken, NAME, f"the cache must be {wanted} in {layout}, but is {list(key.shape)}")
    fits = key.dim() == 4 or key.shape[2] <= MAX_CACHE_ROW
    require(fits, NAME, f"KV_N * D must not exceed {MAX_CACHE_ROW} in this cache")
    step, most = (16, 128) if layout == "TND" else (16, 512) if tokens == 1 else (128, 512)
    good = 0 < block_size <= most and block_size % step == 0
    require(good, NAME, f"block_size must be a multiple of {step} up to {most} here, but is {block_size}")
    require(block_table.dtype == torch.int32, NAME, f"block_table must be int32, but is {block_table.dtype}")
    require(block_table.dim() == 2 and block_table.numel() > 0, NAME, "block_table must have 2 dimensions and elements")
    require(block_table.is_contiguous(), NAME, "block_table must be contiguous")
    used = [-(-length // block_size) for length in kv_lengths]
    fits = len(block_table) == len(kv_lengths) and block_table.shape[1] >= max(used)
    require(
        fits, NAME, f"block_table must be [{len(kv_lengths)}, {max(used)} or more], but is {list(block_table.shape)}"
    )
    for sequence, blocks in enumerate(used):
        ids = block_table[sequence, :blocks]
        inside = bool(((ids >= 0) & (ids < len(key))).all())
        require(inside, NAME, f"block_table leads out of the cache for sequence {sequence}")


def _check_sparse(
    mask: torch.Tensor | None,
    mode: int,
    pre_tokens: int,
    next_tokens: int,
    layout: str,
    tokens: int,
    lengths: list[int],
    kv_lengths: list[int],
) -> tuple[int | None, int | None]:
    """How far a token sees before and after its own key."""
    require(mode in {0, 3, 4}, NAME, f"sparse_mode {mode} is not emulated")
    if mode == 0:
        require(layout != "TND" or mask is None, NAME, "sparse_mode 0 takes no atten_mask in TND")
        return None, None
    effective = layout == "TND" or tokens > 1
    require(effective, NAME, f"sparse_mode {mode} has no effect on single queries in {layout}; it must be 0")
    if mask is None:
        refuse(NAME, f"sparse_mode {mode} needs an atten_mask")
    require(mask.dtype in {torch.bool, torch.int8, torch.uint8}, NAME, f"atten_mask of {mask.dtype} is not supported")
    sides = (MASK_SIZE, MASK_SIZE)
    require(tuple(mask.shape) in {sides, (1, *sides), (1, 1, *sides)}, NAME, f"atten_mask must be {list(sides)}")
    require(mask.is_contiguous(), NAME, "atten_mask must be contiguous")
    above = torch.ones(sides, dtype=torch.bool).triu_(1)
    require(
        torch.equal(mask.reshape(sides).to(torch.bool), above), NAME, "atten_mask must hide what is above the diagonal"
    )
    if mode == 3:
        short = all(length <= keys for length, keys in zip(lengths, kv_lengths, strict=True))
        require(short, NAME, "sparse_mode 3 needs as many keys as queries in each sequence")
        return None, 0
    pairs = zip(lengths, kv_lengths, strict=True)
    wide = all(pre_tokens >= -length and next_tokens >= -keys for length, keys in pairs)
    require(
        wide and pre_tokens + next_tokens >= 0,
        NAME,
        f"pre_tokens {pre_tokens} and next_tokens {next_tokens} are no band",
    )
    return pre_tokens, next_tokens


def _explicit_mask(mask: torch.Tensor | None, mode: int, count: int, tokens: int, reach: int) -> torch.Tensor | None:
    """The mask of sparse_mode 0, bool [B, Q_S, KV_S], True where a key is hidden."""
    if mask is None or mode != 0:
        return None
    require(mask.dtype in {torch.bool, torch.int8, torch.uint8}, NAME, f"atten_mask of {mask.dtype} is not supported")
    require(mask.is_contiguous(), NAME, "atten_mask must be contiguous")
    good = mask.dim() == 4 and tuple(mask.shape[:3]) == (count, 1, tokens)
    require(good, NAME, f"only an atten_mask [{count}, 1, {tokens}, keys] is emulated, not {list(mask.shape)}")
    require(mask.shape[3] >= reach, NAME, f"atten_mask must reach over {reach} keys, but has {mask.shape[3]}")
    faulty = count == tokens == 1 and mask.shape[3] > FAULTY_MASK
    require(not faulty, NAME, f"a single row of atten_mask is reported to be ignored beyond key {FAULTY_MASK}")
    return mask[:, 0].to(torch.bool)


def _check_precision(inner_precise: int, dtype: torch.dtype, layout: str, tokens: int, ungrouped: bool) -> None:
    allowed = {0, 1} if tokens == 1 else {0, 1, 2, 3}
    if layout == "TND":
        allowed = {0, 1} if ungrouped and dtype == torch.float16 else {0}
    require(inner_precise in allowed, NAME, f"inner_precise must be one of {sorted(allowed)} here")
