"""The operation table: everything a model asks of a backend.

A model is written once against ``Ops``; a backend is a function that fills one. What each operation computes, to what
tolerance, and where it comes from, stands in ``kernels/specs``; ``kernels/reference`` is the definition in NumPy.

``Tensor`` is a backend's own array. Above the table only slicing and ``reshape`` are done to one, and
``Memory.download`` to read it. All operations are batch-invariant: a token's row of the result depends on that token's
own sequence alone, bit for bit, not on how many rows travel with it, nor in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kernels.control_groups import memory_bytes
from kernels.formats import CacheDtype, RawTensor

Tensor = Any
Linear = Any
"""A prepared weight [N, K] with its optional bias [N]."""
Experts = Any
"""The prepared weights of one layer's routed experts."""
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]


class BackendUnavailable(Exception):
    """No backend of that name, or it cannot run here as asked; the message says why, and names the flag to change."""


class NoKernel(Exception):
    """A backend has no kernel for something that a model asks of it; the message says what."""


@dataclass(frozen=True)
class LayerCache:
    """One layer's paged keys and values, in the backend's own layout; ``Memory.read_cache`` reads them."""

    k: Tensor
    v: Tensor


Split = Literal["none", "outputs", "inputs", "vocabulary"]
"""How a Linear is shared out between processes, each of which prepares its own part: see ``Ops``."""


@dataclass(frozen=True)
class Parallel:
    """Which of the processes this is that compute a model together, each with a part of its weights and of its cache.

    Attributes:
        rank: from 0 to size - 1.
        size: how many there are.
        rendezvous: where they find each other: an ``init_method`` of torch.distributed, the same for all.
    """

    rank: int
    size: int
    rendezvous: str


class AttentionBatch(NamedTuple):
    """Where the queries of a step's B sequences lie, and their keys.

    Attributes:
        q_starts: i32[B+1]; queries of sequence b are rows q_starts[b] to q_starts[b+1], at the last positions of it;
            a sequence may have none.
        kv_lens: i32[B], tokens in the cache, those of this step included.
        block_table: i32[B,M], padded with -1.
    """

    q_starts: Tensor
    kv_lens: Tensor
    block_table: Tensor


class StepInputs(NamedTuple):
    """T tokens of B sequences, each with up to M blocks. Tokens of a sequence are adjacent, in order of position.

    Attributes:
        token_ids: i32[T].
        positions: i32[T], absolute, from 0: of each sequence the last ones in kv_lens.
        slots: i32[T], where each token's keys and values go: block * block_size + offset.
        attention: where the sequences lie among the tokens and in the cache.
        logit_rows: i32[R], which tokens' logits are wanted.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    attention: AttentionBatch
    logit_rows: Tensor


@dataclass(frozen=True)
class StepLimits:
    """The largest step there will be: T <= ``max_tokens``; B and R <= ``max_rows``; kv_lens <= ``max_model_len``."""

    max_tokens: int
    max_rows: int
    max_model_len: int


MOST_CANDIDATES = 512
"""Logits of a row that ``Scores.highest`` is asked for at most. Beyond, a native draw of a whole row often adds up in
another order than one of candidates, and whole rows are fetched."""


class Candidates(NamedTuple):
    """The highest logits of n rows, c of each, in any order; where equal ones are left out, any of them.

    Attributes:
        logits: f32[n,c].
        ids: i32[n,c], whose they are.
    """

    logits: F32
    ids: I32


class Scores(Protocol):
    """What a step says about the next tokens, until the next step; NumPy arrays.

    Rows are asked for by their numbers, rising. Logits may lie on a device, so ask for no more of them than is needed.

    Attributes:
        best: i32[R], the highest logit's token, the lowest id on a tie; -1 where a row holds a NaN or an infinity.
        highest: (numbers, count) -> Candidates: so many of each row, or all if it has fewer; count is from 1 to
            ``MOST_CANDIDATES``. None where whole rows are as near.
    """

    @property
    def best(self) -> I32: ...  # noqa: D102

    @property
    def highest(self) -> Callable[[Sequence[int], int], Candidates] | None: ...  # noqa: D102

    def rows(self, indices: Sequence[int]) -> F32:
        """Logits f32[n,V] of some rows. The caller may overwrite them, so a row is asked for once a step."""


class HostScores(NamedTuple):
    """``Scores`` that lie in this process's memory: f32[R,V] and i32[R]."""

    logits: F32
    best: I32

    @property
    def highest(self) -> None:
        """Whole rows are here."""
        return

    def rows(self, indices: Sequence[int]) -> F32:
        """Logits f32[n,V] of some rows, not copied where they lie next to each other."""
        if not indices:
            return self.logits[:0]
        first, last = indices[0], indices[-1]
        return self.logits[first : last + 1] if last - first < len(indices) else self.logits[list(indices)]


