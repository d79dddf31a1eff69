"""The ``upwell`` command's first lines: they come before whatever takes time to import.

While Python imports, a KeyboardInterrupt can be lost: one that is raised in a callback of the import system is printed
and forgotten. So Ctrl-C ends the process by the signal itself until the command takes it over, which it does before
there is anything to clear up. This also holds for a process that was started with Ctrl-C ignored, as shells start what
runs in the background of a script.
"""

from __future__ import annotations

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Entry point of the ``upwell`` command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from server.cli import main as command  # noqa: PLC0415  (it imports the rest)

    command()


if __name__ == "__main__":
    main()
