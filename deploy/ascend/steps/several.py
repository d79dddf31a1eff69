"""Step 9: a model shared out between several NPUs, beside one NPU: the same tokens, and how fast.

Each way is a process of its own: one whose ranks wait for each other for ever is ended, and told, like any other.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploy.ascend.steps import made_up
from deploy.ascend.steps.bench import GIB, UNIT, Bench
from deploy.ascend.steps.child import run_child
from deploy.ascend.steps.leading import Answers, Found, Job
from deploy.ascend.steps.report import Report
from deploy.ascend.steps.serving import PROMPTS
from engine import parallel
from engine.config import EngineConfig
from engine.errors import UnsupportedModel
from engine.tokenizer import load_tokenizer
from engine.weights.open import open_checkpoint
from engine.weights.sharded import ShardedCheckpoint
from engine.weights.store import resolve_model
from kernels.ascend.chips import why_it_ended
from kernels.ascend.errors import explain
from server.settings import cache_dir

ROOT = Path(__file__).resolve().parents[3]
LEADING = (sys.executable, "-P", "-m", "deploy.ascend.steps.leading")
EMULATED_FOLLOWER = (sys.executable, "-P", "-m", "tools.ascend.emulation.emulated_rank", "follower")
EMULATED_NPUS = 2
SHARE = 0.9
"""Of the step's time: what its processes may take, so that the step itself can tell which of them did not answer."""
HCCL_ENVIRONMENT = {"HCCL_EXEC_TIMEOUT": "300"}
"""Seconds that a rank waits for another amid steps; HCCL's own are as many as the whole step has, which ends before."""
CLOSE = 128.0
"""Units of rounding of the dtype by which the likeliest token is ahead of the next in a close call: logits of about 30
are rounded to it, and by as much again where parts of sums were."""
ONE_ANSWERS = "Step 8 serves with one NPU: if that passed, look at what differs here, the flag in the error first."
NOT_ANSWERED = (
    "One NPU serves without --tensor-parallel-size. Look above for the first error of any rank: the others only wait "
    "for it. hccn_tool -i N -tls -g has to say the same for all chips; ASCEND_RT_VISIBLE_DEVICES=2,3 takes others of "
    "them; what is in ~/ascend/log/debug/plog tells more."
)
GRAPHS_TOO = "If it does eagerly, --eager serves by several NPUs. "
DIFFERENT = (
    "Several NPUs compute another model than one: do not serve with --tensor-parallel-size; report the lines with the "
    "model's name and the versions of step 0."
)
DEPENDS = (
    "The promise does not hold with --tensor-parallel-size: do not serve with it. If steps 3 and 8 passed, what ranks "
    "gather is not what they gave; report the lines."
)
NOT_COMPARED = "--model takes another model, or --dtype float16, which has fewer close calls; report the line."


@dataclass(frozen=True)
class Shared:
    """What is shared out.

    Attributes:
        path: of the model.
        ranks: the fewest that it can be shared out between.
        prompts: by name, each of token ids.
        answer: tokens of an answer.
    """

    path: Path
    ranks: int
    prompts: dict[str, list[int]]
    answer: int


@dataclass(frozen=True)
class Way:
    """One way to answer: by so many processes, eagerly or with graphs."""

    ranks: int
    eager: bool

    @property
    def name(self) -> str:
        """As it is printed."""
        processes = "one process" if self.ranks == 1 else f"{self.ranks} processes"
        return f"{processes}, {'eagerly' if self.eager else 'with graphs'}"

    @property
    def remedy(self) -> str:
        """What to do if nothing is answered so."""
        if self.ranks == 1:
            return ONE_ANSWERS
        return NOT_ANSWERED if self.eager else GRAPHS_TOO + NOT_ANSWERED


