"""Random workloads, run through the real scheduler, block pool and batch on the echo model, and checked exactly.

Predictions come with some: they say what the answer will be, or something more or less like it. Some prompts are
scored, and some of those have no answer at all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import numpy as np

from engine.config import CacheConfig, SchedulerConfig
from engine.engine import Engine
from engine.sampler import logprobs_of
from engine.types import FinishReason, GenerateRequest, SamplingParams, TokenDelta, TokenLogprobs
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.echo_model import EchoRunner, expected_tokens, logits_after

EOS_ID = 7
MAX_STEPS = 3000


class WrongAnswer(AssertionError):
    """A request did not get the tokens it gets alone, or the engine's books do not add up."""


@dataclass(frozen=True)
class Arrival:
    """A request, the step it comes at, and the step its client leaves at, if it does."""

    step: int
    request: GenerateRequest
    leaves_at: int | None = None


@dataclass(frozen=True)
class Workload:
    cache: CacheConfig
    limits: SchedulerConfig
    arrivals: list[Arrival]


@dataclass
class Outcome:
    tokens: dict[str, list[int]] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    last: dict[str, TokenDelta] = field(default_factory=dict)
    preemptions: int = 0
    prefix_hits: int = 0
    steps: int = 0
    accepted: int = 0
    rejected: int = 0


