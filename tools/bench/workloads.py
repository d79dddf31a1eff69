"""What is asked of every server: the same prompts, in the same order, with the same concurrency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.bench.client import Job
from tools.bench.prompts import PromptMaker

PROMPT_TOKENS = ANSWER_TOKENS = 128
PREFIX_TOKENS, QUESTION_TOKENS = 1000, 32
_SEEDS_APART = 1000


@dataclass(frozen=True)
class Workload:
    """One load.

    Attributes:
        key: how ``--workloads`` names it.
        long_context: whether servers that divide their cache among slots need few large ones for it.
        prime: requests made before, unmeasured.
        probe: whether to ask for a sign of life beside it (not at 64 streams: it costs the API process CPU).
        pairs: whether each second request has the prefix of the one before.
    """

    key: str
    title: str
    concurrency: int
    jobs: Sequence[Job]
    long_context: bool = False
    prime: Sequence[Job] = field(default=())
    probe: bool = False
    pairs: bool = False


KEYS = ("d1", "d4", "d16", "d64", "tiny", "prefix", "warm", "long1000", "long4000")


def make_workloads(maker: PromptMaker, scale: float = 1.0) -> list[Workload]:
    """All workloads, in the order of ``KEYS``; ``scale`` below 1 makes fewer requests, for a first look."""

    def jobs(group: int, count: int, num_tokens: int, max_tokens: int, prefix: str = "") -> list[Job]:
        prompts = [maker.make(num_tokens, group * _SEEDS_APART + i, prefix) for i in range(count)]
        return [Job(prompt.text, prompt.ids, max_tokens) for prompt in prompts]

    def scaled(count: int, at_least: int = 1) -> int:
        return max(at_least, round(count * scale))

    def decode(group: int, streams: int, count: int) -> Workload:
        title = f"{streams} stream{'s' if streams > 1 else ''}, {PROMPT_TOKENS} tokens in, {ANSWER_TOKENS} out"
        load = jobs(group, scaled(count, streams), PROMPT_TOKENS, ANSWER_TOKENS)
        return Workload(f"d{streams}", title, streams, load, probe=streams == 16)

    shared = maker.make(PREFIX_TOKENS, 50 * _SEEDS_APART).text
    with_question = PREFIX_TOKENS + QUESTION_TOKENS
    prefix = jobs(5, scaled(32, 8) + 1, with_question, 32, shared)
    pairs = [
        job
        for group in range(scaled(3))
        for job in jobs(60 + group, 2, with_question, 8, maker.make(PREFIX_TOKENS, (70 + group) * _SEEDS_APART).text)
    ]
    return [
        decode(1, 1, 5),
        decode(2, 4, 12),
        decode(3, 16, 32),
        decode(4, 64, 64),
        Workload("tiny", "64 streams, 8 tokens in, 1 out", 64, jobs(9, scaled(512, 64), 8, 1)),
        Workload("prefix", "8 streams, 1,000 tokens shared", 8, prefix[1:], long_context=True, prime=prefix[:1]),
        Workload("warm", "a prefix of 1,000 tokens, cold and then warm", 1, pairs, long_context=True, pairs=True),
        Workload("long1000", "a cold prompt of 1,000 tokens", 1, jobs(7, scaled(3), 1000, 8), long_context=True),
        Workload("long4000", "a cold prompt of 4,000 tokens", 1, jobs(8, scaled(3), 4000, 8), long_context=True),
    ]


def warm_up(maker: PromptMaker) -> list[Job]:
    """What every server is given before it is measured."""
    prompts = [maker.make(PROMPT_TOKENS, 99 * _SEEDS_APART + i) for i in range(4)]
    return [Job(prompt.text, prompt.ids, 16) for prompt in prompts]
