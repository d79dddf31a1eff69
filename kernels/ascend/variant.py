"""Specialisations of ``paged_decode``: what a model's heads ask of it, and the scratch memory that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kernels.ascend.plan import BLOCK_SIZE, SPLIT
from kernels.ops import NoKernel

Dtype = Literal["fp16", "bf16", "fp32"]
"""Triton's names."""

HEAD_DIMS = ((64, 64), (128, 128), (192, 128), (256, 256))
"""Sizes of a head's keys and of its values."""
MAX_GROUP = 16


@dataclass(frozen=True)
class AttentionVariant:
    """One specialisation.

    Attributes:
        kv_heads: heads of keys; each has ``group`` heads of queries.
        k_dim: elements of a key and of a query; v_dim: of a value.
        dtype: of queries, keys, values and the result.
        scores: of Q Kᵀ on its way from matrix to vector cores.
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
    def rows(self) -> int:
        """Rows of a tile of scores: a power of two."""
        return max(self.head_rows, 1 << (self.queries * self.group - 1).bit_length())

    @property
    def head_rows(self) -> int:
        """Rows of one query's scores as vector cores have them: both get half."""
        return 8 if self.group <= 8 else 16

    def split_pointers(self) -> dict[str, str]:
        """The pointer arguments of ``paged_attention_split`` and what they point to."""
        return {
            **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), self.dtype),
            "block_table_ptr": "i32",
            **dict.fromkeys(("tile_seq_ptr", "tile_query_ptr", "tile_queries_ptr", "tile_len_ptr"), "i32"),
            **dict.fromkeys(("order_ptr", "task_tile_ptr", "task_split_ptr", "num_tasks_ptr"), "i32"),
            "scores_ptr": self.scores,
            "weights_ptr": self.dtype,
            "partial_ptr": "fp32",
            "stats_ptr": "fp32",
        }

    def split_scalars(self) -> dict[str, str]:
        """Its plain arguments."""
        return {"scale": "fp32", **dict.fromkeys(("q_query_stride", "q_head_stride", "window", "max_blocks"), "i32")}

    def split_constants(self, cores: int) -> dict[str, Any]:
        """Its constants, on so many matrix cores."""
        heads = {"KV_HEADS": self.kv_heads, "GROUP": self.group, "QUERIES": self.queries}
        heads |= {"HEAD_ROWS": self.head_rows, "ROWS": self.rows}
        return {**heads, "K_DIM": self.k_dim, "V_DIM": self.v_dim, "BLOCK": BLOCK_SIZE, "SPLIT": SPLIT, "CORES": cores}

    def combine_pointers(self) -> dict[str, str]:
        """The pointer arguments of ``paged_attention_combine``."""
        return {
            **dict.fromkeys(("partial_ptr", "stats_ptr", "sink_ptr"), "fp32"),
            **dict.fromkeys(("tile_query_ptr", "tile_queries_ptr"), "i32"),
            **dict.fromkeys(("tile_task_ptr", "tile_splits_ptr", "num_tiles_ptr"), "i32"),
            "out_ptr": self.dtype,
        }

    def combine_scalars(self) -> dict[str, str]:
        """Its plain arguments."""
        return {"out_query_stride": "i32", "out_head_stride": "i32"}

    def combine_constants(self, cores: int, *, has_sink: bool) -> dict[str, Any]:
        """Its constants, on so many vector cores."""
        heads = {"KV_HEADS": self.kv_heads, "GROUP": self.group, "HEAD_ROWS": self.head_rows, "ROWS": self.rows}
        return {**heads, "V_DIM": self.v_dim, "HAS_SINK": has_sink, "CORES": cores}

    def tile_elements(self, cores: int) -> int:
        """Elements of the scratch memory for scores, and of that for weights."""
        return cores * self.rows * SPLIT

    def partial_elements(self, num_tasks: int) -> int:
        """Elements of the partial sums of so many pairs of a tile and a split."""
        return num_tasks * self.kv_heads * self.rows * self.v_dim

    def stats_elements(self, num_tasks: int) -> int:
        """Elements of their maxima and sums of weights."""
        return num_tasks * self.kv_heads * 2 * self.rows