@dataclass(frozen=True)
class DrawParams:
    """How each of n rows is drawn from; the meaning of each is that of ``engine.types.SamplingParams``.

    Attributes:
        temperature: f64[n], above 0.
        top_k: i32[n]; 0 keeps all.
        top_p: f64[n], above 0; 1 keeps all.
        min_p: f64[n]; 0 keeps all.
        uniform: f64[n] in [0, 1): the random number that picks the token.
    """

    temperature: F64
    top_k: I32
    top_p: F64
    min_p: F64
    uniform: F64


SpareBytes = Callable[[Callable[[StepInputs], Tensor], StepLimits], int]
"""What is left on a device for a KV cache: see ``Memory``."""


@dataclass(frozen=True)
class Memory:
    """The device as an allocator.

    Attributes:
        alloc_cache: (num_blocks, block_size, kv_heads, head_dim) -> an empty LayerCache. Raises ValueError for a block
            size that it cannot have, NoKernel for a head size.
        read_cache: LayerCache -> its keys and values, each f32[num_blocks, block_size, kv_heads, head_dim].
        copy_block: (LayerCache, from, to) -> None; one block's keys and values also in another.
        cache_token_bytes: (kv_heads, head_dim) -> bytes of one token's keys and values in one layer's cache.
        block_multiple: block sizes must be a multiple of it.
        upload: NumPy array, f32 of rows or integers that fit i32 -> Tensor; download: the reverse, synchronising.
        sync: wait for all work.
        capacity_bytes: what a cache may take at most; capacity: what that is, in words.
        spare_bytes: (forward as ``Ops.record`` has it, over caches with room for the tokens of the largest step;
            StepLimits) -> bytes that weights and the largest steps, which are run, leave free on a device with memory
            of its own. Of several processes all must ask, and get the least of all. None where memory is the machine's.
    """

    alloc_cache: Callable[[int, int, int, int], LayerCache]
    read_cache: Callable[[LayerCache], tuple[F32, F32]]
    copy_block: Callable[[LayerCache, int, int], None]
    cache_token_bytes: Callable[[int, int], int]
    block_multiple: int
    upload: Callable[[npt.NDArray[Any]], Tensor]
    download: Callable[[Tensor], npt.NDArray[Any]]
    sync: Callable[[], None]
    capacity_bytes: Callable[[], int] = memory_bytes
    capacity: str = "memory that this process may fill (what the machine has, or its control group grants)"
    spare_bytes: SpareBytes | None = None


Activations = Literal["f32", "int8 blocks of 32"]


@dataclass(frozen=True)
class Arithmetic:
    """What a backend rounds on purpose; ``kernels.specs.rounding`` says how, and its oracles round the same way.

    Attributes:
        activations: what products with block-quantised weights see of their input.
        cache: what is kept of keys and values.
    """

    activations: Activations = "f32"
    cache: CacheDtype = "f32"


@dataclass(frozen=True)
class BackendInfo:
    """What a backend is: its name, one line about the hardware or library behind it, and what it rounds.

    Attributes:
        build: what its results depend on beside its sources: a library's digest, versions, a chip. Empty for nothing.
    """

    name: str
    description: str
    arithmetic: Arithmetic = Arithmetic()
    build: str = ""


@dataclass(frozen=True)
class BackendOptions:
    """What the user may ask of a backend.

    Attributes:
        threads: None leaves it to the backend.
        kv_cache_dtype: ``auto`` or a ``CacheDtype``.
        dtype: ``auto``, ``bfloat16`` or ``float16``, of weights that are not quantised and of activations.
        eager: whether nothing is captured as a graph.
        attention_scores: ``float32`` or ``float16``: as what a device's scores travel between its cores.
        prompt_attention: ``own`` or ``fused``: by whose kernel a device attends where prompts are read.
        parallel: this process' place among those that compute the model together; None where it is alone.
    """

    threads: int | None = None
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    eager: bool = False
    attention_scores: str = "float32"
    prompt_attention: str = "own"
    parallel: Parallel | None = None


def refuse_parallel(options: BackendOptions) -> None:
    """For a backend that is one process.

    Raises:
        BackendUnavailable: there are to be several.
    """
    if options.parallel is not None:
        raise BackendUnavailable(
            f"--tensor-parallel-size {options.parallel.size} is for --device ascend and its NPUs; this backend is one "
            "process, on all the threads it is given."
        )


class PrepareLinear(Protocol):
    """What lays a linear layer's weights out."""

    def __call__(
        self, weights: Sequence[RawTensor], biases: Sequence[RawTensor] | None, *, split: Split = "none"
    ) -> Linear:
        """Weights [N_i, K] and biases [N_i] or none, their rows one below the other."""


