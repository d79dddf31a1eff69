"""Link 5: the engine on the Ascend backend, over CPU emulations under torch_npu's schemas.

Greedy tokens are those of the reference wherever the reference is sure: where its two likeliest tokens are further
apart than float16 can blur. And they are the same in any company, chunking and after any preemption or prefix hit, with
graphs and without.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import msgspec
import pytest
import transformers

from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.process import failure_of
from engine.types import GenerateRequest, SamplingParams
from kernels.ascend import recorded
from kernels.ascend.attention import Attention
from kernels.ascend.recorded import one_query_each
from tests.kernels.test_ascend_errors import FUSED
from tests.support.ascend_backend import emulated_ascend
from tests.support.ascend_links import link
from tests.support.judge import make_checkpoint
from tests.support.tiny_models import GOLDEN, TINY_VOCAB_SIZE
from tools.ascend.emulation import CallRecord

pytestmark = link(5)

MODELS = {
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
    "qwen3-moe": (
        transformers.Qwen3MoeConfig,
        {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    ),
    "seed-oss": (
        transformers.SeedOssConfig,
        {"head_dim": 16, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    ),
    "mistral, a window": (transformers.MistralConfig, {"head_dim": 16, "sliding_window": 40}),
}
BLUR = 0.02
"""Natural log probability that float16 may take from one token to another in these models."""
NPU_OPERATIONS = {"npu_rms_norm", "npu_rotary_mul", "npu_scatter_pa_kv_cache", "npu_swiglu"}
MOE_OPERATIONS = {
    "npu_moe_gating_top_k_softmax", "npu_moe_init_routing_v2", "npu_grouped_matmul", "npu_moe_token_unpermute",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def calls() -> Iterator[CallRecord]:
    with emulated_ascend() as record:
        yield record


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    config_class, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(config_class, folder, vocab_size=TINY_VOCAB_SIZE, **options)
    shutil.copy(GOLDEN / "tiny-mistral" / "tokenizer.json", folder)
    return folder


STEM = [(7 * i * i + 3 * i) % 190 + 5 for i in range(300)]
REQUESTS = [
    GenerateRequest(f"r{i}", STEM[:shared] + [(11 * j + 5 * i) % 190 + 5 for j in range(own)], params)
    for i, (shared, own) in enumerate([(140, 7), (120, 4), (0, 3), (110, 13), (0, 126), (140, 2)])
    for params in [SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=2)]
]
"""Some share a beginning of a whole block, which the prefix cache finds; some go from one block into the next."""


def foretold(wanted):
    """The requests with predictions of what is wanted: right ones, one but for a token, and a wrong one."""
    predictions = [wanted[request.request_id][0] for request in REQUESTS]
    predictions[1] = [*predictions[1][:4], 5, *predictions[1][5:]]
    predictions[2] = predictions[3]
    return [
        msgspec.structs.replace(request, prediction_ids=tuple(prediction))
        for request, prediction in zip(REQUESTS, predictions, strict=True)
    ]


def engine_of(folder, device, **options) -> Engine:
    config = EngineConfig(
        model_path=str(folder),
        **{
            "device": device,
            "dtype": "float16" if device == "ascend" else "auto",
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "max_model_len": 256,
            "num_blocks": 64,
            **options,
        },
    )
    return load_engine(config, lambda *_: None)[0]


def answers(engine, requests):
    """request id -> (tokens, logprobs, the prompt's first)."""
    out = {request.request_id: ([], []) for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step().deltas:
            assert delta.error is None, delta.error
            tokens, logprobs = out[delta.request_id]
            tokens += delta.token_ids
            logprobs += (delta.prompt_logprobs or []) + (delta.logprobs or [])
    return out


def sure(logprobs, blur=BLUR):
    """How many tokens come before one whose likeliest rival is too near."""
    gaps = [entry.top[0][1] - entry.top[1][1] for entry in logprobs]
    return next((i for i, gap in enumerate(gaps) if gap < blur), len(gaps))


def agreeing(got, reference, blur):
    """Requests whose tokens are the reference's as far as it is sure, and how many those are."""
    counts = {name: sure(logprobs, blur) for name, (_, logprobs) in reference.items()}
    return {name: n for name, n in counts.items() if got[name][0][:n] == reference[name][0][:n]}


@pytest.fixture(scope="module")
def alone(calls, model):
    """Each request by itself, whole prompt at once, no graphs, no cache."""
    engine = engine_of(model, "ascend", eager=True, max_num_batched_tokens=256, enable_prefix_caching=False)
    wanted = {}
    for request in REQUESTS:
        wanted |= answers(engine, [request])
    return wanted


def test_tokens_are_those_of_the_reference(model, alone):
    reference = answers(engine_of(model, "reference", block_size=128), REQUESTS)
    compared = 0
    for name, (tokens, _) in alone.items():
        count = sure(reference[name][1])
        assert tokens[:count] == reference[name][0][:count]
        compared += count
    assert compared >= 0.5 * 12 * len(REQUESTS), "the reference is sure of too little to compare"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eager": True},
        {"max_num_batched_tokens": 17},
        {"num_blocks": 4, "max_num_batched_tokens": 40},
        {"max_num_seqs": 6, "max_num_batched_tokens": 30},
    ],
    ids=["graphs", "eager", "small chunks", "preemption", "more at once"],
)
def test_nothing_else_changes_a_bit(model, alone, options, monkeypatch):
    """Logprobs too, to the last bit; the second time around prefixes are in the cache, and then there are drafts."""
    engine = engine_of(model, "ascend", **options)
    assert answers(engine, REQUESTS) == alone
    assert answers(engine, REQUESTS) == alone, "with the prefixes of the first time in the cache"
    drafts = []
    monkeypatch.setattr(recorded, "one_query_each", lambda step: drafts.append(step) or one_query_each(step))
    assert answers(engine, foretold(alone)) == alone
    assert drafts, "steps that try drafts alone, which have one query a sequence as graphs have"
    if options.get("num_blocks") == 4:
        assert engine.scheduler.num_preemptions > 0


