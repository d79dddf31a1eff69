"""The rule of the house, on real models: a request's tokens and logprobs depend on the request alone, bit for bit."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.config import QUANTIZATIONS
from engine.types import GenerateRequest, SamplingParams, Thoughts
from tests.support.backends import DEVICES, multiple_of
from tests.support.grammars import GRAMMARS
from tests.support.tiny_models import TINY_MODELS, TINY_VOCAB_SIZE, tiny_engine

MAX_LEN = 200
STEM = [(7 * i * i + 3 * i) % 256 for i in range(MAX_LEN)]

prompts = st.builds(
    lambda shared, own: STEM[:shared] + own,
    st.integers(0, 120),
    st.lists(st.integers(0, TINY_VOCAB_SIZE - 1), min_size=1, max_size=30),
)
samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([0, 0, 5]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.sampled_from([(), (), ((65, 2.0), (256, 1.5))]),
    min_tokens=st.integers(0, 1),
    seed=st.integers(0, 3),
    choice=st.integers(0, 1),
    stop=st.sampled_from([(), (), ("a",), ("e", "\ufffd\ufffd")]),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, 0, 3]),
)
grammars = st.sampled_from(["", "", *GRAMMARS])
token_ids = st.integers(0, TINY_VOCAB_SIZE - 1)
edits = st.one_of(
    st.none(), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.lists(token_ids, max_size=3)), max_size=3)
)
"""None for no prediction, else how it differs from the answer: from a place on, so many tokens are others."""
MARKERS = {"start": "<|endoftext|>", "end": "<|im_start|>", "start_ids": (256,), "end_ids": (257,)}
"""Control tokens of the tiny models."""
SHOWN = (256, 257)
thoughts = st.one_of(
    st.none(),
    st.builds(Thoughts, **{name: st.just(value) for name, value in MARKERS.items()}, is_open=st.booleans(),
              is_forced=st.booleans(), budget=st.sampled_from([None, 0, 3])),
)  # fmt: skip
requests = st.lists(
    st.tuples(
        prompts,
        samplings,
        st.integers(-1, 1),
        grammars,
        thoughts,
        edits,
        st.sampled_from([None, None, None, 0, 2]),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=6,
)


def answers(engine, arrivals):
    """request id -> (tokens, logprobs, the prompt's first, text), for requests that arrive at given steps."""
    out = {request.request_id: ([], [], "") for _, request in arrivals}
    step = 0
    while engine.has_work or any(at >= step for at, _ in arrivals):
        for at, request in arrivals:
            if at == step:
                engine.submit(request)
        for delta in engine.step().deltas:
            tokens, logprobs, text = out[delta.request_id]
            logprobs = logprobs + (delta.prompt_logprobs or []) + (delta.logprobs or [])
            out[delta.request_id] = (tokens + delta.token_ids, logprobs, text + delta.text)
        step += 1
    engine.pool.check([])
    assert engine.pool.num_used == 0
    return out


@cache
def engine_for(name, **options):
    return tiny_engine(name, max_model_len=MAX_LEN, block_size=16, kv_cache_bytes=1 << 28, **options)


def alone(name, request, **options):
    engine = engine_for(name, enable_prefix_caching=False, max_num_batched_tokens=MAX_LEN, **options)
    return answers(engine, [(0, replace(request, request_id="r", priority=0))])["r"]


def predicted(answer, how):
    """What an answer is foretold to be, and a little more."""
    if how is None:
        return ()
    tokens = [*answer, *answer[:3]]
    for at, count, others in how:
        tokens[at : at + count] = others
    return tuple(tokens)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TINY_MODELS)
@given(
    drawn=requests,
    max_num_seqs=st.integers(1, 6),
    spare_tokens=st.integers(0, 60),
    spare_blocks=st.integers(0, 8),
    wanted_block_size=st.sampled_from([4, 16, 32]),
    caching=st.booleans(),
)
@settings(max_examples=60)
def test_answers_do_not_depend_on_company(
    name, device, quantization, drawn, max_num_seqs, spare_tokens, spare_blocks, wanted_block_size, caching
):
    block_size = max(wanted_block_size, multiple_of(device))
    engine = tiny_engine(
        name,
        device=device,
        quantization=quantization,
        max_model_len=MAX_LEN,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + spare_tokens,
        num_blocks=-(-MAX_LEN // block_size) + spare_blocks,  # one long request fits, two hardly: preemptions
        block_size=block_size,
        enable_prefix_caching=caching,
    )
    how = {"device": device, "quantization": quantization}
    wanted, arrivals = {}, []
    for i, (prompt, sampling, priority, grammar, thoughts, edited, scored, at) in enumerate(drawn):
        request = GenerateRequest(
            f"r{i}",
            prompt,
            sampling,
            priority,
            grammar=grammar,
            shown_ids=SHOWN,
            thoughts=thoughts,
            prompt_logprobs=scored,
        )
        wanted[f"r{i}"] = alone(name, request, **how)
        foretold = predicted(wanted[f"r{i}"][0], edited)
        arrivals.append((at, replace(request, prediction_ids=foretold)))
    assert answers(engine, arrivals) == wanted
    assert answers(engine, arrivals) == wanted, "with the prefixes of the first time in the cache"


@pytest.mark.parametrize("device", DEVICES)
@given(
    prompt=prompts,
    sampling=samplings,
    budget=st.integers(6, 80),
    wanted_block_size=st.sampled_from([4, 32]),
    caching=st.booleans(),
)
@settings(max_examples=30)
def test_choices_that_share_a_prompt_answer_as_alone(device, prompt, sampling, budget, wanted_block_size, caching):
    """Most of a prompt that all but the first have is a copy of the last block it computed."""
    engine = tiny_engine(
        "tiny-mistral",
        device=device,
        max_model_len=MAX_LEN,
        max_num_seqs=6,
        max_num_batched_tokens=budget,
        block_size=max(wanted_block_size, multiple_of(device)),
        enable_prefix_caching=caching,
    )
    choices = [
        GenerateRequest(f"r{choice}", prompt, replace(sampling, choice=choice), group="call") for choice in range(3)
    ]
    found = answers(engine, [(0, choice) for choice in choices])
    assert list(found.values()) == [alone("tiny-mistral", choice, device=device) for choice in choices]
    assert engine.stats().prefix_hit_tokens == 2 * (len(prompt) - 1)


def test_the_property_can_fail(monkeypatch):
    """A matrix product that depends on the number of rows is noticed."""
    from kernels.reference import linear

    def one_call(x, weight, row_tile):
        return (x @ weight.T) * (1 + len(x) * 2**-23)

    monkeypatch.setattr(linear, "tiled_matmul", one_call)
    sampling = SamplingParams(max_tokens=4, temperature=0.0, logprobs=1)
    engine = tiny_engine("tiny-mistral", device="reference", max_model_len=MAX_LEN)
    pair = [(0, GenerateRequest("r", STEM[:20], sampling)), (0, GenerateRequest("other", STEM[5:40], sampling))]
    assert answers(engine, pair)["r"] != answers(engine, pair[:1])["r"]
