"""Link 5: step 9 of the first-hour script, whose ranks are processes: what is wrong with one of them is told."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.ascend.steps import several
from deploy.ascend.steps.bench import Bench
from deploy.ascend.steps.report import Report, Verdict
from tests.support.ascend_links import link
from tests.support.first_hour import emulated_platform, failures
from tests.support.processes import are_gone
from tests.support.tiny_models import GOLDEN

pytestmark = link(5)

DEFECT = """
import os, signal, time
from kernels.ascend.parallel import Ranks
real = Ranks.sum
def defective(self, x):
    {defect}
Ranks.sum = lambda self, x: x if self.alone else defective(self, x)
"""
LEADING = DEFECT + "from deploy.ascend.steps import leading; os._exit(leading.main())"
FOLLOWER = DEFECT + "from tools.ascend.emulation import emulated_rank; emulated_rank.follow()"
EI0006 = "EI0006: A rank could not reach another in time."
WAYS = ["2 processes, eagerly", "2 processes, with graphs"]


@pytest.fixture
def emulated():
    with emulated_platform() as made:
        yield made


@pytest.fixture
def ranks(capsys, monkeypatch, emulated, default_model):
    """Runs step 9 with something wrong in what rank 0 or the other one adds up; what failed."""

    def run_with(*arguments, leading=None, follower=None, model=default_model):
        for name, program, defect in (("LEADING", LEADING, leading), ("EMULATED_FOLLOWER", FOLLOWER, follower)):
            if defect:
                monkeypatch.setattr(several, name, (sys.executable, "-P", "-c", program.format(defect=defect)))
        return failures(capsys, "--step", "9", "--model", str(model), *arguments, platform=emulated[0])

    return run_with


def test_parts_that_are_not_added_up_fail(ranks):
    found = ranks(leading="return self._gather(x)[0]")
    sure = [re.fullmatch(r"(.*), and one process, with graphs: .* differ where one is sure", text) for text, _ in found]
    assert [match[1] for match in sure] == WAYS
    assert all("do not serve with --tensor-parallel-size" in remedy for _, remedy in found)


def test_ranks_whose_sums_depend_on_company_fail(ranks):
    """With a model whose tokens mean something, and which can be shared out."""
    found = ranks(leading="return real(self, x) * (1 + (len(x) > 20) / 64)", model=GOLDEN / "tiny-mistral")
    assert [text.partition(": each alone, and together: prompt ")[0] for text, _ in found[:2]] == WAYS
    assert all("The promise does not hold" in remedy for _, remedy in found[:2])


@pytest.mark.parametrize(
    ("where", "defect", "text", "known"),
    [
        ("follower", "os.kill(os.getpid(), signal.SIGKILL)", "rank 1 of the .* failed: it ended with signal 9", ""),
        ("follower", "raise RuntimeError('HCCL, EI0006')", "rank 1 of the .* failed: RuntimeError; EI0006: .*", EI0006),
        ("leading", "raise RuntimeError('HCCL, EI0006')", "rank 0: RuntimeError: HCCL, EI0006 .*", EI0006),
        ("leading", "os.abort()", "ended by signal 6", ""),
    ],
    ids=["a follower is killed", "a follower fails", "rank 0 fails", "rank 0 crashes"],
)
def test_a_rank_that_fails_is_told_with_what_to_do(ranks, where, defect, text, known):
    found = ranks("--timeout-s", "120", **{where: defect})
    assert [text.partition(": ")[0] for text, _ in found] == WAYS
    for said, remedy in found:
        assert re.fullmatch(text, said.partition(": ")[2])
        assert (said + remedy).count(known or said) == 1
        assert "One NPU serves without --tensor-parallel-size." in remedy


def test_ranks_that_wait_for_ever_are_ended_and_none_is_left(tmp_path, ranks):
    """Followers write their numbers to a file; the one process has a third of the time, and does not hang."""
    begun = tmp_path / "begun"
    defect = f"open({str(begun)!r}, 'a').write(str(os.getpid()) + chr(10)); time.sleep(600)"
    found = ranks("--timeout-s", "40", follower=defect)
    assert [text.partition(": ")[0] for text, _ in found] == WAYS
    assert all(re.search(r": no answer within 1\d(\.\d+)? s$", text) for text, _ in found)
    assert all("ASCEND_RT_VISIBLE_DEVICES" in remedy for _, remedy in found)
    pids = list(map(int, begun.read_text().split()))
    assert len(pids) == 2
    assert are_gone(pids, 0)


def test_one_npu_is_no_failure():
    bench = Bench(lambda: None, emulated=False, dtype="bfloat16", model="./nowhere.gguf")
    bench.npu = SimpleNamespace(npu=SimpleNamespace(device_count=lambda: 1))
    report = Report(9, "title")
    several.several(bench, report)
    assert report.verdict is Verdict.MEASURED
    assert "one NPU is visible" in report.lines[0].text


@pytest.mark.parametrize(("count", "ranks"), [(2, None), (3, 3), (8, 3)])
def test_a_model_is_shared_out_between_as_few_as_can_be(default_model, count, ranks):
    assert several.ranks_of(Path(default_model), count) == ranks
    assert several.ranks_of(GOLDEN / "tiny-mistral", count) == 2


def test_tokens_are_compared_up_to_a_close_call():
    one = {"a": [(1, -0.1, 3.0), (2, -0.6, 0.2), (3, -0.1, 3.0)], "b": [(4, -0.1, 3.0)]}
    for other, close, verdicts in [
        ({"a": [(1, -0.2, 3.0), (9, -0.6, 0.2), (9, -0.1, 3.0)], "b": [(4, -0.1, 3.0)]}, 0.5, ["PASS", "MEASURED"]),
        ({"a": [(1, -0.2, 3.0), (9, -0.6, 0.2), (9, -0.1, 3.0)], "b": [(4, -0.1, 3.0)]}, 0.1, ["FAIL", "MEASURED"]),
        ({"a": [(1, -0.2, 3.0), (2, -0.6, 0.2), (3, -0.1, 3.0)], "b": [(5, -0.1, 3.0)]}, 0.5, ["FAIL", "MEASURED"]),
        (one, 4.0, ["PASS", "FAIL"]),
    ]:
        report = Report(9, "title")
        several.as_one(report, "several, and one", other, one, close)
        assert [line.verdict for line in report.lines] == verdicts
        if verdicts == ["PASS", "MEASURED"]:
            figures = report.lines[1].figures
            assert (figures["compared"], figures["tokens"], round(figures["off"], 6)) == (2, 4, 0.1)
