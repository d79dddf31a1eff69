"""Specialisations of ``paged_decode``: what a model's heads ask of it, and the scratch memory that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kernels.ascend.plan import BLOCK_SIZE, SPLIT
from kernels.ops import NoKernel

Dtype = Literal["fp16", "bf16", "fp32", "i8", "i32"]
"""Triton's names."""

HEAD_DIMS = ((64, 64), (128, 128), (192, 128), (256, 256))
"""Sizes of a head's keys and of its values."""
MAX_GROUP = 16
ADDENDS = 4
"""Numbers of int8 that a query's number is the sum of, where the cache is of int8."""


@dataclass(frozen=True)
class AttentionVariant:
    """One specialisation.

    Attributes:
        kv_heads: heads of keys; each has ``group`` heads of queries.
        k_dim: elements of a key and of a query; v_dim: of a value.
        dtype: of queries, keys, values and the result.
        scores: of Q Kᵀ on its way from matrix to vector cores; i32 where the cache is of int8.
        queries: up to so many make a tile; 1 for decoding.

    Raises:
        NoKernel: there is none for such heads.
    """

    kv_heads: int
    group: int
    k_dim: int
    v_dim: int
    dtype: Dtype
    scores: Dtype
    queries: int = 1

    def __post_init__(self) -> None:
        if (self.k_dim, self.v_dim) not in HEAD_DIMS:
            sizes = ", ".join(f"{k}" if k == v else f"{k}/{v}" for k, v in HEAD_DIMS)
            raise NoKernel(f"attention heads of {self.k_dim}/{self.v_dim} elements; there are kernels for {sizes}")
        if not 1 <= self.group <= MAX_GROUP:
            raise NoKernel(
                f"{self.group} heads of queries share a head of keys; there are kernels for 1 to {MAX_GROUP}"
            )

    @property
    def planes(self) -> int:
        """Rows of weights for one of scores: 2 of int8, else 1."""
        return 2 if self.scores == "i32" else 1

    @property
    def rows(self) -> int:
        """Rows of a tile of scores: a power of two."""
        return max(self.head_rows, power_of_two(self.queries * self.group))

    @property
    def sum_rows(self) -> int:
        """Rows of a tile of weights, and of their sums."""
        return self.planes * self.rows

    @property
    def head_rows(self) -> int:
        """Rows of one query's scores that vector cores have at a time: both get half, so there are two at least.

        Four where one would do, whose half the compiler makes an array of one number of, and takes it apart.
        """
        return 4 if self.group == 1 else power_of_two(self.group)

    @property
    def numbers(self) -> Dtype:
        """Of what the matrix cores multiply."""
        return "i8" if self.planes == 2 else self.dtype

    @property
    def sums(self) -> Dtype:
        """Of sums of weighted values on their way to the second pass."""
        return "i32" if self.planes == 2 else "fp32"

    def split_pointers(self) -> dict[str, str]:
        """The pointer arguments of ``paged_attention_split`` and what they point to."""
        return {
            **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), self.numbers),
            **dict.fromkeys(("q_scale_ptr", "k_scale_ptr", "v_scale_ptr"), "fp32"),
            "block_table_ptr": "i32",
            **dict.fromkeys(("tile_seq_ptr", "tile_query_ptr", "tile_queries_ptr", "tile_len_ptr"), "i32"),
            **dict.fromkeys(("order_ptr", "task_tile_ptr", "task_split_ptr", "num_tasks_ptr"), "i32"),
            "scores_ptr": self.scores,
            "weights_ptr": self.numbers,
            "partial_ptr": self.sums,
            "stats_ptr": "fp32",
        }

    def split_scalars(self) -> dict[str, str]:
        """Its plain arguments."""
        return {"scale": "fp32", **dict.fromkeys(("q_query_stride", "q_head_stride", "window", "max_blocks"), "i32")}

    def split_constants(self, cores: int) -> dict[str, Any]:
        """Its constants, on so many matrix cores."""
        heads = {"KV_HEADS": self.kv_heads, "GROUP": self.group, "QUERIES": self.queries, "PLANES": self.planes}
        heads |= {"HEAD_ROWS": self.head_rows, "ROWS": self.rows, "SUM_ROWS": self.sum_rows}
        return {**heads, "K_DIM": self.k_dim, "V_DIM": self.v_dim, "BLOCK": BLOCK_SIZE, "SPLIT": SPLIT, "CORES": cores}

    def combine_pointers(self) -> dict[str, str]:
        """The pointer arguments of ``paged_attention_combine``."""
        return {
            "partial_ptr": self.sums,
            **dict.fromkeys(("stats_ptr", "sink_ptr"), "fp32"),
            **dict.fromkeys(("tile_query_ptr", "tile_queries_ptr"), "i32"),
            **dict.fromkeys(("tile_task_ptr", "tile_splits_ptr", "num_tiles_ptr"), "i32"),
            "out_ptr": self.dtype,
        }

    def combine_scalars(self) -> dict[str, str]:
        """Its plain arguments."""
        return {"out_query_stride": "i32", "out_head_stride": "i32"}

    def combine_constants(self, cores: int, *, has_sink: bool) -> dict[str, Any]:
        """Its constants, on so many vector cores."""
        heads = {"KV_HEADS": self.kv_heads, "GROUP": self.group, "PLANES": self.planes}
        heads |= {"HEAD_ROWS": max(8, power_of_two(self.group)), "ROWS": self.rows}
        heads |= {"SUM_ROWS": self.sum_rows}
        return {**heads, "V_DIM": self.v_dim, "HAS_SINK": has_sink, "CORES": cores}

    def score_elements(self, cores: int) -> int:
        """Elements of the scratch memory for scores."""
        return cores * self.rows * SPLIT

    def weight_elements(self, cores: int) -> int:
        """Elements of that for weights."""
        return cores * self.sum_rows * SPLIT

    def partial_elements(self, num_tasks: int) -> int:
        """Elements of the partial sums of so many pairs of a tile and a split."""
        return num_tasks * self.kv_heads * self.sum_rows * self.v_dim

    def stats_elements(self, num_tasks: int) -> int:
        """Elements of their maxima, sums of weights and steps."""
        return num_tasks * self.kv_heads * (self.planes + 1) * self.rows

    def store_pointers(self) -> dict[str, str]:
        """The pointer arguments of ``int8_cache.store_keys_values`` and what they point to."""
        return {
            **dict.fromkeys(("k_ptr", "v_ptr"), self.dtype),
            "slots_ptr": "i32",
            **dict.fromkeys(("k_cache_ptr", "v_cache_ptr"), "i8"),
            **dict.fromkeys(("k_scale_ptr", "v_scale_ptr"), "fp32"),
        }

    def store_constants(self, cores: int) -> dict[str, Any]:
        """Its constants, on so many vector cores."""
        heads = {"KV_HEADS": self.kv_heads, "ROWS": power_of_two(self.kv_heads)}
        return {**heads, "K_DIM": self.k_dim, "V_DIM": self.v_dim, "BLOCK": BLOCK_SIZE, "CORES": cores}

    def query_pointers(self) -> dict[str, str]:
        """The pointer arguments of ``int8_cache.split_queries`` and what they point to."""
        return {"q_ptr": self.dtype, "addends_ptr": "i8", "scale_ptr": "fp32"}

    def query_constants(self, cores: int) -> dict[str, Any]:
        """Its constants, on so many vector cores."""
        heads = {"KV_HEADS": self.kv_heads, "GROUP": self.group, "ROWS": power_of_two(self.group)}
        return {**heads, "DIM": self.k_dim, "CORES": cores}


def power_of_two(number: int) -> int:
    """The least that is not less."""
    return 1 << (number - 1).bit_length()
