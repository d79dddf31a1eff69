"""Models from hubs: the real Hugging Face client against a hub on the loopback; ModelScope's by its signatures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from engine.errors import ConfigError, ModelError, ModelNotFound, UnsupportedModel
from engine.weights.hub import choose_files
from engine.weights.store import resolve_model
from tests.support.fake_hub import FakeHub, fake_hub

FILES = {
    "config.json": b"{}",
    "model-1.safetensors": b"x" * 4000,
    "tokenizer.json": b"{}",
    "tokenizer.model": b"t",
    "chat_template.jinja": b"{{ }}",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"code",
    "README.md": b"text",
    "consolidated.safetensors": b"again",
    "onnx/model.safetensors": b"elsewhere",
}
WANTED = {"config.json", "model-1.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"}

_RESOLVE = """
import sys
from pathlib import Path
from engine.errors import UpwellError
from engine.weights.store import resolve_model
try:
    model = resolve_model(sys.argv[1], Path(sys.argv[2]))
    print(model.path, model.name)
except UpwellError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def start(hub: FakeHub, name: str, cache: Path) -> subprocess.Popen[str]:
    """Resolve a name in a process whose hub is ours."""
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1"}
    env = {**os.environ, **own, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", _RESOLVE, name, str(cache)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(hub: FakeHub, name: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """As ``start``, to its end."""
    process = start(hub, name, cache)
    out, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


class TestHuggingFace:
    def test_only_what_a_model_needs_is_fetched_and_only_once(self, tmp_path: Path) -> None:
        with fake_hub("org/name", FILES) as hub:
            first = run(hub, "hf:org/name", tmp_path)
            folder = tmp_path / "hf" / "org" / "name"
            assert first.stdout == f"{folder} org/name\n", first.stderr
            assert sorted(hub.fetched) == sorted(WANTED)
            assert {path.name for path in folder.iterdir()} == {*WANTED, ".lock", ".upwell.json"}
            for name in WANTED:
                assert (folder / name).read_bytes() == FILES[name]
            hub.files = {}
            assert run(hub, "hf:org/name", tmp_path).stdout == first.stdout
            assert resolve_model("hf:org/name", tmp_path).path == folder

    def test_the_only_gguf(self, tmp_path: Path) -> None:
        with fake_hub("org/name", {"a.Q4_0.gguf": b"GGUF", "config.json": b"{}", "x.bin": b"y"}) as hub:
            done = run(hub, "hf:org/name", tmp_path)
            assert done.stdout == f"{tmp_path / 'hf/org/name/a.Q4_0.gguf'} org/name\n", done.stderr

    def test_an_interrupted_download_goes_on(self, tmp_path: Path) -> None:
        folder = tmp_path / "hf" / "org" / "name"
        with fake_hub("org/name", FILES) as hub:
            hub.stall = "model-1.safetensors"
            process = start(hub, "hf:org/name", tmp_path)
            assert hub.stalled.wait(60)
            # The hub's library notes last that a file is whole.
            noted = folder / "partial" / ".cache/huggingface/download/tokenizer.json.metadata"
            for _ in range(3000):
                if noted.exists() and noted.read_text().count("\n") >= 3:
                    break
                time.sleep(0.01)
            else:
                pytest.fail("the file was never noted as whole")
            process.kill()
            process.communicate()
            assert {path.name for path in folder.iterdir()} == {"partial", ".lock"}
            hub.stall = None
            hub.fetched.clear()
            assert run(hub, "hf:org/name", tmp_path).returncode == 0
            assert "model-1.safetensors" in hub.fetched
            assert "tokenizer.json" not in hub.fetched
        assert {path.name for path in folder.iterdir()} == {*WANTED, ".lock", ".upwell.json"}
        assert (folder / "model-1.safetensors").read_bytes() == FILES["model-1.safetensors"]

    def test_no_such_repository(self, tmp_path: Path) -> None:
        with fake_hub("org/name", FILES) as hub:
            done = run(hub, "hf:org/other", tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("ModelNotFound: org/other could not be fetched: ")
        assert done.stderr.count("\n") == 1


class TestModelScope:
    @pytest.fixture
    def client(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
        """Modules with the two functions we use of modelscope 1.40, and the calls that were made."""
        calls: list[dict[str, object]] = []

        class HubApi:
            def get_model_files(self, model_id: str, *, recursive: bool) -> list[dict[str, object]]:
                if model_id != "org/name":
                    raise RuntimeError("record not found\n(request id 7)")
                return [{"Path": name, "Size": len(content)} for name, content in FILES.items()]

        def snapshot_download(model_id: str, *, local_dir: str, allow_patterns: list[str]) -> str:
            calls.append({"model_id": model_id, "names": allow_patterns})
            for name in allow_patterns:
                (Path(local_dir) / name).write_bytes(FILES[name])
            return local_dir

        for name, members in {
            "modelscope": {},
            "modelscope.hub": {},
            "modelscope.hub.api": {"HubApi": HubApi},
            "modelscope.hub.snapshot_download": {"snapshot_download": snapshot_download},
        }.items():
            module = types.ModuleType(name)
            module.__dict__.update(members)
            monkeypatch.setitem(sys.modules, name, module)
        return calls

    def test_only_what_a_model_needs_is_fetched_and_only_once(self, tmp_path: Path, client: list[object]) -> None:
        for _ in range(2):
            model = resolve_model("modelscope:org/name", tmp_path)
            assert (model.path, model.name) == (tmp_path / "modelscope/org/name", "org/name")
        assert len(client) == 1
        assert set(client[0]["names"]) == WANTED

    def test_no_such_repository(self, tmp_path: Path, client: list[object]) -> None:
        with pytest.raises(ModelError, match=r"org/other could not be fetched: 'record not found \(request id 7\)'\.$"):
            resolve_model("modelscope:org/other", tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("hf:a/b", "huggingface_hub", "hf"), ("modelscope:a/b", "modelscope.hub.api", "modelscope")],
)
def test_a_missing_client_says_how_to_install_it(
    tmp_path: Path, name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'upwell\[{extra}\]'"):
        resolve_model(name, tmp_path)


@pytest.mark.parametrize("address", ["", "name", "a/b/c", "../b", "a/..", "/b", "a/", "a b/c", "a/b\n", "-a/b", "a/.b"])
@pytest.mark.parametrize("hub", ["hf", "modelscope"])
def test_what_is_no_repository(tmp_path: Path, hub: str, address: str) -> None:
    with pytest.raises(ModelNotFound, match=f"is not of the form {hub}:ORG/NAME"):
        resolve_model(f"{hub}:{address}", tmp_path)


class TestChoice:
    def test_safetensors_go_before_gguf(self) -> None:
        assert choose_files("r", ["m.safetensors", "a.gguf", "b.gguf", "config.json"]) == [
            "m.safetensors",
            "config.json",
        ]

    def test_several_ggufs(self) -> None:
        with pytest.raises(UnsupportedModel, match=r"2 GGUF files; .*: a\.gguf, b\.gguf\."):
            choose_files("r", ["b.gguf", "a.gguf", "config.json"])

    @pytest.mark.parametrize("names", [[], ["model.bin", "config.json"], ["sub/m.safetensors", "*.safetensors"]])
    def test_nothing_to_read(self, names: list[str]) -> None:
        with pytest.raises(ModelNotFound, match=r"neither \.safetensors nor \.gguf"):
            choose_files("r", names)

    @pytest.mark.parametrize("name", ["a.py", "a.bin", "a.pt", "../a.json", ".git.json", "a*.json", "[a].json"])
    def test_never_fetched(self, name: str) -> None:
        assert choose_files("r", ["m.safetensors", name]) == ["m.safetensors"]
