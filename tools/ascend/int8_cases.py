"""Cases of the kernels that make int8 of numbers: keys and values into the cache, and queries; held against NumPy.

Whole numbers and steps are to be those of ``cases.to_int8`` and ``cases.to_addends`` to the bit: divisions, products
and roundings are the same ones of float32. Of a row that is not finite only the step is held: it is NaN, so what is
made of the row will be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kernels.ascend.plan import BLOCK_SIZE
from kernels.ascend.variant import AttentionVariant
from tools.ascend.cases import ADDENDS, Array, rounded, to_addends, to_int8, widened

SPOILT = (float("nan"), float("inf"), float("-inf"))


@dataclass(frozen=True)
class StoreCase:
    """Tokens and the slots that they go to.

    Attributes:
        k, v: [T,kv_heads,k_dim or v_dim] of the variant's dtype.
        slots: i32[T], all different.
        num_blocks: of the cache.
    """

    variant: AttentionVariant
    k: Array
    v: Array
    slots: Array
    num_blocks: int

    def arguments(self) -> dict[str, Any]:
        """What ``store_keys_values`` is called with, by name, in order; caches anew, full of numbers of others."""
        variant, rng = self.variant, np.random.default_rng(1)
        places = self.num_blocks, BLOCK_SIZE, variant.kv_heads
        caches = [rng.integers(-128, 128, (*places, dim), dtype=np.int8) for dim in (variant.k_dim, variant.v_dim)]
        steps = [rng.random((places[0], places[2], places[1]), dtype=np.float32) for _ in range(2)]
        return {
            "k_ptr": self.k, "v_ptr": self.v, "slots_ptr": self.slots,
            "k_cache_ptr": caches[0], "v_cache_ptr": caches[1], "k_scale_ptr": steps[0], "v_scale_ptr": steps[1],
            "num_tokens": len(self.slots),
        }  # fmt: skip

    def check(self, stored: dict[str, Any]) -> None:
        """Compare the caches of arguments that a kernel has been run on.

        Raises:
            AssertionError: a number, a step, or a place of the cache that is no token's is another.
        """
        blocks, offsets = self.slots // BLOCK_SIZE, self.slots % BLOCK_SIZE
        wanted = self.arguments()
        for x, name in ((self.k, "k"), (self.v, "v")):
            codes, step, finite = _rows(x, to_int8)
            cache = wanted[f"{name}_cache_ptr"]
            cache[blocks, offsets] = np.where(finite[..., None], codes, stored[f"{name}_cache_ptr"][blocks, offsets])
            wanted[f"{name}_scale_ptr"][blocks, :, offsets] = step
        _check(stored, wanted, "k_cache_ptr", "v_cache_ptr", "k_scale_ptr", "v_scale_ptr")


@dataclass(frozen=True)
class QueryCase:
    """Queries [R,kv_heads,group,k_dim] of the variant's dtype."""

    variant: AttentionVariant
    q: Array

    def arguments(self) -> dict[str, Any]:
        """What ``split_queries`` is called with, by name, in order; its results anew."""
        num_queries, kv_heads, group, k_dim = self.q.shape
        return {
            "q_ptr": self.q,
            "addends_ptr": np.full((ADDENDS, kv_heads, num_queries, group, k_dim), 127, dtype=np.int8),
            "scale_ptr": np.full((kv_heads, num_queries, group), np.nan, dtype=np.float32),
            "num_queries": num_queries,
        }

    @cached_property
    def wanted(self) -> dict[str, Array]:
        """Results by name, and as ``finite`` which rows [kv_heads,R,group] are."""
        codes, step, finite = _rows(self.q.transpose(1, 0, 2, 3), to_addends)
        return {"addends_ptr": codes, "scale_ptr": step, "finite": finite}

    def check(self, found: dict[str, Any]) -> None:
        """Compare the results of arguments that a kernel has been run on.

        Raises:
            AssertionError: a number or a step is another.
        """
        kept = np.where(self.wanted["finite"][..., None], self.wanted["addends_ptr"], found["addends_ptr"])
        _check(found, {"addends_ptr": kept, "scale_ptr": self.wanted["scale_ptr"]}, "addends_ptr", "scale_ptr")


def store_case(variant: AttentionVariant, num_tokens: int, *, seed: int = 0, spoilt: bool = False) -> StoreCase:
    """Tokens in slots of random order, in a cache that is twice as large as they need, and more."""
    rng = np.random.default_rng(seed)
    num_blocks = 2 + 2 * num_tokens // BLOCK_SIZE
    slots = rng.permutation(num_blocks * BLOCK_SIZE)[:num_tokens].astype(np.int32)
    k, v = (_numbers(rng, (num_tokens, variant.kv_heads, d), spoilt=spoilt) for d in (variant.k_dim, variant.v_dim))
    return StoreCase(variant, rounded(k, variant.dtype), rounded(v, variant.dtype), slots, num_blocks)


def query_case(variant: AttentionVariant, num_queries: int, *, seed: int = 0, spoilt: bool = False) -> QueryCase:
    """Random queries."""
    rng = np.random.default_rng(seed)
    q = _numbers(rng, (num_queries, variant.kv_heads, variant.group, variant.k_dim), spoilt=spoilt)
    return QueryCase(variant, rounded(q, variant.dtype))


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], *, spoilt: bool) -> Array:
    """Rows of all sizes, one in eight of zeros; with ``spoilt`` one in four has a number that is not finite."""
    x = rng.standard_normal(shape).astype(np.float32)
    x *= np.float32(10) ** rng.integers(-4, 4, (*shape[:-1], 1)).astype(np.float32)
    x[rng.random(shape[:-1]) < 1 / 8] = 0
    if spoilt:
        rows = np.flatnonzero(rng.random(shape[:-1]) < 1 / 4)
        x.reshape(-1, shape[-1])[rows, rng.integers(0, shape[-1], len(rows))] = rng.choice(SPOILT, len(rows))
    return x


def _rows(x: Array, convert: Any) -> tuple[Array, Array, Array]:
    """Rows as ``convert`` gives them, their steps, and which are finite."""
    wide = widened(x).astype(np.float32)
    with np.errstate(invalid="ignore"):
        codes, step = convert(wide)
    return codes, step, np.isfinite(wide).all(-1)


def _check(found: dict[str, Any], wanted: dict[str, Any], *names: str) -> None:
    for name in names:
        off = np.flatnonzero(~((found[name] == wanted[name]) | (np.isnan(found[name]) & np.isnan(wanted[name]))))
        if len(off):
            got, right = (x[name].reshape(-1)[off[0]] for x in (found, wanted))
            raise AssertionError(f"{len(off)} of {name} differ; number {off[0]} is {got!r} instead of {right!r}")
