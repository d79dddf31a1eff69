"""A fetched model on disk: files that are whole or not there, whatever interrupts their fetching.

Used by ``store``. An entry is a folder with the model's files and a record of how long each is and what it hashes to.
Files are fetched into a temporary folder inside the entry, hashed, synced and renamed into place; the record is written
last. So a file without a record counts for nothing, and a killed process leaves only a temporary folder, which the next
one removes. A lock on the entry lets one process fetch at a time; the kernel frees it when its holder dies.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.errors import ConfigError

Say = Callable[[str], None]

_RECORD = ".upwell.json"
_TEMPORARY = "partial"
_CHUNK_BYTES = 1 << 20
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FileRecord(msgspec.Struct, frozen=True):
    """What a whole file looks like: its length in bytes, and its hash in hexadecimal."""

    name: str
    size: int
    sha256: str


class Record(msgspec.Struct, frozen=True):
    """What an entry holds, and where it came from."""

    source: str
    files: list[FileRecord]


class CacheEntry:
    """One model's folder in the cache, fetched from one source."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self._source = source

    def record(self, *, verify: bool) -> Record | None:
        """The record, if it is of our source and every file in it is there and as long as it says.

        With ``verify`` each file must also hash to what the record says.
        """
        try:
            record = msgspec.json.decode((self.folder / _RECORD).read_bytes(), type=Record)
            is_whole = all(self._is_whole(file, verify=verify) for file in record.files)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return record if is_whole and record.files and record.source == self._source else None

    def _is_whole(self, file: FileRecord, *, verify: bool) -> bool:
        path = self.folder / file.name
        return path.stat().st_size == file.size and (not verify or sha256_of(path) == file.sha256)

    def fetch(self, fetch: Callable[[Path], list[Path]], say: Say, *, resume: bool, verify: bool) -> Record:
        """The record of a whole entry, fetched if need be. Needs no network, nor a lock, if it is whole already.

        Args:
            fetch: puts files into the folder it is given and names them.
            say: told what takes time.
            resume: leave what an interrupted ``fetch`` got so far for the next one.
            verify: whether a file counts as whole only if it hashes to its record.

        Raises:
            ConfigError: the cache cannot be written, or has no room.
            ModelError: as ``fetch`` does.
        """
        record = self.record(verify=verify)
        if record is not None:
            return record
        with writing_to(self.folder), self._locked(say):
            record = self.record(verify=verify)
            if record is not None:
                return record
            temporary = self._temporary_folder(resume=resume)
            try:
                record = self._install(fetch(temporary), temporary)
            except BaseException:
                if not resume:
                    shutil.rmtree(temporary, ignore_errors=True)
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            return record

    def _temporary_folder(self, *, resume: bool) -> Path:
        """A folder to fetch into; what others have left behind goes first, since none of them holds the lock.

        Unless there is something to resume its name is new: a child of a killed process may still write to the old one.
        """
        resumed = self.folder / _TEMPORARY
        for stale in self.folder.glob(f"{_TEMPORARY}*"):
            if not (resume and stale == resumed):
                shutil.rmtree(stale, ignore_errors=True)
        if not resume:
            return Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}-", dir=self.folder))
        resumed.mkdir(exist_ok=True)
        return resumed

    def _install(self, paths: list[Path], temporary: Path) -> Record:
        """Put fetched files into place. The old record goes first: it does not speak of the new files."""
        files = [FileRecord(path.name, path.stat().st_size, sha256_of(path)) for path in paths]
        record = Record(self._source, files)
        (self.folder / _RECORD).unlink(missing_ok=True)
        for path in paths:
            _sync(path)
            path.replace(self.folder / path.name)
        _sync(self.folder)
        written = temporary / _RECORD
        written.write_bytes(msgspec.json.encode(record))
        _sync(written)
        written.replace(self.folder / _RECORD)
        _sync(self.folder)
        return record

    @contextmanager
    def _locked(self, say: Say) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"Another process is fetching into {self.folder}; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing_to(folder: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn what a full or unwritable disk says into one line that names the folder.

    Args:
        folder: what is written to; need not exist yet.
        needed_bytes: how much is about to be written, if that is known; refused at once if there is less room.

    Raises:
        ConfigError: it cannot be written, or has no room.
    """
    try:
        if needed_bytes is not None and shutil.disk_usage(folder).free < needed_bytes:
            raise no_room(folder, needed_bytes)
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(folder, needed_bytes) from None
        raise ConfigError(f"The cache folder {folder} cannot be written: {error.strerror or error}.") from None


def no_room(folder: Path, needed_bytes: int | None) -> ConfigError:
    """The error for a full disk."""
    need = f"{needed_bytes} bytes ({needed_bytes / 1e6:.0f} MB)" if needed_bytes is not None else "the model"
    return ConfigError(f"There is no room for {need} in {folder}: free some space, or choose another cache folder.")


def copy_stream(read: Callable[[int], bytes], target: Path) -> int:
    """Write a stream to a new file; return its length in bytes. The file is synced when it is put into place.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    written = 0
    with target.open("xb") as file:
        while chunk := read(_CHUNK_BYTES):
            written += file.write(chunk)
    return written


def _sync(path: Path) -> None:
    """Make a file, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
