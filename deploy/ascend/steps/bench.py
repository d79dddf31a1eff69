"""What the steps run on: a platform and its table of operations, made when first asked for; sizes; random inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kernels.ascend.platform import Platform
from kernels.ascend.variant import Dtype
from kernels.ops import BackendOptions, Ops

Tensor = Any
Array = Any
GIB = 1 << 30
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff of what activations are computed in."""
SHORT: dict[str, Dtype] = {"float16": "fp16", "bfloat16": "bf16"}
"""Triton's names."""


@dataclass(frozen=True)
class Sizes:
    """How large things are made.

    Attributes:
        hidden: elements of a row; columns: outputs of other products; experts: of a mixture; vocabulary: of scores.
        products: (outputs, inputs) of products with a float weight.
        heads: (query heads for each head of keys, elements of a head) of attention, each compiled by itself.
        kv_heads: heads of keys where time is taken.
        longest: tokens of the longest sequence among the others.
        contexts: tokens; batches: sequences, for which attention's time is taken.
        copy_bytes: of the copy that bandwidth is held against.
        runs: of which the median is taken; launches: in each run.
        answer: tokens of an answer.
    """

    hidden: int
    columns: int
    experts: int
    vocabulary: int
    products: tuple[tuple[int, int], ...]
    heads: tuple[tuple[int, int], ...]
    kv_heads: int
    longest: int
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    copy_bytes: int
    runs: int
    launches: int
    answer: int


ON_CHIP = Sizes(
    hidden=4096,
    columns=1024,
    experts=32,
    vocabulary=151_936,
    products=((4864, 896), (896, 4864), (4096, 4096), (4096, 14_336), (28_672, 4096)),
    heads=((4, 128), (7, 128), (8, 64), (8, 256), (16, 128)),
    kv_heads=8,
    longest=5000,
    contexts=(1 << 10, 1 << 12, 1 << 14, 1 << 16),
    batches=(1, 8, 32),
    copy_bytes=GIB,
    runs=7,
    launches=20,
    answer=64,
)
EMULATED = Sizes(
    hidden=128,
    columns=96,
    experts=8,
    vocabulary=1000,
    products=((96, 128), (128, 96)),
    heads=((3, 64),),
    kv_heads=2,
    longest=1500,
    contexts=(256, 1280),
    batches=(1, 3),
    copy_bytes=1 << 24,
    runs=3,
    launches=1,
    answer=4,
)
"""For a processor that computes each row by itself."""


class Bench:
    """What all steps are given.

    Attributes:
        emulated: whether the platform is this machine's processor.
        dtype: ``float16`` or ``bfloat16``.
        model: what steps 8 and 9 load: an alias, a file or a folder.
        timeout_s: how long a step may take.
        sizes: how large things are made.
    """

    def __init__(
        self, new_platform: Callable[[], Platform], *, emulated: bool, dtype: str, model: str, timeout_s: float = 1800.0
    ) -> None:
        self._new_platform = new_platform
        self.emulated, self.dtype, self.model, self.timeout_s = emulated, dtype, model, timeout_s
        self.sizes = EMULATED if emulated else ON_CHIP

    @cached_property
    def platform(self) -> Platform:
        """The device.

        Raises:
            BackendUnavailable: there is none, or what drives it is missing.
        """
        return self._new_platform()

    @cached_property
    def ops(self) -> Ops:
        """The backend's table as it serves, but for graphs."""
        return self.ops_for(eager=True)

    @cached_property
    def int8_ops(self) -> Ops:
        """The same with a KV cache of int8."""
        return self.ops_for(eager=True, kv_cache_dtype="i8")

    @cached_property
    def half_scores_ops(self) -> Ops:
        """As ``ops``, but for scores that travel as float16."""
        return self.ops_for(eager=True, attention_scores="float16")

    def ops_for(self, *, eager: bool, kv_cache_dtype: str = "auto", attention_scores: str = "float32") -> Ops:
        """A table of its own."""
        from kernels.ascend.backend import ops_on  # noqa: PLC0415  (imports what the doctor can do without)

        options = BackendOptions(
            dtype=self.dtype, eager=eager, kv_cache_dtype=kv_cache_dtype, attention_scores=attention_scores
        )
        return ops_on(self.platform, options)

    @cached_property
    def torch(self) -> Any:
        """The module; imported after the platform, which knows how."""
        _ = self.platform
        import torch  # noqa: PLC0415

        return torch

    @cached_property
    def npu(self) -> Any:
        """The module torch_npu."""
        _ = self.platform
        import torch_npu  # noqa: PLC0415

        return torch_npu

    @property
    def floats(self) -> Any:
        """The dtype as torch has it."""
        return getattr(self.torch, self.dtype)

    def upload(self, array: Array, dtype: Any = None) -> Tensor:
        """An array on the device; float ones in the bench's dtype unless told otherwise, bfloat16 given as uint16."""
        torch = self.torch
        array = np.ascontiguousarray(array)
        if array.dtype == np.uint16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(self.platform.device)
        tensor = torch.from_numpy(array)
        if dtype is None and tensor.is_floating_point():
            dtype = self.floats
        return (tensor if dtype is None else tensor.to(dtype)).to(self.platform.device)

    def normal(self, rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed numbers in the bench's dtype."""
        return self.upload(np.float32(scale) * rng.standard_normal(shape, dtype=np.float32))

    def seconds(self, run: Callable[[], Any], launches: int | None = None) -> float:
        """The median time of ``run``, called some times in a row between two waits for the device."""
        launches = self.sizes.launches if launches is None else launches
        run()
        times = []
        for _ in range(self.sizes.runs):
            self.platform.synchronize()
            began_s = time.perf_counter()
            for _ in range(launches):
                run()
            self.platform.synchronize()
            times.append((time.perf_counter() - began_s) / launches)
        return statistics.median(times)


def f64(tensor: Tensor) -> Array:
    """A tensor's numbers in float64, on the host."""
    import torch  # noqa: PLC0415

    return tensor.detach().cpu().to(torch.float64).numpy()


def bits(tensor: Tensor) -> bytes:
    """A tensor's memory, so that NaNs and zeros of either sign are told apart."""
    import torch  # noqa: PLC0415

    memory = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return bytes(memory.tobytes())
