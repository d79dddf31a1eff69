"""What ``make bench-kernels`` counts, and that its table is whole; nothing here is timed."""

from __future__ import annotations

import dataclasses

import pytest

from kernels.cpu.abi import CACHE_KINDS, Op
from kernels.cpu.library import load_library
from kernels.cpu.weights import Form
from kernels.formats import WeightFormat as W
from tests.support.backends import DEVICES
from tools.bench_kernels import work as w
from tools.bench_kernels.__main__ import measure_all
from tools.bench_kernels.chains import GROUPS
from tools.bench_kernels.measure import Figure
from tools.bench_kernels.operands import Label
from tools.bench_kernels.report import columns_of, lines_of, roof_rows, row_of, write_docs
from tools.bench_kernels.roofs import Roofs
from tools.bench_kernels.shapes import ExpertShape, ModelShape, Sizes

RAW = {
    "threads": 2,
    "reads": [{"bytes": 1 << 10, "1_gbs": 100.0, "n_gbs": 200.0}, {"bytes": 1 << 20, "1_gbs": 10.0, "n_gbs": 20.0}],
    **dict.fromkeys(("int8", "i16", "fma"), "an instruction"),
    **{f"int8_{n}_gops": {"best": 400.0} for n in "1n"},
    **{f"i16_{n}_gops": {"best": 200.0} for n in "1n"},
    **{f"fma_{n}_gflops": {"best": 100.0} for n in "1n"},
}
SMALL = ModelShape(
    hidden=64, heads=4, kv_heads=2, head_dim=32, inner=96, vocab=100,
    matrices=((128, 64), (64, 96)), formats=(W.Q4_1,), gate_formats=(W.Q4_1,), output_formats=(W.Q8_0,),
)  # fmt: skip
LARGE = dataclasses.replace(
    SMALL, hidden=256, inner=256, matrices=((64, 256),), formats=tuple(W), gate_formats=tuple(W), output_formats=()
)
TINY = Sizes(
    SMALL, LARGE, ExpertShape(256, 256, 4, 2, W.Q4_K), rows=(1, 3), sampled=3, context=20, chunk=8, sequences=(3, 1)
)


def test_a_product_moves_its_weight_and_its_rows():
    # 4 rows of 64 numbers: two blocks of 64 bytes each, or a header of 32 bytes and a byte each, or 256 bytes.
    assert w.product(1000, 10, 64, 4, Form.BLOCKS) == w.Work(1000 + 4 * (2 * 64 + 40), 2 * 10 * 64 * 4, "int8")
    assert w.product(1000, 10, 64, 4, Form.FLOATS) == w.Work(1000 + 4 * (256 + 40), 2 * 10 * 64 * 4, "f32")
    assert w.product(1000, 10, 64, 4, Form.TOKENS) == w.Work(1000 + 4 * (32 + 64 + 40), 2 * 10 * 64 * 4, "int8")
    assert w.silu_product(1000, 64, 64, 4, Form.BLOCKS).num_bytes == 1000 + 4 * (2 * 64 + 64)


def test_attention_counts_the_tokens_that_each_query_sees():
    # Of 3 queries at the end of 5 tokens, one sees 3, one 4, one 5; a query of 2 heads of 16 is 128 bytes in, 64 out.
    chunk = w.attention([(5, 3)], 2, 16, 10, integers=True)
    assert chunk == w.Work(5 * 10 + 3 * (128 + 64), 4 * 2 * 16 * (3 + 4 + 5), "i16")
    assert w.attention([(5, 1), (7, 1)], 2, 16, 10, integers=False) == w.Work(120 + 2 * 192, 4 * 32 * 12, "f32")


def test_experts_count_the_weights_that_are_touched():
    done = w.expert_work(3, 64, 32, 8, 2, Form.BLOCKS, touched_up=700, touched_down=300)
    assert done[Op.EXPERT_UP] == w.Work(700 + 6 * (128 + 64), 2 * 6 * 64 * 64, "int8")
    assert done[Op.EXPERT_DOWN] == w.Work(300 + 6 * (64 + 256), 2 * 6 * 64 * 32, "int8")


def test_the_bound_is_what_takes_longer():
    roofs = Roofs.from_raw(RAW, one=True)
    assert roofs.read_gbs(1 << 5) == roofs.read_gbs(1 << 10) == 100
    assert roofs.read_gbs(1 << 15) == pytest.approx(55)
    assert roofs.read_gbs(1 << 30) == roofs.memory_gbs == 10
    assert roofs.bound(w.Work(1 << 10, 1024, "f32")) == ("read", pytest.approx(1024 / 100e9))
    assert roofs.bound(w.Work(1 << 10, 1024, "f32"), cold=True) == ("read", pytest.approx(1024 / 10e9))
    assert roofs.bound(w.Work(1 << 10, 8192, "int8")) == ("int8", pytest.approx(8192 / 400e9))


def test_a_line_has_rates_and_the_share_of_its_bound():
    figure = Figure(Label("LINEAR", "q4_1", "1 x 1", 1), w.Work(1 << 20, 4_000_000, "int8"), {1: 1e-3, 2: 5e-4})
    (line,) = lines_of([figure], [Roofs.from_raw(RAW, one=True), Roofs.from_raw(RAW, one=False)])
    assert line["threads"]["1"] == {
        "us": 1000.0,
        "gbs": pytest.approx(1.048576),
        "gops": pytest.approx(4.0),
        "bound": "read",
        "share": pytest.approx(0.1048576),
    }
    assert line["threads"]["2"]["share"] == pytest.approx(0.1048576)


@pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")
@pytest.mark.parametrize("cold_bytes", [0, 100_000])
def test_the_table_has_every_operation(cold_bytes, tmp_path, monkeypatch):
    library = load_library()
    library.use(library.isas().split()[0])
    run = measure_all(library, RAW, GROUPS, TINY, 1, cold_bytes)
    lines = run["lines"]
    assert {line["op"] for line in lines} == {op.name for op in Op}
    linear = {(line["variant"], line["rows"]) for line in lines if line["op"] == "LINEAR"}
    assert linear >= {(fmt.label, rows) for fmt in W for rows in TINY.rows}
    for op in ("ATTENTION", "WRITE_KV"):
        assert {line["variant"] for line in lines if line["op"] == op} == set(CACHE_KINDS)
    assert any(line["cold"] for line in lines) == (cold_bytes > 0)
    for line in lines:
        assert len(row_of(line)) == len(columns_of(run))
        assert list(line["threads"]) == ["1", "2"]
        assert all(timed["us"] > 0 and timed["share"] > 0 for timed in line["threads"].values()), line

    monkeypatch.chdir(tmp_path)
    (tmp_path / "roofline.png").touch()
    run |= {"when": "2026-01-01 00:00:00", "commit": "abc", "isa": "x", "rounds": 1}
    run |= {"machine": {"cpu": "a processor", "cores": 2}}
    write_docs(run, tmp_path / "roofline.png")
    page = (tmp_path / "docs" / "kernels.md").read_text()
    assert all(f"## {op.name}\n" in page for op in Op)
    assert page.count("\n| ") >= len(lines) + len(roof_rows(run))
