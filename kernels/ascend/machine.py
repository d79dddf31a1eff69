"""The machine that is looked at: its files, environment, packages and programs, all of which a test can replace."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

_MAX_FILE_BYTES = 1 << 16
_KILL_GRACE_S = 5.0


@dataclass(frozen=True)
class Ran:
    """How a command ended.

    Attributes:
        code: its exit code, negative for a signal; None if it could not be started or did not end in time.
        reason: why there is no code.
    """

    code: int | None
    stdout: str = ""
    stderr: str = ""
    reason: str = ""


Run = Callable[[Sequence[str], Mapping[str, str], float], Ran]
"""(command, environment, seconds it may take) -> how it ended; never raises."""


def run_command(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Ran:
    """Run a command to its end, without input; one that takes too long is killed with all that it started.

    What it had said by then is kept.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(  # noqa: S603  (its callers say what is run)
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return Ran(None, reason=f"cannot be run: {error}")
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stdout = stderr = ""
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that a driver holds fast does not even die
            stdout, stderr = process.communicate(timeout=_KILL_GRACE_S)
        return Ran(None, stdout, stderr, f"no answer within {timeout_s:g} s")
    return Ran(process.returncode, stdout, stderr)


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, by its metadata alone; None if that is missing or damaged."""
    try:
        return metadata.version(name) or None
    except (metadata.PackageNotFoundError, KeyError, OSError, ValueError):
        return None


@dataclass(frozen=True)
class Machine:
    """Where ``probe.diagnose`` looks.

    Attributes:
        environment: of the process.
        root: of the file system.
        run: runs a command.
        version: a distribution's version, None if it is not installed.
        maps: the text of /proc/self/maps; None reads it.
    """

    environment: Mapping[str, str]
    root: Path = Path("/")
    run: Run = run_command
    version: Callable[[str], str | None] = installed_version
    system: str = field(default_factory=platform.system)
    arch: str = field(default_factory=platform.machine)
    python: str = field(default_factory=platform.python_version)
    libc: tuple[str, str] = field(default_factory=platform.libc_ver)
    maps: str | None = None

    def at(self, path: str) -> Path:
        """An absolute path below the root."""
        return self.root / path.lstrip("/")

    def which(self, name: str) -> str | None:
        """A program on this environment's PATH, or in the folder that triton-ascend looks in next."""
        places = (self.environment.get("PATH", ""), self.environment.get("TRITON_NPU_COMPILER_PATH", ""))
        return next(filter(None, (shutil.which(name, path=place) for place in places if place)), None)

    def read(self, path: str) -> tuple[str, str]:
        """The beginning of a text file, and why it could not be read."""
        try:
            with self.at(path).open("rb") as file:
                return file.read(_MAX_FILE_BYTES).decode(errors="replace"), ""
        except FileNotFoundError:
            return "", f"{path} is not there"
        except (OSError, ValueError) as error:
            return "", f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
