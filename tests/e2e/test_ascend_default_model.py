"""Link 5 on the default model: the Ascend backend over emulations gives the reference's greedy tokens."""

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
REQUESTS = [
    GenerateRequest(f"r{i}", ids, SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, logprobs=2))
    for i, ids in enumerate(PROMPTS)
]


def engine_of(path, device, **options):
    config = EngineConfig(
        model_path=str(path),
        device=device,
        max_num_seqs=3,
        max_num_batched_tokens=32,
        max_model_len=256,
        block_size=128,
        num_blocks=8,
        **options,
    )
    return load_engine(config, lambda *_: None)[0]


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_greedy_tokens_are_those_of_the_reference(default_model, eager):
    with emulated_ascend():
        got = answers(engine_of(default_model, "ascend", dtype="float16", eager=eager), REQUESTS)
    wanted = answers(engine_of(default_model, "reference"), REQUESTS)
    for name, (tokens, logprobs) in wanted.items():
        count = sure(logprobs)
        assert count >= 5, f"{name}: gaps below {BLUR} from token {count} on"
        assert got[name][0][:count] == tokens[:count]
