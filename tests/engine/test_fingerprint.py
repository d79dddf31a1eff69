"""What changes the word for an engine's tokens, and what does not."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import fingerprint as module
from engine.config import EngineConfig
from engine.errors import ModelError
from engine.fingerprint import HEAD_BYTES, MAX_PIECES, PIECE_BYTES, fingerprint, places
from engine.loading import load_engine
from kernels.cpu.library import load_library
from kernels.ops import Arithmetic, BackendInfo, BackendOptions
from kernels.resolve import resolve
from tests.support.backends import DEVICES
from tests.support.tiny_models import GOLDEN

INFO = BackendInfo("cpu", "native, avx2, 4 threads", Arithmetic(cache="i16"), build="library 1")


@pytest.fixture
def folder(tmp_path):
    """A model's folder."""
    path = tmp_path / "model"
    shutil.copytree(GOLDEN / "tiny-mistral", path)
    return path


def word(path, info=INFO, **options):
    return fingerprint(EngineConfig(model_path=str(path), **options), info)


@pytest.mark.parametrize("device", DEVICES)
def test_an_engine_says_the_same_after_every_start(device):
    config = EngineConfig(model_path=str(GOLDEN / "tiny-mistral"), device=device)
    first, second = (load_engine(config, lambda *_: None)[1].fingerprint for _ in range(2))
    assert first == second
    assert re.fullmatch(r"fp_[0-9a-f]{12}", first)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_byte_of_a_small_file(folder, name):
    before = word(folder)
    file = folder / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert word(folder) != before


def test_files_that_no_token_depends_on(folder):
    before = word(folder)
    (folder / "README.md").write_text("x")
    assert word(folder) == before
    moved = folder.rename(folder.with_name("other"))
    assert word(moved) == before


def test_a_gguf_file_by_its_bytes(tmp_path, default_model):
    before = word(default_model)
    copied = tmp_path / "copy.gguf"
    shutil.copyfile(default_model, copied)
    assert word(copied) == before
    with copied.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert word(copied) != before


def test_weights_that_differ_everywhere_behind_the_head(tmp_path):
    """As those of two trainings do; of the same size, with the same head."""
    words = set()
    for byte in (b"\0", b"\1"):
        path = tmp_path / "model.gguf"
        path.write_bytes(b"GGUF" + bytes(HEAD_BYTES - 4) + byte * (MAX_PIECES * PIECE_BYTES * 3))
        words.add(word(path))
    assert len(words) == 2


OPTIONS = {"quantization": "w8a8", "attention_scores": "float16", "prompt_attention": "fused", "eager": True}


def test_options_that_change_what_is_computed(folder):
    words = {word(folder), *(word(folder, **{name: value}) for name, value in OPTIONS.items())}
    words.add(word(folder, tensor_parallel_size=2))
    for change in ({"name": "ascend"}, {"build": "library 2"}, {"arithmetic": Arithmetic(cache="f32")}):
        words.add(word(folder, dataclasses.replace(INFO, **change)))
    assert len(words) == 1 + len(OPTIONS) + 1 + 3


def test_options_that_do_not(folder):
    others = {"threads": 2, "max_num_seqs": 3, "max_num_batched_tokens": 17, "num_blocks": 5, "max_model_len": 32}
    assert word(folder, dataclasses.replace(INFO, description="native, avx512, 2 threads"), **others) == word(folder)


def test_the_sources(folder, tmp_path, monkeypatch):
    before = word(folder)
    changed = tmp_path / "engine"
    shutil.copytree(module._SOURCES[0], changed)
    monkeypatch.setattr(module, "_SOURCES", (changed, module._SOURCES[1]))
    assert word(folder) == before
    with (changed / "sampler.py").open("a") as file:
        file.write("\n")
    assert word(folder) != before


@pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")
def test_the_native_library_is_part_of_its_backend():
    build = resolve("cpu", BackendOptions()).ops.info.build
    assert build == load_library().digest
    assert re.fullmatch(r"[0-9a-f]{64}", build)


def test_a_model_that_cannot_be_read(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "_seen_of", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        word(folder)


@given(st.integers(0, 1 << 42))
def test_pieces_are_few_in_order_and_within_the_file(size):
    found = list(places(size))
    assert len(found) <= MAX_PIECES
    assert found == sorted(set(found))
    if size <= HEAD_BYTES:
        assert found == []
    else:
        assert found[0] == HEAD_BYTES
        assert found[-1] + PIECE_BYTES >= size
        assert len(found) == min(MAX_PIECES, -(-(size - HEAD_BYTES) // PIECE_BYTES))
