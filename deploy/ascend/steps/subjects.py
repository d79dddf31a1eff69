"""What steps 2 and 3 try: each operation of torch_npu that the backend calls, as rows in and rows out, with an oracle.

A subject is a function of rows: tensors whose first dimension is the token. What an operation sorts or scatters is put
back in the order of tokens, so that a token's row can be compared wherever it travelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from deploy.ascend.steps.bench import UNIT, Array, Bench, Tensor, f64
from kernels.ascend.linear import FRACTAL_NZ
from kernels.quantise import w8a8_tensor
from kernels.spec import f32_tensor

ROWS = 258
"""As many as the most that a row travels with, and itself."""
EPS = 1e-5
TOP_K = 2
BFLOAT16_EXPERTS = (
    "Serve mixtures of experts with --dtype bfloat16: torch_npu's page on npu_moe_token_unpermute lists no other dtype."
)
Oracle = Callable[..., list[tuple[Array, Array]]]


@dataclass(frozen=True)
class Subject:
    """One operation, or a few that belong together.

    Attributes:
        name: as it is printed; begins with the operation's name.
        rows: inputs with ``ROWS`` rows each.
        run: from rows to results with as many rows.
        oracle: from the rows in float64 to each result in float64, and how far from it the device may be; None where
            parts of it are subjects themselves.
        serves: whether the backend calls it so; else it is tried to know.
        remedy: what to do if a row depends on its neighbours.
        way_out: what to do if the device refuses it or computes something else, where there is a way to serve then.
    """

    name: str
    rows: tuple[Tensor, ...]
    run: Callable[..., tuple[Tensor, ...]]
    oracle: Oracle | None
    serves: bool = True
    remedy: str = "Report it: the backend needs another operation in its place, or a fixed number of rows."
    way_out: str = ""


class Subjects:
    """Builds the subjects on a bench, each from a seed of its own."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._npu, self._torch = bench, bench.npu, bench.torch
        self._ops = bench.ops  # which also allows FRACTAL_NZ
        self._unit = UNIT[bench.dtype]
        self._experts_way_out = BFLOAT16_EXPERTS if bench.dtype == "float16" else ""

    def all(self) -> list[Callable[[], Subject]]:
        """What builds them, in the order in which they are tried."""
        products: list[Callable[[], Subject]] = []
        for outputs, inputs in self._bench.sizes.products:
            products += [partial(self.tiles, outputs, inputs), partial(self.no_tiles, outputs, inputs)]
        return [*self._of_rows(), *products, *self._of_integers_and_experts()]

    def _of_rows(self) -> list[Callable[[], Subject]]:
        return [self.rms_norm, self.add_then_norm, self.add_rms_norm, self.rotary_mul, self.swiglu]

    def _of_integers_and_experts(self) -> list[Callable[[], Subject]]:
        return [
            self.dynamic_quant, self.quant_matmul, self.gating, self.routing, self.grouped, self.grouped_int8,
            self.unpermute, self.moe, self.moe_int8,
        ]  # fmt: skip

    def near(self, want: Array, terms: Array | float, longest: int = 1) -> tuple[Array, Array]:
        """What is computed in float32 from sums of ``longest`` terms and rounded to the dtype, once or twice.

        Args:
            want: in float64.
            terms: the magnitude of what is added up; not that of the result, in which terms may cancel.
            longest: the number of terms of a sum, whose rounding errors grow as a random walk does.
        """
        return want, 3 * self._unit * np.abs(terms) + 2.0**-20 * np.sqrt(longest) * np.abs(want).max()

    def rms_norm(self) -> Subject:
        """The norm of rows."""
        rng, size = np.random.default_rng(1), self._bench.sizes.hidden
        gamma, x = self._bench.normal(rng, size), self._bench.normal(rng, ROWS, size)

        def oracle(x: Array) -> list[tuple[Array, Array]]:
            want = _normed(x, f64(gamma))
            return [self.near(want, want, size)]

        return Subject("npu_rms_norm", (x,), lambda x: self._npu.npu_rms_norm(x, gamma, EPS)[:1], oracle)

    def add_then_norm(self) -> Subject:
        """A sum and its norm, as the backend computes them."""
        return self._added("x + y, npu_rms_norm", lambda x, y, gamma: _then_norm(self._npu, x + y, gamma), True)

    def add_rms_norm(self) -> Subject:
        """The same in one operation, which the backend does not call."""

        def fused(x: Tensor, y: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
            normed, _, total = self._npu.npu_add_rms_norm(x, y, gamma, EPS)
            return normed, total

        return self._added("npu_add_rms_norm (not called)", fused, False)

    def _added(self, name: str, run: Callable[..., tuple[Tensor, ...]], serves: bool) -> Subject:
        rng, size = np.random.default_rng(2), self._bench.sizes.hidden
        gamma, x, y = (self._bench.normal(rng, *shape) for shape in ((size,), (ROWS, size), (ROWS, size)))

        def oracle(x: Array, y: Array) -> list[tuple[Array, Array]]:
            want = _normed(x + y, f64(gamma))
            return [self.near(want, want, size), self.near(x + y, x + y)]

        return Subject(name, (x, y), lambda x, y: run(x, y, gamma), oracle, serves)

    def rotary_mul(self) -> Subject:
        """Rotations of heads."""
        rng, dim, heads = np.random.default_rng(3), self._bench.sizes.heads[0][1], 4
        x = self._bench.normal(rng, ROWS, heads, dim)
        angles = rng.uniform(0, 6.3, (ROWS, dim // 2)).repeat(2, 0).reshape(ROWS, dim)
        cos, sin = (self._bench.upload(function(angles).astype(np.float32)) for function in (np.cos, np.sin))

        def run(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
            return (self._npu.npu_rotary_mul(x[None], cos[None, :, None, :], sin[None, :, None, :])[0],)

        def oracle(x: Array, cos: Array, sin: Array) -> list[tuple[Array, Array]]:
            kept = x * cos[:, None]
            turned = np.concatenate((-x[..., dim // 2 :], x[..., : dim // 2]), -1) * sin[:, None]
            return [self.near(kept + turned, np.abs(kept) + np.abs(turned))]

        return Subject("npu_rotary_mul", (x, cos, sin), run, oracle)

    def swiglu(self) -> Subject:
        """Gates."""
        rng, size = np.random.default_rng(4), self._bench.sizes.hidden
        x = self._bench.normal(rng, ROWS, 2 * size)

        def oracle(x: Array) -> list[tuple[Array, Array]]:
            want = x[:, :size] / (1 + np.exp(-x[:, :size])) * x[:, size:]
            return [self.near(want, want)]

        return Subject("npu_swiglu", (x,), lambda x: (self._npu.npu_swiglu(x),), oracle)

    def tiles(self, outputs: int, inputs: int) -> Subject:
        """A product as the backend computes it: in tiles of rows."""
        rows = self._bench.platform.row_tile
        array = self._weight(outputs, inputs)
        prepared = self._ops.prepare_linear([f32_tensor(array)], None)
        remedy = f"Tiles of {rows} rows do not hold here: report it with the table; --quantization w8a8 is exact."
        name = f"F.linear in tiles of {rows} rows, {outputs} x {inputs}"
        return self._product(name, array, lambda x: self._ops.linear(x, prepared), True, remedy)

    def no_tiles(self, outputs: int, inputs: int) -> Subject:
        """The same product on all rows at once, which the backend does not compute."""
        array = self._weight(outputs, inputs)
        weight, linear = self._bench.upload(array), self._torch.nn.functional.linear
        name = f"F.linear without tiles (not called), {outputs} x {inputs}"
        return self._product(name, array, lambda x: linear(x, weight), False, "")

    def _weight(self, outputs: int, inputs: int) -> Array:
        return (np.random.default_rng(6).standard_normal((outputs, inputs), np.float32) / np.sqrt(inputs)).astype("f4")

    def _product(self, name: str, array: Array, linear: Callable[..., Tensor], serves: bool, remedy: str) -> Subject:
        x = self._bench.normal(np.random.default_rng(16), ROWS, array.shape[1])

        def oracle(x: Array) -> list[tuple[Array, Array]]:
            want = x @ f64(self._bench.upload(array)).T
            return [self.near(want, want, array.shape[1])]

        return Subject(name, (x,), lambda x: (linear(x),), oracle, serves, remedy)

    def dynamic_quant(self) -> Subject:
        """Rows to int8 with a scale each."""
        rng, size = np.random.default_rng(7), self._bench.sizes.hidden
        x = self._bench.normal(rng, ROWS, size)

        def oracle(x: Array) -> list[tuple[Array, Array]]:
            scale = np.abs(x).max(-1) / 127
            codes = x / scale[:, None]
            return [(codes, np.full_like(codes, 0.5 + 2.0**-6)), (scale, 2.0**-20 * scale)]

        return Subject("npu_dynamic_quant", (x,), self._npu.npu_dynamic_quant, oracle)

    def quant_matmul(self) -> Subject:
        """Products of int8, with a weight in FRACTAL_NZ."""
        rng, sizes = np.random.default_rng(8), self._bench.sizes
        weight, scale = self._int8(rng, sizes.hidden, sizes.columns)
        stored = self._npu.npu_format_cast(weight, FRACTAL_NZ)
        codes = self._bench.upload(rng.integers(-127, 128, (ROWS, sizes.hidden), dtype=np.int8))
        tokens = self._bench.upload(rng.uniform(0.01, 0.02, ROWS).astype(np.float32), self._torch.float32)

        def run(codes: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
            floats = self._bench.floats
            return (self._npu.npu_quant_matmul(codes, stored, scale, pertoken_scale=tokens, output_dtype=floats),)

        def oracle(codes: Array, tokens: Array) -> list[tuple[Array, Array]]:
            want = codes @ f64(weight) * f64(scale) * tokens[:, None]
            return [self.near(want, want)]

        return Subject("npu_quant_matmul", (codes, tokens), run, oracle)

    def _int8(self, rng: np.random.Generator, *shape: int) -> tuple[Tensor, Tensor]:
        """Codes [..., K, N] and float32 scales [..., N]."""
        codes = rng.integers(-127, 128, shape, dtype=np.int8)
        scale = rng.uniform(1e-4, 2e-4, (*shape[:-2], shape[-1])).astype(np.float32)
        return self._bench.upload(codes), self._bench.upload(scale, self._torch.float32)

    def gating(self) -> Subject:
        """The choice of experts."""
        rng, experts = np.random.default_rng(9), self._bench.sizes.experts
        x = self._bench.upload(rng.standard_normal((ROWS, experts)).astype(np.float32), self._torch.float32)

        def oracle(x: Array) -> list[tuple[Array, Array]]:
            weights = np.exp(x - x.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            chosen = np.argsort(-weights, -1, "stable")[:, :TOP_K]
            best = np.take_along_axis(weights, chosen, -1)
            return [(best, 2.0**-18 * best), exactly(chosen)]

        def run(x: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._npu.npu_moe_gating_top_k_softmax(x, k=TOP_K)[:2])

        return Subject("npu_moe_gating_top_k_softmax", (x,), run, oracle)

    def routing(self) -> Subject:
        """Rows sorted by expert, and taken back."""
        rng, sizes = np.random.default_rng(10), self._bench.sizes
        x, chosen = self._bench.normal(rng, ROWS, sizes.hidden), self._chosen(rng)

        def run(x: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
            rows, places, counts, _ = self._npu.npu_moe_init_routing_v2(
                x, chosen, active_num=chosen.numel(), expert_num=sizes.experts, drop_pad_mode=0,
                expert_tokens_num_type=1, expert_tokens_num_flag=True, quant_mode=-1,
                active_expert_range=[0, sizes.experts], row_idx_type=0,
            )  # fmt: skip
            ends = counts.cumsum(0).cpu().numpy()
            expert_of = np.searchsorted(ends, places.cpu().numpy(), side="right").reshape(len(x), TOP_K)
            back = rows.index_select(0, places.to(self._torch.int64))
            return back.reshape(len(x), -1), self._torch.from_numpy(expert_of)

        def oracle(x: Array, chosen: Array) -> list[tuple[Array, Array]]:
            return [exactly(np.concatenate([x] * TOP_K, 1)), exactly(chosen)]

        return Subject("npu_moe_init_routing_v2", (x, chosen), run, oracle)

    def _chosen(self, rng: np.random.Generator, count: int = TOP_K) -> Tensor:
        experts = self._bench.sizes.experts
        chosen = np.stack([rng.permutation(experts)[:count] for _ in range(ROWS)])
        return self._bench.upload(chosen.astype(np.int32))

    def grouped(self) -> Subject:
        """Float products, each row with its expert's weight."""
        rng, sizes = np.random.default_rng(11), self._bench.sizes
        weight = self._bench.normal(rng, sizes.experts, sizes.hidden, sizes.columns, scale=sizes.hidden**-0.5)
        x, expert = self._bench.normal(rng, ROWS, sizes.hidden), self._chosen(rng, 1)

        def run(x: Tensor, expert: Tensor) -> tuple[Tensor, ...]:
            order, back, groups = self._groups(expert)
            out = self._npu.npu_grouped_matmul([x.index_select(0, order)], [weight], **groups)[0]
            return (out.index_select(0, back),)

        def oracle(x: Array, expert: Array) -> list[tuple[Array, Array]]:
            want = _by_expert(x, expert, f64(weight))
            return [self.near(want, want, sizes.hidden)]

        remedy = "Mixtures of experts in float are not batch-invariant here; report it. W8A8 ones are exact."
        return Subject("npu_grouped_matmul", (x, expert), run, oracle, True, remedy)

    def grouped_int8(self) -> Subject:
        """The same of int8."""
        rng, sizes = np.random.default_rng(12), self._bench.sizes
        weight, scale = self._int8(rng, sizes.experts, sizes.hidden, sizes.columns)
        stored = self._npu.npu_format_cast(weight, FRACTAL_NZ)
        if self._bench.dtype == "bfloat16":
            scale = scale.to(self._torch.bfloat16)
        codes = self._bench.upload(rng.integers(-127, 128, (ROWS, sizes.hidden), dtype=np.int8))
        tokens = self._bench.upload(rng.uniform(0.01, 0.02, ROWS).astype(np.float32), self._torch.float32)

        def run(codes: Tensor, tokens: Tensor, expert: Tensor) -> tuple[Tensor, ...]:
            order, back, groups = self._groups(expert)
            out = self._npu.npu_grouped_matmul(
                [codes.index_select(0, order)], [stored], scale=[scale],
                per_token_scale=[tokens.index_select(0, order)], output_dtype=self._bench.floats, **groups,
            )[0]  # fmt: skip
            return (out.index_select(0, back),)

        def oracle(codes: Array, tokens: Array, expert: Array) -> list[tuple[Array, Array]]:
            want = _by_expert(codes, expert, f64(weight)) * f64(scale)[expert[:, 0].astype(int)] * tokens[:, None]
            return [self.near(want, want)]

        return Subject("npu_grouped_matmul, int8", (codes, tokens, self._chosen(rng, 1)), run, oracle)

    def _groups(self, expert: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The order of rows by expert, the way back, and how the device is told."""
        host = expert.cpu().numpy()[:, 0]
        order = np.argsort(host, kind="stable")
        counts = np.bincount(host, minlength=self._bench.sizes.experts).astype(np.int64)
        upload = self._bench.upload
        groups = {"group_list": upload(counts), "split_item": 2, "group_type": 0, "group_list_type": 1}
        return upload(order), upload(np.argsort(order)), groups

    def unpermute(self) -> Subject:
        """The weighted sum of each token's experts."""
        rng, size = np.random.default_rng(13), self._bench.sizes.hidden
        x = self._bench.normal(rng, ROWS, TOP_K, size)
        probs = self._bench.upload(rng.uniform(0.1, 0.9, (ROWS, TOP_K)).astype(np.float32))

        def run(x: Tensor, probs: Tensor) -> tuple[Tensor, ...]:
            backwards = self._bench.upload(np.arange(len(x) * TOP_K, dtype=np.int32)[::-1])
            tokens = x.reshape(-1, size).flip(0).contiguous()
            return (self._npu.npu_moe_token_unpermute(tokens, backwards, probs=probs),)

        def oracle(x: Array, probs: Array) -> list[tuple[Array, Array]]:
            terms = x * probs[..., None]
            return [self.near(terms.sum(1), np.abs(terms).sum(1))]

        return Subject("npu_moe_token_unpermute", (x, probs), run, oracle, way_out=self._experts_way_out)

    def moe(self) -> Subject:
        """A layer of experts as a whole, in float."""
        return self._layer("a mixture of experts, whole", lambda array: f32_tensor(array))

    def moe_int8(self) -> Subject:
        """The same in W8A8."""

        def w8a8(array: Array) -> Any:
            scale = np.abs(array).max(-1) / 127
            return w8a8_tensor(np.rint(array / scale[..., None]).astype(np.int8), scale.astype(np.float32))

        return self._layer("a mixture of experts, W8A8, whole", w8a8)

    def _layer(self, name: str, stored: Callable[[Array], Any]) -> Subject:
        rng, sizes, ops = np.random.default_rng(14), self._bench.sizes, self._ops
        experts, inner, hidden = sizes.experts, sizes.columns // 8, sizes.hidden
        shapes = ((experts, inner, hidden), (experts, inner, hidden), (experts, hidden, inner))
        weights = [(rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32) for shape in shapes]
        prepared = ops.prepare_experts(*map(stored, weights))
        router = ops.prepare_linear([f32_tensor(rng.standard_normal((experts, hidden)) / np.sqrt(hidden))], None)
        x = self._bench.normal(rng, ROWS, hidden)

        def run(x: Tensor) -> tuple[Tensor, ...]:
            return (ops.moe(x, router, prepared, TOP_K, True),)

        return Subject(name, (x,), run, None, way_out=self._experts_way_out)


def _then_norm(npu: Any, total: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    return npu.npu_rms_norm(total, gamma, EPS)[0], total


def _normed(x: Array, gamma: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * gamma


def exactly(want: Array) -> tuple[Array, Array]:
    """A result that may not be off at all."""
    return want, np.zeros(want.shape)


def _by_expert(x: Array, expert: Array, weight: Array) -> Array:
    """Each row times its expert's weight [E,K,N]."""
    out = np.empty((len(x), weight.shape[2]))
    for number in np.unique(expert):
        mine = expert[:, 0] == number
        out[mine] = x[mine] @ weight[int(number)]
    return out
