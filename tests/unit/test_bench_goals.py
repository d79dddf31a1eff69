"""What the benchmark makes of the figures of a run: goals, the table, the page. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels.cpu.threads import default_threads
from tools.bench import docs, limits, peers, systems
from tools.bench.docs import KEPT_BEGIN, KEPT_END, Unexplained, write_docs
from tools.bench.goals import judge
from tools.bench.limits import NotMeasured, higher_of, run_program
from tools.bench.measure import _memory, _told
from tools.bench.report import limit_notes, notes, threads_line
from tools.bench.scrape import Durations, Scrape

RATES = ("read_weights_n_gbs", "read_large_n_gbs", "int8_n_gops", "fma_n_gflops")
FIGURES = {"best": 100.0, "median": 90.0, "both": [95.0, 100.0]}
LIMITS = {
    "weights_bytes": 1e9,
    "large_bytes": 1 << 30,
    "threads": 2,
    "int8": "vnni",
    "fma": "fma",
    **dict.fromkeys((*RATES, *(name.replace("_n_", "_1_") for name in RATES)), FIGURES),
    "read_large_n_gbs": {"best": 50.0, "median": 45.0, "both": [50.0, 49.0]},
}


def system(name, **workloads):
    return {"name": name, "label": name, "missing": None, "http": True, "error": None, "workloads": workloads}


def figures(tokens_s=10.0, first_ms=100.0, **more):
    return {
        "requests": 1,
        "errors": 0,
        "not_as_asked": [],
        "wall_s": 1.0,
        "tokens": 100,
        "tokens_s": tokens_s,
        "requests_s": 1.0,
        "ttft_p50_ms": first_ms,
        "ttft_p95_ms": first_ms,
        "prompt_tokens_s": 1.0,
        "cpu_s": {"api": 0.001, "engine": 1.0},
        "client_share": 0.0,
        "other_share": 0.0,
        **more,
    }


def run_of(*systems_of_it, limits_of_it=None):
    return {
        "when": "2026-01-02 03:04:05",
        "commit": "abc",
        "machine": {"cpu": "A", "cores": 2, "last_level_cache_bytes": 4 << 30},
        "threads": 2,
        "model": "m",
        "weights_bytes": 1e9,
        "scale": 1.0,
        "limits": limits_of_it,
        "limits_missing": None if limits_of_it else "no compiler.",
        "systems": list(systems_of_it),
        "workloads": {"d4": "four"},
    }


def verdicts_of(*systems_of_it, limits_of_it=None):
    return {verdict.what: verdict for verdict in judge(run_of(*systems_of_it, limits_of_it=limits_of_it))}


def test_a_goal_is_judged_by_the_best_peer():
    slow, fast = system("slow", d4=figures(10.0, 100.0)), system("fast", d4=figures(20.0, 300.0))
    found = verdicts_of(system("upwell", d4=figures(60.0, 50.0)), slow, fast)
    assert found["4 streams, tokens/s"].reached is True
    assert found["4 streams, tokens/s"].peer == "3 x fast (20)"
    assert found["4 streams, first token"].reached is False
    assert found["64 streams, tokens/s"].reached is None


@pytest.mark.parametrize("fault", [{"errors": 1}, {"not_as_asked": ["tokens"]}])
def test_who_does_not_answer_as_asked_is_no_best_peer(fault):
    ours, sound = system("upwell", d4=figures(60.0, 50.0)), system("sound", d4=figures(20.0, 200.0))
    cheat = system("cheat", d4=figures(500.0, 1.0, **fault)) | {"start_s": 0.1}
    found = verdicts_of(ours | {"start_s": 1.0}, sound | {"start_s": 0.5}, cheat)
    assert found["4 streams, tokens/s"].peer == "3 x sound (20)"
    assert found["4 streams, first token"].peer == "0.25 x sound (200)"
    assert found["start until ready"].peer == "2 x sound (0.5)"
    assert any(line.startswith("cheat: d4 counts for nothing") for line in notes(run_of(ours, sound, cheat)))


@pytest.mark.parametrize("fault", [{"errors": 1}, {"not_as_asked": ["prompt_tokens"]}])
def test_our_own_answers_have_to_be_as_asked_too(fault):
    found = verdicts_of(system("upwell", d64=figures(60.0, 50.0, **fault)), system("peer", d64=figures(1.0, 1e4)))
    for what in ("64 streams, tokens/s", "64 streams, first token", "64 streams, CPU of the API process"):
        assert found[what].reached is None


def test_one_line_has_both_goals_of_a_figure_and_both_ends_of_a_limit():
    peer = system("peer", d1=figures(20.0))
    line = verdicts_of(system("upwell", d1=figures(50.0)), peer, limits_of_it=LIMITS)["1 stream, tokens/s"]
    assert line.goal == ">= 70% of reading the weights (100) and >= 2 x best peer"
    assert (line.value, line.peer) == ("50 tokens/s", "2.5 x peer (20)")
    assert line.share == "50% of 100 (weights' size); 100% of 50 (1 GiB)"
    assert (line.reached, line.answer) == (False, "no (limit: no, peer: yes)")
    line = verdicts_of(system("upwell", d1=figures(70.0)), peer, limits_of_it=LIMITS)["1 stream, tokens/s"]
    assert (line.reached, line.answer) == (True, "yes")
    line = verdicts_of(system("upwell", d1=figures(70.0)), peer)["1 stream, tokens/s"]
    assert (line.reached, line.answer, line.share) == (None, "? (limit: ?, peer: yes)", "")


def test_the_time_between_steps_is_judged_by_its_mean_and_the_lag_is_shown():
    gaps = {"bounds_s": [1e-4, 1.5e-4, 1e-3], "counts": [8, 1, 0, 1], "total_s": 2e-3}
    lag = {"bounds_s": [0.001, 0.01, 0.1], "counts": [2, 1, 1, 0], "total_s": 0.04}
    upwell = system("upwell", d1=figures(between_steps=gaps), d64=figures(between_steps=gaps, loop_lag=lag))
    found = verdicts_of(upwell)
    one = found["1 stream, Python between two native steps"]
    assert (one.reached, one.value) == (False, "200 us (mean); 90% of 10 within the goal")
    assert found["64 streams, Python between two native steps"].reached is True
    shown = found["64 streams, lag of the API's event loop"]
    assert (shown.goal, shown.answer, shown.reached) == ("(shown)", "", None)
    assert shown.value == "10 ms (mean); 75% of 4 within 10 ms, all within 100 ms"
    assert Durations([1.0], [0, 2], 9.0).all_within_s() is None


PAGES = [
    """# HELP a_seconds x