def random_workload(seed: int, predicted: float = 0.4) -> Workload:
    """Few blocks, many shared prefixes, mixed priorities and tenants, clients that leave; so many have predictions."""
    rng = random.Random(seed)
    block_size = rng.choice([1, 2, 4, 8])
    longest = rng.randint(12, 48)
    num_blocks = -(-longest // block_size) + rng.randint(0, 12)
    max_num_seqs = rng.randint(1, 6)
    max_rows = max_num_seqs + rng.randint(0, 20)
    limits = SchedulerConfig(max_num_seqs, max_num_seqs + rng.randint(0, 12), longest, max_rows=max_rows)
    stems = [[rng.randrange(256) for _ in range(rng.randint(1, longest // 2))] for _ in range(2)]
    arrivals = []
    for index in range(rng.randint(1, 8)):
        stem = rng.choice(stems)[: rng.randint(0, longest)]
        prompt = (stem + [rng.randrange(256) for _ in range(rng.randint(1, 6))])[: longest - 1]
        max_tokens = rng.randint(1, min(16, longest - len(prompt)))
        prompt_logprobs = rng.choice([None, None, 0, 2])
        if prompt_logprobs is not None and rng.random() < 0.3:
            max_tokens = 0
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=rng.random() < 0.5)
        tenant, keep_cached = rng.choice(["", "", "t"]), rng.random() < 0.4
        request = GenerateRequest(
            f"r{index}",
            prompt,
            sampling,
            rng.choice([0, 0, 1, -1]),
            tenant,
            prediction_ids=edited(rng, expected_tokens(prompt, max_tokens + 4)) if rng.random() < predicted else (),
            keep_cached=keep_cached,
            prompt_logprobs=prompt_logprobs,
        )
        step = rng.randint(0, 12)
        for choice in _choices(request, rng.choice([1, 1, 1, 2, 3])):
            leaves_at = step + rng.randint(0, 20) if rng.random() < 0.2 else None
            arrivals.append(Arrival(step, choice, leaves_at))
    cache = CacheConfig(num_blocks, block_size, enable_prefix_caching=rng.random() < 0.8)
    return Workload(cache, limits, arrivals)


def _choices(request: GenerateRequest, count: int) -> list[GenerateRequest]:
    """What the server makes of a request with ``n``."""
    if count == 1:
        return [request]
    ids = [f"{request.request_id}-{index}" for index in range(count)]
    first, *others = (msgspec.structs.replace(request, request_id=name, group=request.request_id) for name in ids)
    return [first, *(msgspec.structs.replace(choice, prompt_logprobs=None) for choice in others)]


def edited(rng: random.Random, tokens: list[int]) -> tuple[int, ...]:
    """The tokens with none of them changed, some, or all: replaced, left out or preceded by others."""
    rate, out = rng.choice([0.0, 0.1, 0.1, 0.3, 1.0]), []
    for token in tokens:
        kind = rng.choice("rld") if rng.random() < rate else ""
        out += [rng.randrange(256) for _ in range(rng.randint(1, 3))] if kind in {"r", "l"} else []
        out += [token] if kind in {"", "l"} else []
    return tuple(out)


def new_engine(workload: Workload) -> Engine:
    runner = EchoRunner(workload.cache)
    return Engine(runner, ByteTokenizer(), (EOS_ID,), workload.limits, workload.cache)


def run_workload(workload: Workload) -> Outcome:
    """Run to the end; check the books after each step, and every answer at the end."""
    engine, outcome = new_engine(workload), Outcome()
    for step in range(MAX_STEPS):
        for arrival in workload.arrivals:
            if arrival.step == step:
                engine.submit(arrival.request)
            if arrival.leaves_at == step:
                engine.abort(arrival.request.request_id)
        _record(engine.step().deltas, outcome)
        _check_limits(engine, workload.limits)
        outcome.steps = step
        _check_books(engine)
        if not engine.has_work and step > max(arrival.step for arrival in workload.arrivals):
            break
    else:
        raise WrongAnswer("the engine did not finish")
    if engine.pool.num_used:
        raise WrongAnswer("an idle engine still uses blocks")
    _check_answers(workload, outcome)
    outcome.preemptions = engine.stats().preemptions
    outcome.prefix_hits = engine.stats().prefix_hit_tokens
    return outcome


def _record(deltas: list[TokenDelta], outcome: Outcome) -> None:
    for delta in deltas:
        if delta.request_id in outcome.last:
            raise WrongAnswer("a delta after the last one")
        outcome.tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
        if delta.prompt_logprobs is not None:
            if outcome.tokens[delta.request_id]:
                raise WrongAnswer("a prompt's log probabilities after tokens of its answer")
            outcome.prompt_logprobs.setdefault(delta.request_id, []).extend(delta.prompt_logprobs)
        if delta.finish is not None:
            outcome.last[delta.request_id] = delta
            if delta.usage is not None:
                outcome.accepted += delta.usage.accepted_tokens
                outcome.rejected += delta.usage.rejected_tokens


def _check_limits(engine: Engine, limits: SchedulerConfig) -> None:
    runner = engine._runner
    assert isinstance(runner, EchoRunner)
    max_rows = limits.max_rows or limits.max_num_seqs
    if runner.most_tokens > limits.max_num_batched_tokens or runner.most_rows > max_rows:
        raise WrongAnswer(f"a step of {runner.most_tokens} tokens and {runner.most_rows} rows of logits")


def _check_books(engine: Engine) -> None:
    engine.pool.check(engine.sequences.values())
    tenants: dict[int, str] = {}
    for seq in engine.sequences.values():
        if not 0 <= seq.num_computed <= len(seq.token_ids):
            raise WrongAnswer("computed more tokens than there are")
        for block in seq.block_ids:
            if tenants.setdefault(block, seq.request.tenant) != seq.request.tenant:
                raise WrongAnswer("two tenants share a block")


def _check_answers(workload: Workload, outcome: Outcome) -> None:
    for arrival in workload.arrivals:
        request = arrival.request
        wanted, reason = expected_answer(request)
        got = outcome.tokens.get(request.request_id, [])
        last = outcome.last.get(request.request_id)
        if last is None:
            if arrival.leaves_at is None or got != wanted[: len(got)]:
                raise WrongAnswer(f"{request.request_id} has no end, or wrong tokens before its client left")
        elif got != wanted or last.finish is not reason:
            raise WrongAnswer(f"{request.request_id}: {got} ({last.finish}), not {wanted} ({reason})")
        elif outcome.prompt_logprobs.get(request.request_id, []) != expected_prompt_logprobs(request):
            raise WrongAnswer(f"{request.request_id}: its prompt's log probabilities are others")


def expected_answer(request: GenerateRequest) -> tuple[list[int], FinishReason]:
    tokens = expected_tokens(request.prompt_ids, request.sampling.max_tokens)
    if not request.sampling.ignore_eos and EOS_ID in tokens:
        return tokens[: tokens.index(EOS_ID) + 1], FinishReason.STOP
    return tokens, FinishReason.LENGTH


def expected_prompt_logprobs(request: GenerateRequest) -> list[TokenLogprobs]:
    """Of all but the first of its tokens, if it asks for them."""
    if request.prompt_logprobs is None:
        return []
    prompt = np.array(request.prompt_ids, dtype=np.int32)
    return [
        logprobs_of(logits_after(prompt[:at]), int(prompt[at]), request.prompt_logprobs) for at in range(1, len(prompt))
    ]
