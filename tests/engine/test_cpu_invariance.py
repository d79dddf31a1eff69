"""A model of mixed weight formats on the native backend: a request's tokens and logprobs depend on the request alone.

Not on how many threads compute them, in what chunks its prompt comes, beside whom, or what the cache still holds: bit
for bit, with every kind of cache.
"""

from __future__ import annotations

import msgspec
import pytest

from engine.config import EngineConfig
from engine.loading import load_engine
from engine.types import GenerateRequest, SamplingParams
from kernels.cpu.abi import CACHE_KINDS
from kernels.cpu.library import load_library
from kernels.cpu.recorded import Runner
from tests.support.backends import DEVICES
from tests.support.mixed_model import MAX_LEN, write_mixed_model

pytestmark = pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")

STEM = [(7 * i * i + 3 * i) % 250 for i in range(MAX_LEN)]
REQUESTS = [
    GenerateRequest(
        f"r{i}",
        STEM[:shared] + [(11 * j + i) % 250 for j in range(own)],
        SamplingParams(max_tokens=10, temperature=temperature, seed=i, ignore_eos=True, logprobs=2),
    )
    for i, (shared, own, temperature) in enumerate(
        [(640, 30, 0.0), (640, 1, 1.0), (0, 3, 0.8), (500, 40, 0.0), (130, 420, 1.2)]
    )
]
"""Long ones share a beginning, and their contexts have several segments, which threads share out."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_mixed_model(tmp_path_factory.mktemp("mixed") / "model.gguf")


def engine_of(path, threads, kind, chunk, **options):
    config = EngineConfig(
        model_path=str(path),
        device="cpu",
        threads=threads,
        kv_cache_dtype=kind,
        max_num_seqs=8,
        max_num_batched_tokens=chunk,
        max_model_len=MAX_LEN,
        kv_cache_bytes=1 << 28,
        **options,
    )
    return load_engine(config, lambda *_: None)[0]


def answers(engine, requests, threads):
    """request id -> (tokens, logprobs, the prompt's first).

    Every step has threads that have not waited yet: none is left to the caller.
    """
    out = {request.request_id: ([], []) for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        engine._runner._step.runner = Runner(load_library(), threads)
        for delta in engine.step().deltas:
            tokens, logprobs = out[delta.request_id]
            tokens += delta.token_ids
            logprobs += (delta.prompt_logprobs or []) + (delta.logprobs or [])
    return out


@pytest.fixture(scope="module", params=CACHE_KINDS)
def alone(request, path):
    """The kind of cache, and each request's answer by itself: one thread, the whole prompt at once, an empty cache."""
    engine = engine_of(path, 1, request.param, MAX_LEN, enable_prefix_caching=False)
    wanted = {}
    for each in REQUESTS:
        wanted |= answers(engine, [each], 1)
    return request.param, wanted


def test_the_answers_are_worth_comparing(alone):
    """They go on in different ways, and no token is certain."""
    _, wanted = alone
    assert len({tuple(tokens) for tokens, _ in wanted.values()}) == len(REQUESTS)
    for tokens, logprobs in wanted.values():
        assert len(tokens) == len(logprobs) == 10
        assert max(each.logprob for each in logprobs) < -0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("chunk", [19, 300, MAX_LEN])
def test_answers_do_not_depend_on_threads_chunks_or_company(path, alone, threads, chunk):
    kind, wanted = alone
    engine = engine_of(path, threads, kind, chunk)
    assert answers(engine, REQUESTS, threads) == wanted
    assert answers(engine, REQUESTS, threads) == wanted, "with the prefixes of the first time in the cache"
    others = [*REQUESTS[:2], REQUESTS[3], *REQUESTS[3:]]  # one is foretold another's answer
    predicted = [
        msgspec.structs.replace(request, prediction_ids=tuple(wanted[other.request_id][0]))
        for request, other in zip(REQUESTS, others, strict=True)
    ]
    assert answers(engine, predicted, threads) == wanted, "several tokens a step"


@pytest.mark.parametrize(("threads", "chunk"), [(1, 19), (2, 300), (3, MAX_LEN)])
def test_log_probabilities_of_prompts_do_not_either(path, alone, threads, chunk):
    kind, _ = alone
    scored = [msgspec.structs.replace(request, prompt_logprobs=2) for request in REQUESTS[:4]]
    lone = engine_of(path, 1, kind, MAX_LEN, enable_prefix_caching=False)
    wanted = {name: answer for each in scored for name, answer in answers(lone, [each], 1).items()}
    for request in scored:
        assert len(wanted[request.request_id][1]) == len(request.prompt_ids) - 1 + 10
    engine = engine_of(path, threads, kind, chunk)
    others = answers(engine, REQUESTS[4:], threads)
    assert answers(engine, [*scored, *REQUESTS[4:]], threads) == wanted | others
    assert answers(engine, scored, threads) == wanted, "with their own tokens in the cache"
