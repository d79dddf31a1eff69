"""A process of a tensor parallel engine on the emulation: ``python -m tests.support.emulated_rank ROLE FD``.

ROLE is a module of engine: ``follower``, or ``process`` for rank 0, whose followers are emulated too. Both are made to
wait for ever where gloo says that another rank is gone, as HCCL would: what ends them then is the engine's own doing.
Or it is ``upwell``, and then come arguments of that command: its engine is one of these.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import time
from pathlib import Path

from tools.ascend.stubs import LoadedOnDemand

FOLLOWER = (sys.executable, "-m", "tests.support.emulated_rank", "follower")
ENGINE = (sys.executable, "-m", "tests.support.emulated_rank", "process")
UPWELL = (sys.executable, "-m", "tests.support.emulated_rank", "upwell")
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
"""Of all ranks: gloo asks for the address of the machine's name, which may have none."""


def main():
    role = sys.argv.pop(1)
    os.environ.update(ENVIRONMENT)
    if role == "upwell":
        serving()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    sys.meta_path.insert(0, LoadedOnDemand(Path(__file__).parents[2] / ".pytest_cache" / "npu-stubs"))
    from tests.support.ascend_backend import emulated_ascend

    with emulated_ascend():
        wait_instead_of_failing()
        if role == "follower":
            importlib.import_module("engine.follower").run()
        os._exit(leading())


def serving():
    """Be the ``upwell`` command, whose engine process is emulated and else started as it always is."""
    start = asyncio.create_subprocess_exec

    async def start_emulated(*command, **options):
        assert command[1:-1] == ("-P", "-m", "engine.process")
        return await start(*ENGINE, command[-1], **options)

    asyncio.create_subprocess_exec = start_emulated
    importlib.import_module("server.__main__").main()


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