# TYPE a_seconds histogram
a_seconds_bucket{le="1e-05"} 1.0
a_seconds_bucket{le="0.5"} 3.0
a_seconds_bucket{le="+Inf"} 3.0
a_seconds_count 3.0
a_seconds_sum 0.5
# TYPE upwell_kv_blocks gauge
upwell_kv_blocks{state="free"} 3.0
upwell_kv_blocks{state="cached"} 1.0
upwell_kv_blocks{state="used"} 0.0
# TYPE upwell_kv_cache_bytes gauge
upwell_kv_cache_bytes 4096.0
# TYPE upwell_native_cpu_seconds counter
upwell_native_cpu_seconds_total 1.5
""",
    """# TYPE a_seconds histogram
a_seconds_bucket{le="1e-05"} 1.0
a_seconds_bucket{le="0.5"} 5.0
a_seconds_bucket{le="+Inf"} 6.0
a_seconds_count 6.0
a_seconds_sum 2.0
# TYPE upwell_native_cpu_seconds counter
upwell_native_cpu_seconds_total 4.0
""",
]


def test_what_a_load_added_to_a_servers_metrics():
    before, after = map(Scrape, PAGES)
    found = after.durations_since(before, "a_seconds")
    assert found == {"bounds_s": [1e-5, 0.5], "counts": [0, 2, 1], "total_s": 1.5}
    assert after.durations_since(after, "a_seconds") is None
    assert after.durations_since(before, "b_seconds") is None
    assert _told(before, after) == {"native_cpu_s": 2.5}
    assert _told(None, None) == {}


class Told:
    """A system that has a page of metrics, and no processes."""

    def __init__(self, page):
        self.page = page

    async def metrics(self):
        return self.page and Scrape(self.page)

    def pids(self):
        return {}


async def test_the_cache_is_known_by_the_servers_metrics():
    found = await _memory(Told(PAGES[0]))
    assert (found["kv_bytes"], found["kv_written_bytes"]) == (4096, 1024)
    just_started = PAGES[0].replace("3.0", "0.0").replace("1.0", "0.0")
    assert (await _memory(Told(just_started)))["kv_written_bytes"] == 0
    assert "kv_bytes" not in await _memory(Told(None))


def test_limits_measured_twice_are_the_higher_ones():
    before = {"threads": 2, "read": {"best": 50.0, "median": 49.0}, "int8": {"best": 10.0, "median": 9.0}}
    after = {"threads": 2, "read": {"best": 80.0, "median": 79.0}, "int8": {"best": 9.5, "median": 9.0}}
    assert higher_of(before, after) == {
        "threads": 2,
        "read": {"best": 80.0, "median": 79.0, "both": [50.0, 80.0]},
        "int8": {"best": 10.0, "median": 9.0, "both": [10.0, 9.5]},
    }


def test_without_a_compiler_the_limits_are_said_to_be_unmeasured(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotMeasured, match="install g"):
        run_program(tmp_path)
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(NotMeasured, match=r"does not compile limits\.cpp: no such header"):
        run_program(tmp_path)
    assert limit_notes(run_of()) == ["The machine's limits were not measured: no compiler."]


def test_the_cache_that_holds_the_weights_is_named():
    note = limit_notes(run_of(limits_of_it=LIMITS))[0]
    assert "4,096 MiB, so the weights may stay in it" in note
    small = run_of(limits_of_it=LIMITS)
    small["machine"]["last_level_cache_bytes"] = 32 << 20
    assert "cannot stay whole" in limit_notes(small)[0]
    assert limits.last_level_cache_bytes() is None or limits.last_level_cache_bytes() > 1 << 15


def test_without_a_flag_the_number_of_threads_is_upwells_own():
    assert systems.thread_count(None) == default_threads().count
    assert systems.thread_count(5) == 5


def test_all_systems_get_the_same_number_of_threads(monkeypatch, tmp_path):
    for name in ("vllm/bin/vllm", "openvino/bin/python", "transformers/bin/transformers", "llama-server"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("hf", "openvino-int8"):
        (tmp_path / "models" / name).mkdir(parents=True)
    started = []
    monkeypatch.setattr(systems, "ServerProcess", lambda command, log, env: started.append([*command, str(env)]))
    monkeypatch.setattr(peers, "InProcess", lambda command, log: started.append(command))
    settings = peers.PeerSettings(tmp_path / "m.gguf", tmp_path, str(tmp_path / "llama-server"), 7, tmp_path)
    monkeypatch.setattr(peers.os, "sched_getaffinity", lambda _: set(range(4, 24)))
    monkeypatch.setattr(peers, "one_of_each_core", lambda: [4, 6, 8])
    found = [systems.upwell("m", [], 7, tmp_path), *peers.find_peers(settings)]
    assert [one.name for one in found] == ["upwell", "llama.cpp", "openvino", "vllm", "transformers"]
    for one in found:
        one.start(False)
    said = ["'7'", "'-t', '7', '-tb', '7'", "'7'", "4,6,8,5,7,9,10'", "'OMP_NUM_THREADS': '7'"]
    for words, command in zip(said, started, strict=True):
        assert words in str(command), command
    with pytest.raises(ValueError, match="same for all"):
        systems.upwell("m", ["--threads=3"], 7, tmp_path)
    one = system("upwell") | {"backend": "native, 2 threads"}
    assert threads_line(run_of(one)) == "2 threads for every system; upwell: native, 2 threads."


def test_a_model_that_never_ends_a_text(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"eos_token_id": 2, "vocab_size": 9}')
    (model / "weights").write_text("w")
    for _ in range(2):  # again over what is there
        made = peers.endless_model(model, tmp_path / "made")
    assert json.loads((made / "config.json").read_text()) == {"eos_token_id": None, "vocab_size": 9}
    assert (made / "weights").read_text() == "w"
    assert json.loads((model / "config.json").read_text())["eos_token_id"] == 2


@pytest.fixture
def page(monkeypatch, tmp_path):
    path = tmp_path / "docs" / "benchmarks.md"
    monkeypatch.setattr(docs, "PAGE", path)
    monkeypatch.setattr(docs, "PLOTS", path.parent / "benchmarks")
    path.parent.mkdir()
    return path


MISSED = run_of(system("upwell", d4=figures(10.0, 50.0)), system("peer", d4=figures(20.0, 60.0)))
UNTOLD = "\n".join(f"- **{line.what}**: not measured." for line in judge(MISSED) if line.goals and line.reached is None)
REASON = "- **4 streams, tokens/s**: the steps are short.\n  A second line | with a border."


def test_the_page_keeps_what_was_written_by_hand(page, tmp_path):
    drawn = tmp_path / "plot.png"
    drawn.write_bytes(b"p")
    kept = f"{REASON}\n- **4 streams, first token**: it waits.\n{UNTOLD}\n- **once a goal**: once slow."
    page.write_text(f"# Old\n{KEPT_BEGIN}\n{kept}\n{KEPT_END}\nold end\n")
    for _ in range(2):
        assert write_docs(MISSED, [drawn]) == ["once a goal"]
    text = page.read_text()
    assert f"{KEPT_BEGIN}\n\n{kept}\n\n{KEPT_END}" in text
    assert "old end" not in text
    assert "| 4 streams, tokens/s | >= 3 x best peer | 10 tokens/s | 0.5 x peer (20) |  | no |" in text
    assert "were not measured: no compiler." in text
    assert "![plot](benchmarks/plot.png)" in text
    assert Path(page.parent, "benchmarks", "plot.png").read_bytes() == b"p"


@pytest.mark.parametrize(
    "kept", ["", "- **4 streams, tokens/s**:\n- **4 streams, first token**:   ", f"{REASON}\n4 streams, first token: x"]
)
def test_the_page_is_not_written_without_a_reason_for_each_missed_goal(page, kept):
    old = f"# Old\n{KEPT_BEGIN}\n{kept}\n{UNTOLD}\n{KEPT_END}\n"
    page.write_text(old)
    with pytest.raises(Unexplained, match=r"(?s)Complete them.*- \*\*4 streams, first token\*\*: "):
        write_docs(MISSED, [])
    assert page.read_text() == old
    page.unlink()
    with pytest.raises(Unexplained):
        write_docs(MISSED, [])
    assert not page.exists()


def test_a_goal_that_could_not_be_told_needs_a_reason_too(page):
    """A run of one system alone would otherwise put question marks in the place of what an older page says."""
    page.write_text(f"{KEPT_BEGIN}\n{REASON}\n- **4 streams, first token**: it waits.\n{KEPT_END}\n")
    with pytest.raises(Unexplained, match=r"(?s)could not be told.*- \*\*tiny requests, requests/s\*\*: "):
        write_docs(MISSED, [])
