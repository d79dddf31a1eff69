"""One entry of the model cache: whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.weights import cache
from engine.weights.cache import CacheEntry, Record

RECORD = ".upwell.json"


class Source:
    """Something to fetch: two files, whose content tells how often it was fetched."""

    def __init__(self) -> None:
        self.times = 0
        self.found: set[str] = set()

    def __call__(self, folder: Path) -> list[Path]:
        self.times += 1
        self.found = {path.name for path in folder.iterdir()}
        paths = [folder / "a.bin", folder / "b.bin"]
        for path in paths:
            path.write_bytes(b"%d" % self.times * 100)
        return paths


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def entry(tmp_path: Path) -> CacheEntry:
    return CacheEntry(tmp_path / "some" / "entry", "here")


def fetch(
    entry: CacheEntry, source: Callable[[Path], list[Path]], *, resume: bool = False, verify: bool = False
) -> Record:
    return entry.fetch(source, lambda _: None, resume=resume, verify=verify)


def names(entry: CacheEntry) -> set[str]:
    return {path.name for path in entry.folder.iterdir()}


def test_fetched_once(entry: CacheEntry, source: Source) -> None:
    record = fetch(entry, source)
    assert [(file.name, file.size) for file in record.files] == [("a.bin", 100), ("b.bin", 100)]
    assert fetch(entry, source) == fetch(entry, source, verify=True) == entry.record(verify=True) == record
    assert source.times == 1
    assert names(entry) == {"a.bin", "b.bin", RECORD, ".lock"}


def test_a_whole_entry_is_not_written_to(entry: CacheEntry, source: Source) -> None:
    fetch(entry, source)
    (entry.folder / ".lock").unlink()
    fetch(entry, source)
    assert names(entry) == {"a.bin", "b.bin", RECORD}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda folder: (folder / "b.bin").write_bytes(b"1" * 99),
    "longer": lambda folder: (folder / "b.bin").write_bytes(b"1" * 101),
    "gone": lambda folder: (folder / "b.bin").unlink(),
    "no record": lambda folder: (folder / RECORD).unlink(),
    "record cut": lambda folder: (folder / RECORD).write_text((folder / RECORD).read_text()[:-1]),
    "record empty": lambda folder: (folder / RECORD).write_text("{}"),
    "record no text": lambda folder: (folder / RECORD).write_bytes(b"\xff"),
    "no files": lambda folder: (folder / RECORD).write_text(json.dumps({"source": "here", "files": []})),
    "another source": lambda folder: (folder / RECORD).write_text((folder / RECORD).read_text().replace("here", "x")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(entry: CacheEntry, source: Source, damage: Callable[[Path], object]) -> None:
    fetch(entry, source)
    damage(entry.folder)
    assert entry.record(verify=False) is None
    fetch(entry, source)
    assert source.times == 2
    assert (entry.folder / "b.bin").read_bytes() == b"2" * 100


def test_a_change_of_the_same_length_is_noticed_when_verified(entry: CacheEntry, source: Source) -> None:
    fetch(entry, source)
    (entry.folder / "b.bin").write_bytes(b"x" * 100)
    assert entry.record(verify=False) is not None
    assert entry.record(verify=True) is None
    fetch(entry, source, verify=True)
    assert (entry.folder / "b.bin").read_bytes() == b"2" * 100


class Killed(BaseException):
    """Stands for whatever ends a process between two lines."""


@pytest.mark.parametrize("after", range(4))
def test_interrupted_while_putting_files_into_place(
    entry: CacheEntry, source: Source, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(entry, source)
    (entry.folder / "b.bin").write_bytes(b"x" * 100)
    steps = iter(range(100))
    sync = cache._sync

    def killed(path: Path) -> None:
        if next(steps) == after:
            raise Killed
        sync(path)

    monkeypatch.setattr(cache, "_sync", killed)
    with pytest.raises(Killed):
        fetch(entry, source, verify=True)
    monkeypatch.undo()
    assert entry.record(verify=False) is None
    fetch(entry, source)
    assert source.times == 3
    assert {(entry.folder / name).read_bytes() for name in ("a.bin", "b.bin")} == {b"3" * 100}
    assert names(entry) == {"a.bin", "b.bin", RECORD, ".lock"}


def interrupted(entry: CacheEntry, *, resume: bool) -> None:
    def killed(folder: Path) -> list[Path]:
        (folder / "half").write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        fetch(entry, killed, resume=resume)


def test_what_an_interrupted_fetch_got_is_kept_only_to_be_resumed(entry: CacheEntry, source: Source) -> None:
    interrupted(entry, resume=False)
    assert names(entry) == {".lock"}
    interrupted(entry, resume=True)
    assert names(entry) == {".lock", "partial"}
    fetch(entry, source, resume=True)
    assert source.found == {"half"}
    assert names(entry) == {"a.bin", "b.bin", RECORD, ".lock"}


def test_what_killed_processes_left_is_removed(entry: CacheEntry, source: Source) -> None:
    for name in ("partial", "partial-abc", "partial-def"):
        (entry.folder / name).mkdir(parents=True)
        (entry.folder / name / "a.bin").write_bytes(b"half")
    fetch(entry, source)
    assert source.found == set()
    assert names(entry) == {"a.bin", "b.bin", RECORD, ".lock"}
