"""Attention on the device, to be launched again and again: by our kernel, by the fused operation, and from a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.ascend.steps.bench import SHORT, Array, Bench, Tensor
from deploy.ascend.steps.report import Report
from kernels.ascend.attention import FUSED_MASK, PROMPT_ROWS, PaddedCache, PlannedBatch
from kernels.ascend.plan import BLOCK_SIZE, NO_WINDOW
from kernels.ascend.variant import Dtype
from tools.ascend.cases import AttentionCase, attention_case, variant_of

Lengths = Sequence[int | tuple[int, int]]
"""Of sequences: tokens of which one is a query, or (tokens, of which queries)."""


@dataclass(frozen=True)
class Launch:
    """Inputs on the device, and what of them the host knows.

    Attributes:
        q: [T,heads,d]; k, v: [blocks,128,kv_heads,d]; all on the device, as are
        k_scale, v_scale: f32[blocks,kv_heads,128] of keys and values of int8, else None.
        block_table: i32[B,M], q_starts: i32[B+1], kv_lens: i32[B]; on the host.
        scores: as what they travel, i32 with a cache of int8.
    """

    bench: Bench
    q: Tensor
    k: Tensor
    v: Tensor
    block_table: Array
    q_starts: Array
    kv_lens: Array
    window: int = NO_WINDOW
    scores: Dtype = "fp32"
    k_scale: Tensor = None
    v_scale: Tensor = None

    @property
    def scale(self) -> float:
        """Of scores."""
        return float(self.q.shape[2] ** -0.5)

    def ours(self) -> Callable[[], Tensor]:
        """Our kernel through the backend's table: [T,heads,d]; plans are made at the first call."""
        cache = PaddedCache(self.k, self.v, self.q.shape[2], self.k_scale, self.v_scale)
        tables = {"i32": lambda: self.bench.int8_ops, "fp16": lambda: self.bench.half_scores_ops}
        ops = tables.get(self.scores, lambda: self.bench.ops)()
        batch = PlannedBatch(self.q_starts, self.kv_lens, self.bench.upload(self.block_table))
        window = None if self.window == NO_WINDOW else self.window
        return lambda: ops.paged_attention(self.q, cache, batch, self.scale, window)

    def fused(self) -> Callable[[], Tensor]:
        """npu_fused_infer_attention_score: TND, paged, causal where a sequence has more queries than one.

        Lengths of queries are sums; those of keys, with a block table, are not.
        """
        bench, causal = self.bench, {}
        if len(self.q) > len(self.kv_lens):
            above = np.triu(np.ones((FUSED_MASK, FUSED_MASK), dtype=np.int8), 1)
            causal = {"sparse_mode": 3, "atten_mask": bench.upload(above).to(bench.torch.bool)}
        k, v = (cache.reshape(*cache.shape[:2], -1) for cache in (self.k, self.v))
        table = bench.upload(np.maximum(self.block_table, 0))
        return lambda: bench.npu.npu_fused_infer_attention_score(
            self.q, k, v, block_table=table, input_layout="TND", block_size=BLOCK_SIZE, scale=self.scale,
            num_heads=self.q.shape[1], num_key_value_heads=self.k.shape[2],
            actual_seq_lengths=self.q_starts[1:].tolist(), actual_seq_lengths_kv=self.kv_lens.tolist(), **causal,
        )[0]  # fmt: skip


