"""Link 5: the first-hour script as a user runs it, in emulation; and that what is wrong is told as a failure."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from deploy.ascend import first_hour
from deploy.ascend.first_hour import EMULATED, STEPS, main
from deploy.ascend.steps.bench import ON_CHIP, Bench
from deploy.ascend.steps.caches import cache_subjects
from deploy.ascend.steps.report import Report, Verdict
from deploy.ascend.steps.serving import tokens_in_common
from kernels.ascend.attention import Attention
from kernels.ascend.variant import HEAD_DIMS, MAX_GROUP, AttentionVariant
from kernels.ops import BackendUnavailable
from tests.support.ascend_links import REPOSITORY, link
from tests.support.first_hour import emulated_platform, failures

pytestmark = link(5)

SCRIPT = REPOSITORY / "deploy" / "ascend" / "first_hour.py"
ENVIRONMENT = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, default_model):
    """The whole script: how it ended, and what it wrote to its file."""
    folder = tmp_path_factory.mktemp("hour")
    done = run("--emulated", "--model", str(default_model), "--json", "found.json", cwd=folder)
    return done, json.loads((folder / "found.json").read_text())


@pytest.fixture
def emulated():
    with emulated_platform() as made:
        yield made


def test_every_step_is_there_and_nothing_fails(whole):
    done, found = whole
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [step["step"] for step in found["steps"]] == list(range(len(STEPS))) == list(range(10))
    verdicts = [step["verdict"] for step in found["steps"]]
    assert verdicts == ["PASS"] * 6 + ["MEASURED"] + ["PASS"] * 3
    for number, step in enumerate(STEPS):
        assert f"\n--- step {number}: {step.title} [EMULATED]\n" in done.stdout
        assert re.search(rf"^  (PASS|MEASURED)\s+step {number}: ", done.stdout, re.MULTILINE)
    assert {line["verdict"] for step in found["steps"] for line in step["lines"]} == {"PASS", "MEASURED"}


def test_an_emulation_says_so_in_every_line_of_its_header_and_in_the_end(whole):
    done, found = whole
    header = done.stdout.partition("\n\n")[0].splitlines()
    assert len(header) >= 3
    assert all(line.startswith(EMULATED) for line in header)
    assert done.stdout.splitlines()[-1] == EMULATED
    assert (found["emulated"], found["note"]) == (True, EMULATED)


def test_every_operation_that_the_backend_calls_is_tried_against_numpy(whole):
    _, found = whole
    source = "".join(path.read_text() for path in (REPOSITORY / "kernels" / "ascend").glob("*.py"))
    called = set(re.findall(r"npu\.(npu_\w+)\(", source))
    assert len(called) >= 10
    said = " ".join(line["text"] for step in (2, 5) for line in found["steps"][step]["lines"])
    tried = set(re.findall(r"npu_\w+", said + STEPS[5].title))
    assert called <= tried


def test_rows_are_tried_in_all_numbers_of_others(whole):
    done, _ = whole
    head, *rows = done.stdout.partition("at three places: bits\n")[2].partition("\n  PASS")[0].splitlines()
    assert head.split() == ["operation", "2", "16", "17", "255", "256", "257"]
    assert len(rows) >= 18
    assert all(row.split()[-6:] == ["same"] * 6 for row in rows)


def test_figures_are_those_that_were_asked_for(whole):
    _, found = whole
    bandwidth = [line["figures"] for line in found["steps"][6]["lines"]]
    assert bandwidth[0]["copy_gb_per_s"] > 0
    assert all(figures["graph_s"] > 0 for figures in bandwidth[1:])
    every = [(1, 256), (1, 1280), (3, 256), (3, 1280)]
    tried = [(figures["sequences"], figures["context"], figures["scores"]) for figures in bandwidth[1:]]
    for scores, wanted in {"fp32": every, "i32": every, "fp16": every[1::2]}.items():
        assert [(batch, context) for batch, context, as_what in tried if as_what == scores] == wanted
    for figures in bandwidth[1:]:
        assert figures["kv_bytes"] == figures["sequences"] * figures["context"] * 2 * 64 * 2 * (2 - figures["int8"])
        assert figures["int8"] == (figures["scores"] == "i32")
    fused = [line["figures"] for line in found["steps"][5]["lines"] if "ratio" in line["figures"]]
    assert all(figures["ratio"] == pytest.approx(figures["ours_s"] / figures["fused_s"]) for figures in fused)
    assert fused


def test_a_cache_of_int8_is_captured_and_served_with_too(whole):
    _, found = whole
    said = [[line["text"] for line in found["steps"][number]["lines"]] for number in (7, 8)]
    same = [text for text in said[0] if text.endswith(": the same bits")]
    assert len(same) == 2 * 8
    assert same[8:] == [text.replace(": the", ", a cache of int8: the") for text in same[:8]]
    assert "graphs were replayed 7 times in 7 steps, a cache of int8" in said[0]
    ways = re.findall(r"^(.*), 4 together: ", "\n".join(said[1]), re.MULTILINE)
    assert ways == ["eagerly", "with graphs", "with graphs and a cache of int8"]
    assert sum(text.endswith(": the same tokens") for text in said[1]) == 4
    assert [" loaded with graphs and a cache of int8 in " in text for text in said[1] if "i8 cache)" in text] == [True]
    (common,) = [line["figures"] for line in found["steps"][8]["lines"] if "common" in line["figures"]]
    assert (common["tokens"], len(common["common"])) == (16, 4)


def test_tokens_in_common_end_where_answers_part(capsys):
    report = Report(8, "title")
    tokens_in_common(report, {"a": [1, 2, 3], "b": [4, 5, 6], "c": [7]}, {"a": [1, 9, 3], "b": [4, 5, 6], "c": [8]})
    assert report.lines[0].figures == {"common": [1, 3, 0], "tokens": 7}
    assert "4 of 7 tokens" in capsys.readouterr().out


def test_what_sampling_takes_is_measured(whole):
    _, found = whole
    figures = [line["figures"] for line in found["steps"][7]["lines"] if "highest_s" in line["figures"]]
    assert [(entry["rows"], entry["vocabulary"]) for entry in figures] == [(1, 1000), (3, 1000)]
    assert all(entry["best_s"] > 0 and entry["highest_s"] > 0 for entry in figures)
    assert "us for its 51 highest" in " ".join(line["text"] for line in found["steps"][7]["lines"])


def test_a_chip_is_tried_with_every_size_of_heads_and_the_largest_group():
    assert {dim for _, dim in ON_CHIP.heads} == {k_dim for k_dim, v_dim in HEAD_DIMS if k_dim == v_dim}
    assert max(group for group, _ in ON_CHIP.heads) == MAX_GROUP
    for group, dim in ON_CHIP.heads:
        AttentionVariant(ON_CHIP.kv_heads, group, dim, dim, "bf16", "i32")


def test_a_result_that_is_rounded_wrongly_fails(capsys, monkeypatch, emulated):
    platform, npu = emulated
    real = npu.npu_swiglu
    monkeypatch.setattr(
        npu, "npu_swiglu", lambda x, *more: (real(x, *more).view(dtype=npu.torch.int16) & ~3).view(x.dtype)
    )
    found = failures(capsys, "--step", "2", platform=platform)
    assert [text.partition(":")[0] for text, _ in found] == ["npu_swiglu"]
    assert "upwell doctor" in found[0][1]


@pytest.mark.parametrize(
    "chosen",
    [
        lambda torch, x: torch.where(x.isfinite().all(-1), x.shape[1] - 1 - x.flip(-1).argmax(-1), -1),
        lambda torch, x: torch.where(x.isinf().any(-1), -1, x.nan_to_num(-torch.inf).argmax(-1)),
        lambda torch, x: torch.where(x.isnan().any(-1), -1, x.argmax(-1)),
    ],
    ids=["the last of a tie", "NaN is passed over", "infinity wins"],
)
def test_a_best_token_that_is_another_fails(capsys, monkeypatch, emulated, chosen):
    monkeypatch.setattr("kernels.ascend.sampling.best_tokens", chosen)
    (found,) = failures(capsys, "--step", "2", platform=emulated[0])
    assert found[0].startswith("best token of a row: ")


@pytest.mark.parametrize(("dtype", "told"), [("float16", True), ("bfloat16", False)])
def test_experts_that_float16_does_not_serve_are_served_with_bfloat16(capsys, monkeypatch, emulated, dtype, told):
    platform, npu = emulated

    def refuse(*_, **__):
        raise RuntimeError("call aclnnMoeTokenUnpermute failed, error code is 161002")

    monkeypatch.setattr(npu, "npu_moe_token_unpermute", refuse)
    found = failures(capsys, "--step", "2", "--step", "3", "--dtype", dtype, platform=platform)
    names = [text.partition(":")[0] for text, _ in found]
    operation = "npu_moe_token_unpermute"
    assert names == [operation, operation, "a mixture of experts, whole", "a mixture of experts, W8A8, whole"]
    assert all(remedy.startswith("161002: ") for _, remedy in found)
    assert all(("with --dtype bfloat16" in remedy) == told for _, remedy in found)


def test_a_cache_is_written_as_the_backend_writes_it(monkeypatch, emulated):
    bench = Bench(lambda: emulated[0], emulated=True, dtype="float16", model="")
    stores = ["npu_scatter_pa_kv_cache", "npu_scatter_nd_update_ (not called)"]
    assert [build().name for build in cache_subjects(bench)] == stores
    monkeypatch.setattr("deploy.ascend.steps.caches.is_told_how_caches_lie", lambda _: False)
    assert [build().name for build in cache_subjects(bench)] == ["npu_scatter_nd_update_"]


def test_a_row_that_depends_on_its_neighbours_fails(capsys, monkeypatch, emulated):
    platform, npu = emulated
    real = npu.npu_quant_matmul

    def many_rows(x, *more, **options):
        out = real(x, *more, **options)
        return out if len(x) < 257 else out.nextafter(out + 1)

    monkeypatch.setattr(npu, "npu_quant_matmul", many_rows)
    assert main(["--step", "3", "--emulated"], lambda: platform) == 1
    shown = capsys.readouterr().out
    (row,) = re.findall(r"^ +npu_quant_matmul  +(.*)$", shown, re.MULTILINE)
    cells = re.split(r"  +", row)
    assert cells[:4] == ["same"] * 4
    assert all(cell.endswith(" differ") for cell in cells[4:])
    assert re.findall(r"^  FAIL       (npu_.*)$", shown, re.MULTILINE) == [
        "npu_quant_matmul: a row depends on its neighbours"
    ]


def test_what_the_backend_does_not_call_is_measured_and_no_failure(capsys, monkeypatch, emulated):
    platform, npu = emulated
    real = npu.npu_add_rms_norm
    monkeypatch.setattr(
        npu, "npu_add_rms_norm", lambda x, y, *more: tuple(out + (len(x) > 20) for out in real(x, y, *more))
    )
    assert main(["--step", "3", "--emulated"], lambda: platform) == 0
    assert "MEASURED   npu_add_rms_norm (not called): rows depend on their neighbours" in capsys.readouterr().out


def test_attention_that_depends_on_its_company_fails(capsys, monkeypatch, emulated):
    real = Attention.paged_attention
    monkeypatch.setattr(
        Attention,
        "paged_attention",
        lambda self, q, cache, batch, *more: real(self, q, cache, batch, *more)
        * (1 + (len(batch.kv_lens) > 250) / 512),
    )
    found = failures(capsys, "--step", "4", platform=emulated[0])
    kinds = [re.match(r"3 x 64(.*): a sequence alone, and", text)[1] for text, _ in found]
    assert kinds == ["", ", a cache of int8", ", scores as float16"]
    assert all("among 256 others: sequences [0, 1, 100, 199, 200, 256] differ" in text for text, _ in found)
    assert ["do not serve" in remedy for _, remedy in found] == [True, True, False]


def test_attention_that_is_off_fails(capsys, monkeypatch, emulated):
    real = Attention.paged_attention
    monkeypatch.setattr(Attention, "paged_attention", lambda *given: real(*given) * (1 + 1 / 128))
    found = failures(capsys, "--step", "4", platform=emulated[0])
    assert len(found) == 8, "all but loud scores as float16, which may be off by more than that"
    assert all("times what rounding explains" in text for text, _ in found)


def test_scores_as_float16_are_tried_by_themselves(capsys, monkeypatch, emulated):
    real = Attention.paged_attention

    def off(self, q, cache, batch, *more):
        share = 1 / 64 + len(batch.kv_lens) / 1024 if self._scores == "fp16" else 0
        return real(self, q, cache, batch, *more) * (1 + share)

    monkeypatch.setattr(Attention, "paged_attention", off)
    found = failures(capsys, "--step", "4", platform=emulated[0])
    assert [re.split(r": (?=[\d.]+ times|sequences|queries)", text)[0] for text, _ in found] == [
        "3 x 64: decoding with loud scores, as float16",
        "3 x 64: prompts, scores as float16",
        "3 x 64, scores as float16: a sequence alone, and among 256 others",
        "3 x 64, scores as float16: 12 queries of prompts, and decoded alone",
    ]
    assert all("without --attention-scores float16" in remedy for _, remedy in found)


def test_keys_and_values_that_are_not_what_was_written_fail(capsys, monkeypatch, emulated):
    real = Attention.write_kv
    monkeypatch.setattr(Attention, "write_kv", lambda self, cache, k, v, slots: real(self, cache, k, v * 1.01, slots))
    (found,) = failures(capsys, "--step", "4", platform=emulated[0])
    assert float(re.search(r"heads of 64: ([\d.]+) steps off at most", found[0])[1]) > 1
    assert "leave --kv-cache-dtype out" in found[1]


def test_an_error_with_a_code_is_explained_and_the_step_goes_on(capsys, monkeypatch, emulated):
    platform, npu = emulated

    def refuse(*_, **__):
        raise RuntimeError("call aclnnFusedInferAttentionScoreV3 failed, error code is 561003")

    monkeypatch.setattr(npu, "npu_fused_infer_attention_score", refuse)
    found = failures(capsys, "--step", "5", platform=platform)
    assert len(found) == 7
    assert all("error code is 561003" in text for text, _ in found)
    assert all(remedy.startswith("561003: An operator has no kernel for this chip.") for _, remedy in found)


@pytest.mark.parametrize(("good", "caches"), [(0, {False, True}), (3, {True})], ids=["all", "those of a cache of int8"])
def test_a_graph_that_goes_stale_fails(capsys, emulated, good, caches):
    platform, _ = emulated
    made = []

    def stale():
        graph = platform.new_graph()
        made.append(graph)
        if len(made) <= good:
            return graph
        real, graph.done = graph.replay, 0

        def replay():
            graph.done += 1
            if graph.done < 3:
                real()

        graph.replay = replay
        return graph

    found = failures(capsys, "--step", "7", platform=dataclasses.replace(platform, new_graph=stale))
    assert {"a cache of int8" in text for text, _ in found} == caches
    assert all("logits differ" in text and "--eager" in remedy for text, remedy in found)


def test_graphs_that_are_not_replayed_fail(capsys, monkeypatch, emulated):
    monkeypatch.setattr("kernels.ascend.recorded.RecordedStep._filled", lambda *_: None)
    found = failures(capsys, "--step", "7", platform=emulated[0])
    text = "graphs were replayed 0 times in 7 steps"
    assert [said for said, _ in found] == [text, f"{text}, a cache of int8"]


def test_answers_that_depend_on_their_company_fail(capsys, monkeypatch, emulated, default_model):
    platform, npu = emulated
    real = npu.npu_rms_norm
    monkeypatch.setattr(
        npu, "npu_rms_norm", lambda x, *more: tuple(out * (1 if len(x) == 1 else -1) for out in real(x, *more))
    )
    found = failures(capsys, "--step", "8", "--model", str(default_model), platform=platform)
    assert any(text.startswith("eagerly, each alone, and eagerly, together: prompt") for text, _ in found)
    assert found[-1][0].startswith("with graphs and a cache of int8, each alone, and with graphs and a cache of int8, ")
    assert all("step 3" in remedy for _, remedy in found)


def test_several_processes_answer_as_one_does(whole):
    _, found = whole
    lines = found["steps"][9]["lines"]
    said = [line["text"] for line in lines]
    assert "2 NPUs cannot share out" in said[0]
    ways = ["one process, with graphs", "2 processes, eagerly", "2 processes, with graphs"]
    assert [way for way in ways if any(f"{way}, 4 together: " in text for text in said)] == ways
    assert sum("tensor parallel over 2" in text for text in said) == 2
    assert sum(text.endswith("bit for bit") for text in said) == 4
    assert [text for text in said if text.endswith(": the same tokens wherever one is sure")] == [
        f"{way}, and {ways[0]}: the same tokens wherever one is sure" for way in ways[1:]
    ]
    figures = {name: value for line in lines for name, value in line["figures"].items()}
    assert figures["tokens"] == 48
    assert figures["compared"] >= 24
    assert 0 < figures["off"] < 0.1
    assert figures["ratio"] > 0


def test_a_device_that_is_not_there_fails_every_step_and_ends_none(capsys, tmp_path):
    def nothing():
        raise BackendUnavailable("torch_npu finds no NPU.")

    steps = [word for number in range(1, 10) for word in ("--step", str(number))]
    found = tmp_path / "found.json"
    assert main([*steps, "--emulated", "--json", str(found), "--model", "./nowhere.gguf"], nothing) == 1
    assert {step["verdict"] for step in json.loads(found.read_text())["steps"]} == {"FAIL"}
    assert capsys.readouterr().out.count("torch_npu finds no NPU") >= 8


def test_without_an_npu_the_real_thing_fails_in_a_line(tmp_path):
    done = run("--step", "0", "--step", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "EMULATED" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert re.search(r"^  FAIL       device nodes: -", done.stdout, re.MULTILINE)
    assert re.search(r"^  FAIL  .*BackendUnavailable", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("program", "timeout", "reason"),
    [
        ("import os; os.abort()", "60", "ended by signal 6"),
        ("import time; print('waits', flush=True); time.sleep(60)", "0.8", "no answer within 0.8 s"),
        ("raise SystemExit('SetDevice, error code is 507033')", "60", "507033: The device could not be opened."),
    ],
)
def test_a_step_that_takes_its_process_with_it_is_a_failure_and_the_next_is_tried(
    capsys, monkeypatch, program, timeout, reason
):
    monkeypatch.setattr(first_hour, "command", lambda _: [sys.executable, "-c", program])
    monkeypatch.setattr(first_hour, "STEPS", STEPS[:2])
    assert main(["--emulated", "--timeout-s", timeout]) == 1
    shown = capsys.readouterr().out
    assert shown.count(f"  FAIL       its process ended: {reason}") == 2
    assert "failed: step 0, 1\n" in shown


def test_a_process_that_ends_badly_after_its_step_is_told(capsys, monkeypatch):
    facts = {"steps": [Report(0, "title").facts() | {"lines": [{"verdict": "PASS", "text": "good"}]}]}
    program = f"import os, sys; open(sys.argv[-1], 'w').write({json.dumps(facts)!r}); os.abort()"
    monkeypatch.setattr(first_hour, "command", lambda _: [sys.executable, "-c", program])
    monkeypatch.setattr(first_hour, "STEPS", STEPS[:1])
    assert main(["--emulated"]) == 0
    assert "had done all, but ended badly: ended by signal 6" in capsys.readouterr().out


def test_the_page_has_a_row_for_each_step_and_flags_that_there_are():
    page = SCRIPT.with_name("README.md").read_text()
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == [str(number) for number in range(len(STEPS))]
    flags = set(re.findall(r"first_hour\.py.*?(--[\w-]+)", page)) | {"--timeout-s", "--dtype", "--model", "--step"}
    assert {"--emulated", "--json"} <= flags
    for flag in flags:
        assert f'"{flag}"' in SCRIPT.read_text()


def test_a_step_without_findings_has_failed_and_reports_survive_a_file():
    report = Report(3, "title")
    assert report.verdict is Verdict.FAIL
    report.measured("so fast", seconds=1.5)
    assert report.verdict is Verdict.MEASURED
    report.passed("good")
    assert report.verdict is Verdict.PASS
    report.failed("bad", "mend it")
    again = Report.of_facts(json.loads(json.dumps(report.facts())))
    assert (again.lines, again.verdict) == (report.lines, Verdict.FAIL)
