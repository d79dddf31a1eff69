"""A process of a tensor parallel engine on the emulation: ``python -m tests.support.emulated_rank ROLE FD``.

ROLE is a module of engine: ``follower``, or ``process`` for rank 0, whose followers are emulated too. Both are made to
wait for ever where gloo says that another rank is gone, as HCCL would: what ends them then is the engine's own doing.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

from tools.ascend.stubs import LoadedOnDemand

FOLLOWER = (sys.executable, "-m", "tests.support.emulated_rank", "follower")
ENGINE = (sys.executable, "-m", "tests.support.emulated_rank", "process")
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
"""Of all ranks: gloo asks for the address of the machine's name, which may have none."""


def main():
    role = sys.argv.pop(1)
    os.environ.update(ENVIRONMENT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    sys.meta_path.insert(0, LoadedOnDemand(Path(__file__).parents[2] / ".pytest_cache" / "npu-stubs"))
    from tests.support.ascend_backend import emulated_ascend

    with emulated_ascend():
        wait_instead_of_failing()
        if role == "follower":
            importlib.import_module("engine.follower").run()
        os._exit(leading())


def leading():
    """Be the engine process; its exit code."""
    from engine import parallel, process

    process.refuse_stubs = lambda: None
    process.Followers = lambda on_failure: parallel.Followers(on_failure, FOLLOWER)
    return process.main()


def wait_instead_of_failing():
    from kernels.ascend.parallel import Ranks

    gather = Ranks._gather

    def patient(self, x):
        try:
            return gather(self, x)
        except RuntimeError:
            time.sleep(3600)

    Ranks._gather = patient


if __name__ == "__main__":
    main()
