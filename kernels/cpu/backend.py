"""The CPU backend: the operation table filled with native code.

An operation called on arrays is computed at once. While a forward pass is recorded, operations append nodes instead;
the nodes become one program, and a step is one call of it. Products with block-quantised weights round their input to
int8, a scale for each 32; the cache holds 16-bit integers with a scale for each token and head unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cpu import checks
from kernels.cpu import graph as g
from kernels.cpu.abi import CACHE_KINDS, ROWS_SAMPLED, Batch, Op
from kernels.cpu.library import load_library
from kernels.cpu.lowering import Program, lower, one_call
from kernels.cpu.memory import BLOCK_MULTIPLE, CacheHalf, CacheStruct, HugePages, address, alloc_cache, copy_block
from kernels.cpu.recorded import RecordedStep, Runner
from kernels.cpu.threads import ThreadCount, default_threads
from kernels.cpu.weights import PackedExperts, PackedLinear, pack_experts, pack_linear
from kernels.formats import RawTensor
from kernels.ops import (
    Arithmetic,
    AttentionBatch,
    BackendInfo,
    BackendOptions,
    BackendUnavailable,
    DrawParams,
    LayerCache,
    Memory,
    Ops,
    Scores,
    Split,
    StepInputs,
    StepLimits,
    refuse_parallel,
)
from kernels.reference.dequant import dequantise
from kernels.reference.elementwise import prepare_rope

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
DEFAULT_CACHE = "i16"


def cpu_ops(options: BackendOptions) -> Ops:
    """The table.

    Raises:
        BackendUnavailable: there is no native library here, or an option is not one of its own.
    """
    backend = CpuBackend(options)
    return Ops(
        info=backend.info,
        memory=Memory(
            alloc_cache=backend.alloc_cache,
            read_cache=_read_cache,
            copy_block=copy_block,
            cache_token_bytes=backend.cache_token_bytes,
            block_multiple=BLOCK_MULTIPLE,
            upload=backend.upload,
            download=_download,
            sync=_nothing,
        ),
        prepare_linear=backend.prepare_linear,
        prepare_vector=dequantise,
        prepare_rope=prepare_rope,
        prepare_experts=backend.prepare_experts,
        embed=backend.embed,
        rms_norm=backend.rms_norm,
        add_rms_norm=backend.add_rms_norm,
        linear=backend.linear,
        rope=backend.rope,
        write_kv=backend.write_kv,
        paged_attention=backend.paged_attention,
        silu_mul=backend.silu_mul,
        moe=backend.moe,
        logits=backend.logits,
        record=backend.record,
        draw=backend.draw,
        native_cpu_s=backend.native_cpu_s,
        native_wall_s=backend.native_wall_s,
        native_rested=backend.native_rested,
    )


class CpuBackend:
    """Appends nodes, and runs them.

    Operations take and give f32 tensors of this backend. They are batch-invariant, and the number of threads does not
    change results either. They raise TypeError or ValueError for an argument that is not as they say, naming it; and
    NoKernel for a shape that the kernels do not have, which ``record`` raises for those of a recording.

    Raises:
        BackendUnavailable: there is no native library here, or an option is not one of its own, or the threads cannot
            be started.
    """

    def __init__(self, options: BackendOptions) -> None:
        refuse_parallel(options)
        wanted = DEFAULT_CACHE if options.kv_cache_dtype == "auto" else options.kv_cache_dtype
        kind = next((each for each in CACHE_KINDS if each == wanted), None)
        if kind is None:
            raise BackendUnavailable(
                f"--kv-cache-dtype must be auto or one of {', '.join(CACHE_KINDS)}, but is {wanted}."
            )
        self._library = load_library()
        isa = self._library.isas().decode().split()[0]
        self._library.use(isa.encode())
        self._weights = HugePages()
        self._cache_kind = kind
        threads = ThreadCount(options.threads, "as asked") if options.threads else default_threads()
        self._runner = Runner(self._library, threads.count)
        self._nodes: list[g.Node] | None = None
        description, arithmetic = f"native, {isa}, {threads}, {kind} cache", Arithmetic("int8 blocks of 32", kind)
        self.info = BackendInfo("cpu", description, arithmetic, build=self._library.digest)

    def alloc_cache(self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> LayerCache:
        """An empty cache of what the options ask for. Raises as ``memory.alloc_cache`` does."""
        return alloc_cache(self._library, self._cache_kind, num_blocks, block_size, kv_heads, head_dim)

    def cache_token_bytes(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of one token's keys and values in one layer.

        Raises:
            ValueError: ``head_dim`` is below 1.
        """
        head = self._library.cache_head_bytes(CACHE_KINDS[self._cache_kind], BLOCK_MULTIPLE, head_dim)
        return 2 * head * kv_heads // BLOCK_MULTIPLE

    def prepare_linear(
        self, weights: Sequence[RawTensor], biases: Sequence[RawTensor] | None, *, split: Split = "none"
    ) -> PackedLinear:
        """Pack weights that share their input: [N_i,K], biases [N_i] -> [N,K]. Raises as ``pack_linear`` does.

        ``split`` is for backends of several processes.
        """
        del split
        return pack_linear(self._library, self._weights, weights, biases)

    def prepare_experts(self, gate: RawTensor, up: RawTensor, down: RawTensor) -> PackedExperts:
        """Pack routed experts: gate and up [E,F,H], down [E,H,F]. Raises as ``pack_experts`` does."""
        return pack_experts(self._library, self._weights, gate, up, down)

    def upload(self, array: npt.NDArray[Any]) -> Any:
        """f32[T, ...] becomes a tensor, integers become contiguous i32.

        Raises:
            ValueError: it is of another dtype, or f32 of one axis, or a number does not fit i32.
        """
        if array.dtype == np.float32 and array.ndim > 1:
            return _tensor(array)
        if array.dtype.kind not in "iu" or (array != array.astype(np.int32)).any():
            raise ValueError(
                f"array must be f32 of rows, or of integers that fit i32, but is {array.dtype}{array.shape}"
            )
        return np.ascontiguousarray(array, dtype=np.int32)

    def embed(self, ids: g.Integers, weight: PackedLinear) -> g.Tensor:
        """Rows of the embedding [V,H]: ids i32[T] -> [T,H]."""
        self._integers("ids", ids, g.StepArray.TOKEN_IDS, None)
        out = self._value(weight.num_inputs, _length(ids))
        return self._append(g.Embed(ids, weight, out), (weight.num_inputs,), _length(ids), token_ids=ids)

    def rms_norm(self, x: g.Tensor, weight: F32, eps: float) -> g.Tensor:
        """Over the last axis: x [T,...,H], weight f32[H] -> as x."""
        _check_norm(x, weight)
        out = self._value(x.columns, _rows(x))
        return self._append(g.Norm(x, None, weight, eps, out, None), x.shape, _rows(x))

    def add_rms_norm(self, x: g.Tensor, residual: g.Tensor, weight: F32, eps: float) -> tuple[g.Tensor, g.Tensor]:
        """The norm of the sum, and the sum: x and residual [T,H], weight f32[H] -> twice [T,H]."""
        checks.tensor("x", x, None)
        _check_norm(x, weight)
        checks.same("residual", checks.tensor("residual", residual, *x.shape), _recorded_or(x), "rows")
        out, total = self._value(x.columns, _rows(x)), self._value(x.columns, _rows(x))
        normed = self._append(g.Norm(x, residual, weight, eps, out, total), x.shape, _rows(x))
        return normed, g.Tensor(total, 0, x.shape)

    def linear(self, x: g.Tensor, weight: PackedLinear) -> g.Tensor:
        """X W^T + b: [T,K] -> [T,N].

        Before a block-quantised weight x is rounded to int8 with a scale for each 32 columns, before W8A8 with one
        scale a token.
        """
        checks.tensor("x", x, weight.num_inputs)
        out = self._value(weight.num_outputs, _rows(x))
        return self._append(g.Product(x, weight, out), (weight.num_outputs,), _rows(x))

    def rope(self, x: g.Tensor, positions: g.Integers, table: F32) -> g.Tensor:
        """Rotary embedding: x [T,heads,d], positions i32[T], table f32[2,P,d/2] -> [T,heads,d]."""
        num_tokens = checks.tensor("x", x, None, None)
        self._integers("positions", positions, g.StepArray.POSITIONS, num_tokens)
        checks.array("table", table, np.float32, 2, None, x.shape[1] // 2)
        checks.same("x", x.shape[1] % 2, 0, "numbers a head left over from pairs")
        out = self._value(x.columns, _rows(x))
        return self._append(g.Rope(x, positions, table, out), x.shape, _rows(x), positions=positions)

    def write_kv(self, cache: LayerCache, k: g.Tensor, v: g.Tensor, slots: g.Integers) -> None:
        """Keys and values [T,kv_heads,d] into the cache, at slots i32[T], rounded to what it keeps."""
        struct = _struct(cache)
        num_tokens = checks.tensor("k", k, struct.kv_heads, struct.head_dim)
        checks.same("v", checks.tensor("v", v, struct.kv_heads, struct.head_dim), num_tokens, "rows")
        self._integers("slots", slots, g.StepArray.SLOTS, num_tokens)
        node = g.WriteKv(cache.k.struct, k, v, slots, g.HeadPath())
        self._append(node, (), _rows(k), slots=slots)

    def paged_attention(
        self, q: g.Tensor, cache: LayerCache, batch: AttentionBatch, scale: float, window: int | None
    ) -> g.Tensor:
        """Attention over the cache: q [T,heads,d] -> [T,heads,d]; ``batch`` as ``AttentionBatch`` says."""
        checks.tensor("q", q, None, _struct(cache).head_dim)
        self._integers("kv_lens", batch.kv_lens, g.StepArray.KV_LENS, None)
        num_seqs = None if self._nodes is not None else len(batch.kv_lens)
        self._integers("q_starts", batch.q_starts, g.StepArray.Q_STARTS, None if num_seqs is None else num_seqs + 1)
        self._integers("block_table", batch.block_table, g.StepArray.BLOCK_TABLE, num_seqs, None)
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, or None, but is {window}")
        out = self._value(q.columns, _rows(q))
        arrays = {"q_starts": batch.q_starts, "kv_lens": batch.kv_lens, "block_table": batch.block_table}
        node = g.Attention(cache.k.struct, q, **arrays, scale=scale, window=window, path=g.HeadPath(), out=out)
        return self._append(node, q.shape, _rows(q), **arrays)

    def silu_mul(self, x: g.Tensor) -> g.Tensor:
        """silu(gate) * up: [T,2F] -> [T,F]."""
        checks.tensor("x", x, None)
        checks.same("x", x.columns % 2, 0, "columns left over from two halves")
        out = self._value(x.columns // 2, _rows(x))
        return self._append(g.SiluMul(x, out), (x.columns // 2,), _rows(x))

    def moe(self, x: g.Tensor, router: PackedLinear, experts: PackedExperts, top_k: int, normalise: bool) -> g.Tensor:
        """Routed experts: x [T,H], router [E,H] -> [T,H]."""
        checks.tensor("x", x, experts.hidden)
        checks.same(
            "router", (router.num_outputs, router.num_inputs), (len(experts.up), experts.hidden), "as its shape"
        )
        if not 1 <= top_k <= len(experts.up):
            raise ValueError(f"top_k must lie between 1 and {len(experts.up)}, the number of experts, but is {top_k}")
        out = self._value(x.columns, _rows(x))
        return self._append(g.Moe(x, router, experts, top_k, normalise, out), (x.columns,), _rows(x))

    def logits(self, x: g.Tensor, rows: g.Integers, weight: PackedLinear) -> g.Tensor:
        """Scores of some rows: x [T,H], rows i32[R], weight [V,H] -> [R,V]."""
        checks.tensor("x", x, weight.num_inputs)
        self._integers("rows", rows, g.StepArray.LOGIT_ROWS, None)
        out = self._value(weight.num_outputs, _length(rows), g.Axis.SAMPLED)
        node = g.Logits(x, rows, weight, out)
        return self._append(node, (weight.num_outputs,), _rows(x), logit_rows=rows)

    def draw(self, logits: F32, params: DrawParams) -> I32:
        """One token a row, i32[n], at random, from what the parameters leave; overwrites the logits f32[n,V].

        Raises:
            ValueError: the logits are not f32[n,V], or a parameter is not of n rows, or out of bounds.
        """
        logits = np.ascontiguousarray(logits)
        checks.array("logits", logits, np.float32, None, None)
        if not logits.shape[1]:
            raise ValueError("logits must have a column for each token, but has none")
        out = np.zeros(len(logits), dtype=np.int32)
        columns = []
        for name, given in vars(params).items():
            dtype = np.int32 if name == "top_k" else np.float64
            columns.append(np.ascontiguousarray(given, dtype=dtype))
            checks.array(name, columns[-1], dtype, len(logits))
            if dtype is np.int32 and (columns[-1] != given).any():
                raise ValueError("top_k must be of integers that fit i32")
        width = logits.shape[1]
        arguments = (address(logits), width, width, *(address(column) for column in columns), address(out))
        self._runner.call(one_call(Op.DRAW, ROWS_SAMPLED, *arguments), Batch(num_rows=len(logits)))
        return out

    def native_cpu_s(self) -> float:
        """CPU seconds of all threads in native calls so far; they include waiting for each other inside of one."""
        return self._runner.cpu_s()

    def native_wall_s(self) -> float:
        """Seconds that native calls have taken so far, each of them on whatever number of threads."""
        return self._runner.wall_s

    def native_rested(self) -> int:
        """Native calls so far that one thread made alone, since the others did not get a processor."""
        return self._runner.rested()

    def record(self, forward: Callable[[StepInputs], g.Tensor], limits: StepLimits) -> Callable[[StepInputs], Scores]:
        """Record a forward pass; what comes back runs it.

        Raises:
            ValueError: it does not end in logits, or an operation refuses an argument.
            TypeError: likewise.
            NoKernel: it has too many native calls, or one of a shape that the kernels do not have.
        """
        s = g.StepArray
        nodes: list[g.Node] = []
        self._nodes = nodes
        try:
            forward(
                StepInputs(
                    s.TOKEN_IDS,
                    s.POSITIONS,
                    s.SLOTS,
                    AttentionBatch(s.Q_STARTS, s.KV_LENS, s.BLOCK_TABLE),
                    s.LOGIT_ROWS,
                )
            )
        finally:
            self._nodes = None
        return RecordedStep(lower(g.fuse(nodes), self._library, self._runner.threads, limits), self._runner, limits)

    def _value(self, columns: int, rows: int, axis: g.Axis = g.Axis.TOKENS) -> g.Value:
        data = None if self._nodes is not None else np.zeros((rows, columns), dtype=np.float32)
        return g.Value(columns, axis, data)

    def _integers(self, name: str, x: g.Integers, of_step: g.StepArray, *shape: int | None) -> None:
        if self._nodes is None:
            checks.array(name, x, np.int32, *shape)
        elif x is not of_step:
            raise ValueError(f"{name} must be the step's own {of_step.name.lower()} while it is recorded")

    def _append(self, node: g.Node, shape: tuple[int, ...], rows: int, **arrays: g.Integers) -> g.Tensor:
        """Take a node into the recording, or compute it; returns its first result as a tensor."""
        if self._nodes is not None:
            self._nodes.append(node)
        else:
            num_rows = _length(arrays["logit_rows"]) if "logit_rows" in arrays else rows
            limits = StepLimits(max(rows, 1), max(num_rows, 1), _longest(arrays))
            program = Program([node], self._library, self._runner.threads, limits)
            self._runner.run(program, _batch(rows, num_rows, arrays))
        made = node.writes()
        return g.Tensor(made[0] if made else g.Value(0), 0, shape)


def _batch(num_tokens: int, num_rows: int, arrays: dict[str, Any]) -> Batch:
    """The struct of integer arrays, which the caller keeps until the program has run."""
    table = arrays.get("block_table")
    batch = Batch(num_tokens=num_tokens, num_rows=num_rows)
    if table is not None:
        batch.num_seqs, batch.max_blocks = table.shape
    for name, array in arrays.items():
        setattr(batch, name, address(array))
    return batch


def _longest(arrays: dict[str, Any]) -> int:
    return int(np.max(arrays.get("kv_lens", 0), initial=0))


def _tensor(array: F32) -> g.Tensor:
    array = np.ascontiguousarray(array)
    shape = array.shape[1:]
    columns = int(np.prod(shape))
    return g.Tensor(g.Value(columns, data=array.reshape(len(array), columns)), 0, shape)


def _download(tensor: g.Tensor) -> npt.NDArray[Any]:
    """f32[rows, *shape]; of a tensor computed at once, not of a recording."""
    if tensor.value.data is None:
        raise ValueError("a recorded tensor has no numbers of its own")
    data = tensor.value.data[:, tensor.first : tensor.first + tensor.columns]
    return data.reshape(len(data), *tensor.shape)


def _read_cache(cache: LayerCache) -> tuple[F32, F32]:
    halves: tuple[CacheHalf, CacheHalf] = (cache.k, cache.v)
    return halves[0].read(), halves[1].read()


def _rows(tensor: g.Tensor) -> int:
    """Rows of a tensor; 0 while recording."""
    return 0 if tensor.value.data is None else len(tensor.value.data)


def _recorded_or(tensor: g.Tensor) -> int | None:
    """Rows of a tensor; None while recording."""
    return None if tensor.value.data is None else len(tensor.value.data)


def _check_norm(x: g.Tensor, weight: F32) -> None:
    checks.tensor("x", x, *x.shape)
    checks.array("weight", weight, np.float32, x.shape[-1])


def _struct(cache: LayerCache) -> CacheStruct:
    if not isinstance(cache.k, CacheHalf):
        raise TypeError(f"cache must be of this backend, but holds a {type(cache.k).__name__}")
    return cache.k.struct


def _length(array: g.Integers) -> int:
    return 0 if isinstance(array, g.StepArray) else len(array)


def _nothing() -> None:
    """Operations have finished when they return."""
