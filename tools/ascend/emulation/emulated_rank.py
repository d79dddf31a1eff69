"""A rank of a tensor parallel engine on the emulation: ``python -m tools.ascend.emulation.emulated_rank follower FD``.

Ranks speak by gloo. One is made to wait for ever where gloo says that another is gone, as HCCL would: what ends it then
is the engine's own doing.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.ascend.stubs import LoadedOnDemand

FOLLOWER = (sys.executable, "-m", "tools.ascend.emulation.emulated_rank", "follower")
"""The command of a follower, for ``engine.parallel.Followers``."""
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
"""Of all ranks: gloo asks for the address of the machine's name, which may have none."""
STUBS = Path(__file__).parents[3] / "build" / "ascend" / "stubs"
FOR_EVER_S = 3600.0


def follow() -> None:
    """Be a follower; its descriptor is the first argument."""
    with emulated_rank():
        importlib.import_module("engine.follower").run()


@contextlib.contextmanager
def emulated_rank() -> Iterator[None]:
    """While it lasts ``--device ascend`` is the emulation, as a rank that waits for ever for one that is gone."""
    os.environ.update(ENVIRONMENT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it is started in the background
    sys.meta_path.insert(0, LoadedOnDemand(STUBS))
    import torch  # noqa: PLC0415  (as all that follows: it may ask for torch_npu)

    from kernels.ascend.backend import ops_on  # noqa: PLC0415
    from kernels.resolve import BACKENDS  # noqa: PLC0415
    from tools.ascend.emulation.platform import emulated_platform  # noqa: PLC0415

    platform, real = emulated_platform(), BACKENDS["ascend"]
    torch.set_num_threads(1)  # ranks run side by side
    _wait_instead_of_failing()
    BACKENDS["ascend"] = lambda options: ops_on(platform, options)
    try:
        yield
    finally:
        BACKENDS["ascend"] = real


def _wait_instead_of_failing() -> None:
    from kernels.ascend.parallel import Ranks  # noqa: PLC0415

    gather = Ranks._gather

    def patient(self: Ranks, x: Any) -> Any:
        try:
            return gather(self, x)
        except RuntimeError:
            time.sleep(FOR_EVER_S)
            raise

    Ranks._gather = patient  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv.pop(1) != FOLLOWER[-1]:
        raise SystemExit(__doc__)
    follow()
