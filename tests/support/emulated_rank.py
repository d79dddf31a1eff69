"""Processes of a tensor parallel engine on the emulation: ``python -m tests.support.emulated_rank ROLE FD``.

ROLE is a module of engine: ``follower``, or ``process`` for rank 0, whose followers are emulated too. See
``tools.ascend.emulation.emulated_rank`` for what happens in both. Or it is ``upwell``, and then come arguments of that
command: its engine is one of these.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys

from tools.ascend.emulation import emulated_rank
from tools.ascend.emulation.emulated_rank import ENVIRONMENT, FOLLOWER

__all__ = ["ENGINE", "ENVIRONMENT", "FOLLOWER", "UPWELL", "main"]

ENGINE = (sys.executable, "-m", "tests.support.emulated_rank", "process")
UPWELL = (sys.executable, "-m", "tests.support.emulated_rank", "upwell")


def main():
    role = sys.argv.pop(1)
    os.environ.update(ENVIRONMENT)
    if role == "upwell":
        serving()
    elif role == "follower":
        emulated_rank.follow()
    else:
        with emulated_rank.emulated_rank():
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


if __name__ == "__main__":
    main()