def several(bench: Bench, report: Report) -> None:
    """Step 9."""
    end_s = time.monotonic() + SHARE * bench.timeout_s
    count = npus(bench)
    if count < 2:
        report.measured("one NPU is visible: there is nothing to share out, and --tensor-parallel-size was not tried")
        return
    found: dict[Way, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        shared = _shared(bench, report, Path(folder), count)
        ways = [Way(1, eager=False), Way(shared.ranks, eager=True), Way(shared.ranks, eager=False)]
        for index, way in enumerate(ways):
            with report.attempt(way.name, way.remedy):
                job = _job(bench, shared, way)
                seconds = max(end_s - time.monotonic(), 0.0) / (len(ways) - index)
                answers = _found(report, job, way, Path(folder), seconds)
                if answers is not None:
                    found[way] = answers
    _compare(report, found, CLOSE * UNIT[bench.dtype])


def npus(bench: Bench) -> int:
    """How many this process sees.

    Raises:
        BackendUnavailable: there is none.
    """
    _ = bench.platform
    return EMULATED_NPUS if bench.emulated else int(bench.npu.npu.device_count())


def ranks_of(path: Path, count: int) -> int | None:
    """The fewest processes that a model can be shared out between, if that is not more than so many."""
    checkpoint = open_checkpoint(path)
    for ranks in range(2, count + 1):
        try:
            ShardedCheckpoint(checkpoint, 0, ranks)
        except UnsupportedModel:
            continue
        return ranks
    return None


def _shared(bench: Bench, report: Report, folder: Path, count: int) -> Shared:
    """The model of step 8, or a made-up one where so many NPUs cannot share that out."""
    path, name = resolve_model(bench.model, cache_dir(None), report.say).path, Path(bench.model).name
    ranks = ranks_of(path, count)
    if ranks is not None:
        report.measured(f"{count} NPUs: {name} is shared out between {ranks}", npus=count, ranks=ranks)
        tokenizer = load_tokenizer(path)
        prompts = {f"prompt {i + 1}": tokenizer.encode(text, add_special=True) for i, text in enumerate(PROMPTS)}
        return Shared(path, ranks, prompts, bench.sizes.answer)
    text = f"{count} NPUs cannot share out {name} (--model takes another): random weights for 2 stand in for it"
    report.measured(text, npus=count, ranks=2)
    made = folder / "made-up"
    made.mkdir()
    made_up.write_model(bench, made, 2)
    return Shared(made, 2, made_up.prompts(), max(bench.sizes.answer, made_up.ANSWER))


def _job(bench: Bench, shared: Shared, way: Way) -> Job:
    """Loading as step 8 does it."""
    follower = EMULATED_FOLLOWER if bench.emulated else parallel.FOLLOWER
    config = EngineConfig(
        model_path=str(shared.path), device="ascend", dtype=bench.dtype, eager=way.eager,
        tensor_parallel_size=way.ranks, enable_prefix_caching=False, max_num_seqs=len(shared.prompts),
        max_num_batched_tokens=64, max_model_len=512, kv_cache_bytes=GIB // 2,
    )  # fmt: skip
    return Job(bench.emulated, config, list(follower), shared.prompts, shared.answer)


def _found(report: Report, job: Job, way: Way, folder: Path, seconds: float) -> Found | None:
    """What a process of its own finds, with the followers that it starts; None if that is nothing, which is told."""
    given, path = folder / "job.json", folder / "found.json"
    path.unlink(missing_ok=True)
    given.write_bytes(msgspec.json.encode(job))
    ran = run_child([*LEADING, str(given), str(path)], seconds, own_session=False, environment=_environment())
    found = msgspec.json.decode(path.read_bytes(), type=Found) if path.exists() else None
    if found is None or found.failed:
        said = why_it_ended(ran) if found is None else found.failed
        known = explain(f"{said}\n{ran.stdout}")
        report.failed(f"{way.name}: {said}", f"{known} {way.remedy}" if known and known not in said else way.remedy)
        return None
    report.measured(f"{way.name}: loaded in {found.load_s:.1f} s, {found.backend}", load_s=found.load_s)
    for name, rate in ((f"{len(job.prompts)} together", found.together_per_s), ("one alone", found.alone_per_s)):
        text = f"{way.name}, {name}: {rate:.1f} tokens/s, prompts included"
        report.measured(text, tokens_per_s=rate, ranks=way.ranks)
    return found


def _environment() -> Mapping[str, str]:
    """That of the processes: this checkout is theirs too."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**HCCL_ENVIRONMENT, **os.environ, "PYTHONPATH": paths}


def _compare(report: Report, found: Mapping[Way, Found], close: float) -> None:
    """Several processes with one, as far as that one is sure; and each way among itself, to the last bit."""
    for way, answers in found.items():
        _same(report, f"{way.name}: each alone, and together", answers.alone, answers.together)
    ones, others = ([way for way in found if (way.ranks == 1) == alone] for alone in (True, False))
    for way in others[1:]:
        _same(report, f"{way.name}, and {others[0].name}", found[way].together, found[others[0]].together)
    for one in ones:
        for way in others:
            as_one(report, f"{way.name}, and {one.name}", found[way].together, found[one].together, close)
            ratio = found[way].together_per_s / found[one].together_per_s
            alone = found[way].alone_per_s / found[one].alone_per_s
            text = f"{ratio:.2f} times the tokens a second of {one.name}, together; {alone:.2f} times, alone"
            report.measured(f"{way.name}: {text}", ratio=ratio, ratio_alone=alone)


def _same(report: Report, what: str, got: Answers, wanted: Answers) -> None:
    odd = [name for name in wanted if got[name] != wanted[name]]
    text = f"{', '.join(odd)} differ" if odd else "the same tokens and log probabilities, bit for bit"
    report.check(not odd, f"{what}: {text}", DEPENDS)


def as_one(report: Report, what: str, got: Answers, one: Answers, close: float) -> None:
    """Tokens that several processes and one choose, up to the first close call of one: parts of sums are rounded.

    Args:
        report: told how many tokens that were, and what log probabilities are off by.
        what: as it is printed.
        got: answers by several processes.
        one: by one.
        close: natural log probability by which the likeliest token is ahead of the next in a close call.
    """
    sure = {name: next((i for i, token in enumerate(tokens) if token[2] < close), len(tokens))
            for name, tokens in one.items()}  # fmt: skip
    odd, off = [], 0.0
    for name, count in sure.items():
        pairs = list(zip(got[name][:count], one[name][:count], strict=True))
        if any(mine[0] != theirs[0] for mine, theirs in pairs):
            odd.append(name)
        else:
            off = max([off, *(abs(mine[1] - theirs[1]) for mine, theirs in pairs)])
    compared, total = sum(sure.values()), sum(map(len, one.values()))
    text = f"{', '.join(odd)} differ where one is sure" if odd else "the same tokens wherever one is sure"
    report.check(not odd, f"{what}: {text}", DIFFERENT)
    text = f"{what}: {compared} of {total} tokens come before a close call, log probabilities at most {off:.3g} apart"
    if compared:
        report.measured(text, compared=compared, tokens=total, off=off)
    else:
        report.failed(text, NOT_COMPARED)