def case_of(
    bench: Bench, group: int, dim: int, lengths: Lengths, *, scores: Dtype = "fp32", **more: Any
) -> AttentionCase:
    """A case in the bench's dtype, for scores of i32 with a cache of int8; prompts in tiles as the backend has them."""
    queries = 1 if all(isinstance(length, int) for length in lengths) else max(1, PROMPT_ROWS // group)
    variant = variant_of(group, dim, dim, SHORT[bench.dtype], queries=queries, scores=scores)
    return attention_case(variant, lengths, **more)


def launch_of(bench: Bench, case: AttentionCase) -> Launch:
    """A case on the device."""
    seen = case.block_table, case.q_starts, case.kv_lens, case.window, case.variant.scores
    if case.k_scale is None:
        q, k, v = (bench.upload(array, bench.floats) for array in (case.q, case.k, case.v))
        return Launch(bench, q, k, v, *seen)
    scales = (bench.upload(array, bench.torch.float32) for array in (case.k_scale, case.v_scale))
    return Launch(bench, bench.upload(case.q), bench.upload(case.k), bench.upload(case.v), *seen, *scales)


def decoding(bench: Bench, batch: int, context: int, *, scores: Dtype = "fp32") -> tuple[Launch, int]:
    """Random sequences of one length, a query each, their blocks in random order; and the bytes of keys and values."""
    torch, sizes = bench.torch, bench.sizes
    group, dim = sizes.heads[0]
    blocks = -(-context // BLOCK_SIZE)
    options: dict[str, Any] = {"dtype": bench.floats, "device": bench.platform.device}
    shape = (batch * blocks, BLOCK_SIZE, sizes.kv_heads, dim)
    k, v = (torch.empty(shape, **options).normal_() for _ in range(2))
    steps = ()
    if scores == "i32":
        k, v = ((x * 32).clamp(-127, 127).to(torch.int8) for x in (k, v))
        floats = {**options, "dtype": torch.float32}
        steps = tuple(torch.full((len(k), sizes.kv_heads, BLOCK_SIZE), 1 / 32, **floats) for _ in range(2))
    q = torch.empty(batch, sizes.kv_heads * group, dim, **options).normal_()
    order = np.random.default_rng(0).permutation(batch * blocks).astype(np.int32).reshape(batch, blocks)
    lens = np.full(batch, context, dtype=np.int32)
    launch = Launch(bench, q, k, v, order, np.arange(batch + 1, dtype=np.int32), lens, NO_WINDOW, scores, *steps)
    return launch, 2 * batch * context * sizes.kv_heads * dim * k.element_size()


def array_of(tensor: Tensor) -> Array:
    """A result as ``AttentionCase.check`` takes it: bfloat16 as uint16."""
    import torch  # noqa: PLC0415

    host = tensor.cpu().contiguous()
    return host.view(torch.int16).numpy().view(np.uint16) if host.dtype == torch.bfloat16 else host.numpy()


@dataclass(frozen=True)
class Times:
    """Seconds of one launch: as Python makes them, and from a graph that holds many, or None if that failed."""

    eager_s: float
    graph_s: float | None

    @property
    def best_s(self) -> float:
        """The smaller one."""
        return self.eager_s if self.graph_s is None else min(self.eager_s, self.graph_s)

    def cells(self) -> tuple[str, str]:
        """Both in microseconds."""
        return f"{self.eager_s * 1e6:.1f}", "-" if self.graph_s is None else f"{self.graph_s * 1e6:.1f}"


def times_of(bench: Bench, report: Report, what: str, run: Callable[[], Tensor]) -> Times:
    """Both times; a capture that fails is told, and no failure: step 7 tries graphs."""
    eager_s, graph_s = bench.seconds(run), None
    try:
        graph_s = bench.seconds(captured(bench, run), launches=1) / bench.sizes.launches
    except Exception as error:  # noqa: BLE001, RUF100  (whatever it is, the eager time stands)
        report.measured(f"{what} as a graph: not timed: {str(error).strip().partition(chr(10))[0][:200]}")
    return Times(eager_s, graph_s)


def captured(bench: Bench, run: Callable[[], Tensor]) -> Callable[[], None]:
    """As many launches as are timed at once, as a graph."""
    platform = bench.platform
    graph = platform.new_graph()
    run()
    platform.synchronize()
    with bench.torch.inference_mode(), platform.capture(graph, None):
        results = [run() for _ in range(bench.sizes.launches)]

    def replay(_: list[Tensor] = results) -> None:  # which keeps the graph's memory
        graph.replay()

    return replay