def test_nor_log_probabilities_of_prompts(model):
    """Alone without graphs, or in company and small chunks; where all of a step's logits are wanted, too."""
    scored = [msgspec.structs.replace(request, prompt_logprobs=2) for request in (REQUESTS[3], REQUESTS[2])]
    lone = engine_of(model, "ascend", eager=True, max_num_batched_tokens=256)
    wanted = {name: answer for each in scored for name, answer in answers(lone, [each]).items()}
    assert [len(logprobs) for _, logprobs in wanted.values()] == [122 + 12, 2 + 12]
    engine = engine_of(model, "ascend", num_blocks=4, max_num_batched_tokens=40)
    got = answers(engine, [*scored, REQUESTS[0], REQUESTS[4]])
    assert {name: got[name] for name in wanted} == wanted


@pytest.mark.parametrize("options", [{"prompt_attention": "fused"}, {"attention_scores": "float16"}])
def test_other_kernels_give_the_references_tokens_too(model, options):
    reference = answers(engine_of(model, "reference", block_size=128), REQUESTS)
    got = answers(engine_of(model, "ascend", **options), REQUESTS)
    assert sum(agreeing(got, reference, BLUR).values()) >= 0.5 * 12 * len(REQUESTS)
    assert len(agreeing(got, reference, BLUR)) == len(REQUESTS)


def test_nothing_else_changes_a_bit_with_a_cache_of_int8_either(model):
    """Whole prompts alone and without graphs; in company, in chunks, with graphs, preempted, from the prefix cache."""
    options = {"kv_cache_dtype": "i8"}
    plain = engine_of(model, "ascend", eager=True, max_num_batched_tokens=256, enable_prefix_caching=False, **options)
    wanted = {}
    for request in REQUESTS:
        wanted |= answers(plain, [request])
    engine = engine_of(model, "ascend", num_blocks=4, max_num_batched_tokens=40, **options)
    assert answers(engine, REQUESTS) == wanted
    assert answers(engine, REQUESTS) == wanted, "with the prefixes of the first time in the cache"
    assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("options", [{"quantization": "w8a8"}, {"dtype": "bfloat16"}, {"kv_cache_dtype": "i8"}])
def test_coarser_arithmetic_gives_the_references_tokens_but_for_a_few(model, options):
    """There one rounding more moves what comes after it by more: in one request of six at times."""
    quantization = options.get("quantization", "none")
    reference = answers(engine_of(model, "reference", block_size=128, quantization=quantization), REQUESTS)
    got = answers(engine_of(model, "ascend", **options), REQUESTS)
    same = agreeing(got, reference, 3 * BLUR)
    assert len(same) >= len(REQUESTS) - 1
    assert sum(same.values()) >= 3
    alone = answers(engine_of(model, "ascend", eager=True, enable_prefix_caching=False, **options), REQUESTS[:2])
    assert {name: got[name] for name in alone} == alone


def test_a_model_with_one_expert_is_served(tmp_path):
    one = {"head_dim": 16, "num_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 48}
    make_checkpoint(transformers.Qwen3MoeConfig, tmp_path, vocab_size=TINY_VOCAB_SIZE, **one)
    shutil.copy(GOLDEN / "tiny-mistral" / "tokenizer.json", tmp_path)
    reference = answers(engine_of(tmp_path, "reference", block_size=128), REQUESTS)
    same = agreeing(answers(engine_of(tmp_path, "ascend"), REQUESTS), reference, BLUR)
    assert len(same) == len(REQUESTS)
    assert sum(same.values()) >= 0.5 * 12 * len(REQUESTS)


def test_a_device_that_refuses_the_fused_attention_says_so_at_load(monkeypatch):
    def refused(*_):
        raise RuntimeError(FUSED)

    monkeypatch.setattr(Attention, "_fused", refused)
    with pytest.raises(RuntimeError) as caught:
        engine_of(GOLDEN / "tiny-mistral", "ascend", prompt_attention="fused")
    assert "serve with --prompt-attention own" in failure_of(caught.value).message


def test_every_call_was_checked_against_the_real_operations(model, alone, calls):
    """The record refuses a call that the schema or the meta kernel would not take; here, that there were any."""
    del alone
    assert calls.called >= NPU_OPERATIONS
    if "Moe" in (model / "config.json").read_text():
        assert calls.called >= MOE_OPERATIONS
    assert not calls.refused
