"""What the processes of a model say to each other: parts of results, gathered, and added up in the order of the ranks.

A library that adds up while it communicates picks the order by the size of the message: HCCL even with
HCCL_DETERMINISTIC=true promises the same sum for the same input only, and its "strict" is for several machines. A
token's sum would depend on how many tokens travel with it. So nothing is added on the way: each rank gets every rank's
part as it is, and adds them in float32, from rank 0 upwards, rounding once. With two ranks that moves as many bytes as
a ring would; with n it is n/2 times as many.

Source of what is said of HCCL: the description of HCCL_DETERMINISTIC in CANN 8.5.0.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from kernels.ascend.platform import Platform
from kernels.ops import Parallel

Tensor = Any
SCHEMA = "gather_ranks(Tensor x, int size) -> Tensor"
"""x [n,...], the same shape in each of the processes -> [size,n,...], every rank's."""


@functools.cache
def register() -> Any:
    """Define the operation, once in a process; the library that holds it.

    It is one of torch's dispatcher, so that a graph captures it as any other.
    """
    import torch  # noqa: PLC0415

    library = torch.library.Library("upwell", "FRAGMENT")
    library.define(SCHEMA)
    library.impl("gather_ranks", _gathered, "CompositeExplicitAutograd")
    return library


def _gathered(x: Tensor, size: int) -> Tensor:
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    parts = torch.empty((size * len(x), *x.shape[1:]), dtype=x.dtype, device=x.device)
    # Its newer name; torch warns of the older one, which is all that torch 2.10 has.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(parts, x.contiguous())
    return parts.reshape(size, *x.shape)


class Ranks:
    """The processes that compute a model together, or the only one.

    The first thing asked of the others waits until all are there. Then all must ask the same in the same order, and
    who asks what another does not waits for ever: ``engine.parallel`` watches over that.
    """

    def __init__(self, platform: Platform | None = None, parallel: Parallel | None = None) -> None:
        self._platform, self._parallel = platform, parallel
        self._joined = False

    @property
    def rank(self) -> int:
        """Of this process."""
        return 0 if self._parallel is None else self._parallel.rank

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self._parallel is None

    def largest(self, x: Tensor) -> Tensor:
        """The largest of every rank's x [T,N], number by number; NaN where one has it. Batch-invariant."""
        return x if self.alone or not x.numel() else self._gather(x).amax(0)

    def sum(self, x: Tensor) -> Tensor:
        """Every rank's x [T,N] added up in the order of the ranks, floats in float32, in x's dtype. Batch-invariant."""
        if self.alone or not x.numel():
            return x
        parts = self._gather(x)
        if parts.is_floating_point():
            parts = parts.float()
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.to(x.dtype)

    def side_by_side(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Every rank's x [R,widths[rank]] one beside the other: [R, sum of widths]."""
        import torch  # noqa: PLC0415

        if self._parallel is None:
            return x
        if not x.numel():
            return x.new_empty(len(x), sum(widths))
        padded = torch.nn.functional.pad(x, (0, max(widths) - x.shape[1]))
        parts = self._gather(padded)
        return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], dim=1)

    def each(self, number: int) -> tuple[int, ...]:
        """Every rank's number."""
        import torch  # noqa: PLC0415

        if self._parallel is None or self._platform is None:
            return (number,)
        own = torch.tensor([number], dtype=torch.int32).to(self._platform.device)
        return tuple(int(of_rank) for of_rank in self._gather(own).reshape(-1).cpu())

    def _gather(self, x: Tensor) -> Tensor:
        import torch  # noqa: PLC0415

        self._join()
        return torch.ops.upwell.gather_ranks(x, self._parallel.size if self._parallel else 1)

    def _join(self) -> None:
        """Meet the others. A process has one group: that of a model it had before ends."""
        if self._joined or self._parallel is None or self._platform is None:
            return
        import torch.distributed as dist  # noqa: PLC0415

        register()
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group(
            self._platform.collectives,
            init_method=self._parallel.rendezvous,
            rank=self._parallel.rank,
            world_size=self._parallel.size,
        )
        self._joined = True
