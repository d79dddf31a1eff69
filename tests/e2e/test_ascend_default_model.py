"""Link 5 on the default model: the Ascend backend over emulations gives the reference's tokens, in any company."""

from __future__ import annotations

import pytest

from engine.config import EngineConfig
from engine.loading import load_engine
from engine.types import GenerateRequest, SamplingParams
from tests.engine.test_ascend_engine import BLUR, answers, sure
from tests.support.ascend_backend import emulated_ascend
from tests.support.ascend_links import link

pytestmark = link(5)

PROMPTS = [
    [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198],
    [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 7103, 314],
    [28, 216, 33, 28, 216, 34, 28, 216, 35, 28, 216, 36, 28, 216],
]
NUMBERS = [token for i in range(44) for token in (28, 216, 33 + i % 9)]
LONG = [(12 * PROMPTS[1])[:122], NUMBERS, [*NUMBERS[:118], 198, 1, 520]]
"""What goes on to a second block as it is answered; what has one and more; and what begins as that block does."""
GREEDY = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, logprobs=2)
REQUESTS, LONG_REQUESTS = (
    [GenerateRequest(f"r{i}", ids, GREEDY) for i, ids in enumerate(prompts)] for prompts in (PROMPTS, LONG)
)


def engine_of(path, device, **options):
    config = EngineConfig(
        model_path=str(path),
        device=device,
        max_num_seqs=3,
        max_model_len=256,
        block_size=128,
        **{"max_num_batched_tokens": 32, "num_blocks": 8, **options},
    )
    return load_engine(config, lambda *_: None)[0]


def check_against_reference(path, requests, got):
    """Tokens are the same as far as the reference is sure, and it is of half of them."""
    for name, (tokens, logprobs) in answers(engine_of(path, "reference"), requests).items():
        count = sure(logprobs)
        assert count >= 5, f"{name}: gaps below {BLUR} from token {count} on"
        assert got[name][0][:count] == tokens[:count]


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_greedy_tokens_are_those_of_the_reference(default_model, eager):
    with emulated_ascend():
        got = answers(engine_of(default_model, "ascend", dtype="float16", eager=eager), REQUESTS)
    check_against_reference(default_model, REQUESTS, got)


def test_chunks_prefixes_from_the_cache_and_preemption_change_no_bit(default_model):
    """Each request alone, its prompt whole, and nothing captured or cached; then all of them, in too little memory."""
    options = {"dtype": "float16", "max_num_batched_tokens": 40, "num_blocks": 4}
    plain = {**options, "eager": True, "max_num_batched_tokens": 256, "enable_prefix_caching": False}
    with emulated_ascend():
        engine, alone = engine_of(default_model, "ascend", **plain), {}
        for request in LONG_REQUESTS:
            alone |= answers(engine, [request])
        assert (engine.stats().prefix_hit_tokens, engine.stats().preemptions) == (0, 0)
        assert engine.stats().steps == 30
        engine = engine_of(default_model, "ascend", **options)
        assert answers(engine, LONG_REQUESTS) == alone
        first = engine.stats()
        assert first.preemptions > 0
        assert answers(engine, LONG_REQUESTS[1:]) == {name: alone[name] for name in ("r1", "r2")}
        found = engine.stats().prefix_hit_tokens - first.prefix_hit_tokens
        assert found >= 128 + 118, "a block that is shared, and the beginning of one that is copied"
    assert min(map(len, LONG)) > 2 * options["max_num_batched_tokens"]
    check_against_reference(default_model, LONG_REQUESTS, alone)
