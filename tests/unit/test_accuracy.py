"""What tools.accuracy keeps of each section, and that one table is of one model and one backend."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tools import accuracy
from tools.accuracy import SECTIONS, Figures

PAGE = "# Page\n<!-- table -->\nold\n<!-- end -->\nmore\n"


class Tool:
    """The command line, its measurement replaced and its files in a folder of the test's own."""

    def __init__(self, monkeypatch, folder, capsys):
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.results, self.page, self.compared = folder / "kept" / "accuracy.json", folder / "accuracy.md", []
        self.backend = "avx512, 2 threads"
        self.page.write_text(PAGE)
        monkeypatch.setattr(accuracy, "RESULTS", self.results)
        monkeypatch.setattr(accuracy, "DOCS", self.page)
        monkeypatch.setattr(
            accuracy, "windows", lambda model, positions, window: np.zeros((positions // window, window))
        )
        monkeypatch.setattr(accuracy, "compare", self.compare)
        monkeypatch.setattr(accuracy, "commit", lambda: "c0ffee1")
        monkeypatch.setattr(
            accuracy, "settings_of", lambda model: {"model": model.name, "backend": self.backend, "text": "c0ffee"}
        )

    def compare(self, model, section, text):
        self.compared.append((text.shape, section.weights))
        return [Figures("reference", 0.0, 0.0, 1.0, 10.0), Figures("cpu", 1e-3, 1e-2, 0.99, 10.01)]

    def run(self, *arguments):
        self._monkeypatch.setattr("sys.argv", ["accuracy", *arguments])
        accuracy.main()
        return self._capsys.readouterr().out

    def refused(self, *arguments):
        with pytest.raises(SystemExit, match="2"):
            self.run(*arguments)
        return self._capsys.readouterr().err

    def kept(self):
        return json.loads(self.results.read_text())


@pytest.fixture
def tool(monkeypatch, tmp_path, capsys):
    return Tool(monkeypatch, tmp_path, capsys)


def test_each_section_keeps_what_it_was_measured_with_and_when(tool):
    printed = tool.run("--model", "/models/a.gguf")
    assert len(tool.compared) == len(tool.kept()) == len(SECTIONS)
    for each in tool.kept().values():
        assert (each["model"], each["backend"]) == ("a.gguf", "avx512, 2 threads")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", each["date"])
    date = tool.kept()["file"]["date"]
    assert printed.startswith(f"`a.gguf`; avx512, 2 threads; measured on {date} at c0ffee1; 16,384 or 8,192 positions")
    tool.run("--write-docs")
    assert tool.page.read_text() == PAGE.replace("old", printed.strip())


def test_all_dates_are_told(tool):
    tool.run("--model", "/models/a.gguf")
    kept = tool.kept()
    kept["file"]["date"], kept["long"]["date"] = "2026-01-02", "2026-01-01"
    tool.results.write_text(json.dumps(kept))
    assert "measured on 2026-01-01, 2026-01-02, " in tool.run("--model", "/models/a.gguf", "--only", "q8_0")


def spoil(tool, change):
    tool.run("--model", "/models/a.gguf")
    kept = tool.kept()
    change(kept["q4_0"])
    tool.results.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda each: each.update(model="b.gguf"), "q4_0: model b.gguf, backend avx512, 2 threads"),
        (lambda each: each.update(backend="scalar, 1 thread"), "q4_0: model a.gguf, backend scalar, 1 thread"),
        (lambda each: (each.pop("model"), each.pop("backend")), "q4_0: model unknown, backend unknown"),
    ],
    ids=["model", "backend", "older file"],
)
def test_no_table_mixes_models_or_backends(tool, change, told):
    spoil(tool, change)
    said = tool.refused("--write-docs")
    assert told in said
    assert "  file, halves, long, q8_0, bf16, f16, f32: model a.gguf, backend avx512, 2 threads" in said
    assert "--only NAMES --model PATH" in said
    assert tool.page.read_text() == PAGE
    tool.run("--model", "/models/a.gguf", "--only", "q4_0")  # the way out
    tool.run("--write-docs")
    assert "`a.gguf`" in tool.page.read_text()


def test_a_section_that_would_not_fit_the_others_is_not_measured(tool):
    tool.run("--model", "/models/a.gguf")
    before, tool.compared = tool.kept(), []
    assert "long: model b.gguf" in tool.refused("--model", "/models/b.gguf", "--only", "long")
    tool.backend = "scalar, 1 thread"
    assert "long: model a.gguf, backend scalar" in tool.refused("--model", "/models/a.gguf", "--only", "long")
    assert (tool.compared, tool.kept()) == ([], before)
    assert tool.run("--model", "/models/b.gguf").startswith("`b.gguf`; scalar, 1 thread")


def test_what_is_missing_or_unknown_is_named(tool):
    tool.run("--model", "/models/a.gguf", "--only", "long,file")
    assert "not measured yet: bf16, f16, f32, halves, q4_0, q8_0" in tool.refused("--write-docs")
    assert "there is no short; there are file, halves, long" in tool.refused("--model", "/m", "--only", "short")


def test_where_only_the_ends_of_windows_count(tool):
    """As llama.cpp's own tool counts: as many positions as were asked for, of twice as much text."""
    shown = tool.run("--model", "/models/a.gguf", "--positions", "1024", "--only", "halves")
    assert tool.compared == [((4, 512), None)]
    assert tool.kept()["halves"]["positions"] == 1024
    assert "| the file's | 512, from 256 | cpu | 1.00e-03 | 1.00e-02 | 99.00% | 10.0100 | +0.100% | - |" in shown
    assert "llama.cpp" not in shown


@pytest.mark.parametrize(("peer", "misses"), [(1.1e-3, "-"), (0.9e-3, "KL")])
def test_beside_llama_cpp_its_divergence_is_the_limit(tool, monkeypatch, peer, misses):
    """With the model that it was measured with, in the same windows; elsewhere there is the limit alone."""
    monkeypatch.setattr(accuracy, "PEER_DIVERGENCE", peer)
    shown = tool.run("--model", f"/models/{accuracy.PEER_MODEL}", "--only", "file,halves")
    assert f"| the file's | 512, from 256 | llama.cpp | {peer:.2e} |" in shown
    assert f"512, from 256 | cpu | 1.00e-03 | 1.00e-02 | 99.00% | 10.0100 | +0.100% | {misses} |" in shown
    assert "512 | cpu | 1.00e-03 | 1.00e-02 | 99.00% | 10.0100 | +0.100% | - |" in shown
