"""Rank 0 of step 9, a process of its own: ``python -P -m deploy.ascend.steps.leading JOB FOUND``.

It may hang in what ranks ask of each other, where no exception reaches it; so a rank that fails ends it from a thread,
with what was wrong in FOUND, and step 9 ends it after a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from deploy.ascend.steps.report import said
from deploy.ascend.steps.serving import greedily
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import FollowerFailed
from engine.loading import load_engine
from engine.parallel import Followers

Token = tuple[int, float, float]
"""Its id, its log probability, and how far the likeliest other one is below or above that."""
Answers = dict[str, list[Token]]


class Job(msgspec.Struct, frozen=True):
    """What to load, on which platform, and what to answer.

    Attributes:
        follower: the command of a follower.
        prompts: by name, each of token ids.
        max_tokens: of an answer.
    """

    emulated: bool
    config: EngineConfig
    follower: list[str]
    prompts: dict[str, list[int]]
    max_tokens: int


class Found(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        failed: in one line, why nothing did; else empty.
        backend: that of rank 0.
        together, alone: answers to all prompts at once, and to each by itself.
        together_per_s, alone_per_s: tokens a second, prompts included.
    """

    failed: str = ""
    backend: str = ""
    load_s: float = 0.0
    together: Answers = {}
    alone: Answers = {}
    together_per_s: float = 0.0
    alone_per_s: float = 0.0


def main() -> int:
    """Answer, and write what was found; the exit code is 1 if nothing was."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    path = Path(sys.argv[2])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")

    def end_without(failure: FollowerFailed) -> None:
        _write(path, Found(failed=str(failure)))
        os._exit(1)

    try:
        with _platform(job), Followers(end_without, job.follower) as followers:
            _write(path, found_by(job, followers))
    except FollowerFailed as error:
        _write(path, Found(failed=str(error)))
    except Exception as error:  # whatever it is, it is the finding
        traceback.print_exc()
        _write(path, Found(failed=f"rank 0: {said(error)}"))
    else:
        return 0
    return 1


def found_by(job: Job, followers: Followers) -> Found:
    """Load, and answer all prompts together and each alone; no prefix of one run is known to the next."""
    began_s = time.perf_counter()
    engine, ready = load_engine(job.config, lambda *_: None, followers if job.config.tensor_parallel_size > 1 else None)
    load_s = time.perf_counter() - began_s
    together, together_s = answered(engine, job.prompts, job.max_tokens)
    alone: Answers = {}
    alone_s = 0.0
    for name, ids in job.prompts.items():
        answers, seconds = answered(engine, {name: ids}, job.max_tokens)
        alone |= answers
        alone_s += seconds
    count = len(job.prompts) * job.max_tokens
    return Found("", ready.backend, load_s, together, alone, count / together_s, count / alone_s)


def answered(engine: Engine, prompts: Mapping[str, list[int]], max_tokens: int) -> tuple[Answers, float]:
    """Greedy answers, and the seconds that all of them took.

    Raises:
        RuntimeError: a request ended in an error.
    """
    began_s = time.perf_counter()
    answers: Answers = {name: [] for name in prompts}
    for delta in greedily(engine, prompts, max_tokens, logprobs=2):
        for token in delta.logprobs or ():
            other = next(logprob for token_id, logprob in token.top if token_id != token.token_id)
            answers[delta.request_id].append((token.token_id, token.logprob, token.logprob - other))
    return answers, time.perf_counter() - began_s


def _platform(job: Job) -> AbstractContextManager[None]:
    """``--device ascend`` as the job means it; on a chip that is the backend as it stands."""
    if not job.emulated:
        return contextlib.nullcontext()
    from tools.ascend.emulation.emulated_rank import emulated_rank  # noqa: PLC0415

    return emulated_rank()


def _write(path: Path, found: Found) -> None:
    """All of it or nothing, by whichever thread is first."""
    own = path.with_suffix(f".{time.monotonic_ns()}")
    own.write_bytes(msgspec.json.encode(found))
    own.replace(path)


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(exit_code)  # without what an interpreter does last, which may wait for ranks that are gone