@dataclass(frozen=True)
class Ops:
    """The table. T tokens, H hidden size, N outputs, K inputs, d head dimension, R rows of logits, V vocabulary.

    A step is recorded once and replayed; a backend that has nothing to record just calls. ``record`` takes the model's
    forward pass, from inputs to logits f32[R,V], and gives what runs it on inputs of NumPy arrays.

    Where several processes compute together (``BackendOptions.parallel``), each runs the same steps on its own part of
    the weights, and results are the same in all of them. ``prepare_linear`` is told what a part is: with ``none`` all
    of it; with ``outputs`` some of the rows, and the process goes on with those outputs alone; with ``inputs`` some of
    the columns, for which the process has the inputs, and ``linear`` adds the products of all up before the bias, which
    each has whole; with ``vocabulary`` the rows of some token ids, the ranks' one after the other: ``embed`` and
    ``logits`` give what one process with all rows would. Experts have part of their inner columns each, as if split by
    inputs. All prepare the same in the same order. A backend that is one process has no use for ``split``.

    Tensors are f32 where nothing else is said. NoKernel comes from ``prepare_*``, ``record`` or an operation itself.

    Attributes:
        prepare_linear: (weights [N_i, K], biases [N_i] or none, split) -> Linear of their rows one below the other.
        prepare_vector: a one-dimensional weight -> Tensor f32.
        prepare_rope: (inv_freq f64[d/2], scale, num_positions) -> Tensor of cosines and sines, times scale.
        prepare_experts: (gate [E,F,H], up [E,F,H], down [E,H,F]) -> Experts.
        embed: (ids i32[T], Linear [V,H]) -> [T,H].
        rms_norm: (x [...,H], weight [H], eps) -> [...,H].
        add_rms_norm: (x [T,H], residual [T,H], weight [H], eps) -> (normalised sum, sum).
        linear: (x [T,K], Linear) -> [T,N].
        rope: (x [T,heads,d], positions i32[T], table) -> [T,heads,d].
        write_kv: (cache, k [T,kv_heads,d], v [T,kv_heads,d], slots i32[T]) -> None. What is finite stays finite: a
            cache of f16 takes what is beyond it as its largest number.
        paged_attention: (q [T,heads,d], cache, batch, scale, window or None) -> [T,heads,d]. A key or value that is not
            finite shows in results of queries that see it, and in no other.
        silu_mul: (gate_up [T,2F]) -> [T,F].
        moe: (x [T,H], router Linear [E,H], Experts, top_k, normalise) -> [T,H].
        logits: (x [T,H], rows i32[R], Linear [V,H]) -> f32[R,V].
        record: (forward: StepInputs -> Tensor f32[R,V], StepLimits) -> (StepInputs -> Scores).
        draw: (logits f32[n,V], DrawParams) -> one token a row, i32[n]. NumPy in and out; -inf means never; the
            logits may be overwritten.
        native_cpu_s: CPU seconds that native code has spent in steps so far, on all threads; 0 without native code.
        native_wall_s: seconds that calls of native code have taken so far, by ``time.monotonic``; 0 without.
        native_rested: native calls so far that one of several threads made alone, since others did not get a processor.
    """

    info: BackendInfo
    memory: Memory
    prepare_linear: PrepareLinear
    prepare_vector: Callable[[RawTensor], Tensor]
    prepare_rope: Callable[[npt.NDArray[np.float64], float, int], Tensor]
    prepare_experts: Callable[[RawTensor, RawTensor, RawTensor], Experts]
    embed: Callable[[Tensor, Linear], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    linear: Callable[[Tensor, Linear], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    write_kv: Callable[[LayerCache, Tensor, Tensor, Tensor], None]
    paged_attention: Callable[[Tensor, LayerCache, AttentionBatch, float, int | None], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    moe: Callable[[Tensor, Linear, Experts, int, bool], Tensor]
    logits: Callable[[Tensor, Tensor, Linear], Tensor]
    record: Callable[[Callable[[StepInputs], Tensor], StepLimits], Callable[[StepInputs], Scores]]
    draw: Callable[[F32, DrawParams], I32]
    native_cpu_s: Callable[[], float] = float
    native_wall_s: Callable[[], float] = float
    native_rested: Callable[[], int] = int


OPERATIONS = (
    "embed",
    "rms_norm",
    "add_rms_norm",
    "linear",
    "rope",
    "write_kv",
    "paged_attention",
    "silu_mul",
    "moe",
    "logits",
    "draw",
)
"""The operations of a step; the ``prepare_*`` ones and ``record`` run once, at load."""
