"""Link 5: an engine on the emulated Ascend whose requests are sampled in all ways at once."""

from __future__ import annotations

import shutil

import pytest

from engine.types import GenerateRequest, SamplingParams
from kernels.ascend import recorded, sampling
from tests.engine.test_ascend_engine import MODELS, answers, engine_of
from tests.support.ascend_backend import emulated_ascend
from tests.support.ascend_links import link
from tests.support.judge import make_checkpoint
from tests.support.tiny_models import GOLDEN, TINY_VOCAB_SIZE

pytestmark = link(5)

SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "greedy, logprobs": {"temperature": 0.0, "logprobs": 2},
    "top_k": {"top_k": 5},
    "top_k of one": {"top_k": 1},
    "top_k, hot": {"top_k": 40, "temperature": 2.0},
    "top_k, top_p, min_p": {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "top_k, logprobs": {"top_k": 5, "logprobs": 1},
    "top_k, penalties": {"top_k": 5, "presence_penalty": 1.0, "repetition_penalty": 1.2},
    "top_k beyond the vocabulary": {"top_k": 400},
    "all": {"temperature": 1.2},
    "top_p": {"top_p": 0.9},
    "bias, an end later": {"temperature": 0.0, "logit_bias": ((7, 2.0),), "min_tokens": 3},
}
REQUESTS = [
    GenerateRequest(
        name,
        [(7 * i + 11 * j) % 190 + 5 for j in range((4, 115)[i % 2] + i)],
        SamplingParams(max_tokens=10, ignore_eos=True, seed=i, **params),
    )
    for i, (name, params) in enumerate(SAMPLINGS.items())
]


@pytest.fixture(scope="module", autouse=True)
def emulation():
    with emulated_ascend() as record:
        yield record


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config_class, options = MODELS["qwen3"]
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(config_class, folder, vocab_size=TINY_VOCAB_SIZE, **options)
    shutil.copy(GOLDEN / "tiny-mistral" / "tokenizer.json", folder)
    return folder


@pytest.fixture
def fetched(monkeypatch):
    """Shapes of what comes down from the device."""
    shapes, real = [], sampling.fetched

    def noting(tensor):
        shapes.append(tuple(tensor.shape))
        return real(tensor)

    for module in (sampling, recorded):
        monkeypatch.setattr(module, "fetched", noting)
    return shapes


@pytest.fixture(scope="module")
def alone(model, emulation):
    engine = engine_of(model, "ascend", eager=True, max_num_batched_tokens=256, enable_prefix_caching=False)
    wanted = {}
    for request in REQUESTS:
        wanted |= answers(engine, [request])
    return wanted


@pytest.mark.parametrize("options", [{}, {"num_blocks": 4, "max_num_batched_tokens": 500}], ids=["", "preemption"])
def test_tokens_are_those_of_each_request_alone(model, alone, options):
    engine = engine_of(model, "ascend", max_num_seqs=len(REQUESTS), **{"max_num_batched_tokens": 96, **options})
    assert answers(engine, REQUESTS) == alone
    assert answers(engine, REQUESTS[::-1]) == alone
    assert (engine.scheduler.num_preemptions > 0) == ("num_blocks" in options)
    assert len({tuple(tokens) for tokens, _ in alone.values()}) > len(REQUESTS) / 2, "too much alike to tell"


def test_asking_for_logprobs_changes_no_token(alone, model):
    """Without them the highest logits decide, with them the whole row."""
    request = next(request for request in REQUESTS if request.request_id == "top_k, logprobs")
    params = SamplingParams(max_tokens=10, ignore_eos=True, seed=request.sampling.seed, top_k=5)
    got = answers(engine_of(model, "ascend"), [GenerateRequest("plain", request.prompt_ids, params)])
    assert got["plain"][0] == alone["top_k, logprobs"][0]


def test_a_step_brings_down_no_row_that_it_does_not_need(model, fetched):
    by_name = {request.request_id: request for request in REQUESTS}
    for names, wanted in [
        (["greedy", "greedy, logprobs", "top_k"], {(1, TINY_VOCAB_SIZE), (1, 6)}),
        (["greedy", "top_k", "top_k, top_p, min_p"], {(1, 6), (2, 21), (1, 21)}),
        (["greedy"], set()),
    ]:
        engine = engine_of(model, "ascend")
        fetched.clear()
        answers(engine, [by_name[name] for name in names])
        assert {shape for shape in fetched if len(shape) == 2} <= wanted
        assert any(len(shape) == 2 for shape in fetched) == bool(wanted)
        assert max(shape[0] for shape in fetched if len(shape) == 1) <= 4, "the best tokens of a bucket"
