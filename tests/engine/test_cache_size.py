"""How large the KV cache is: what the user says, a fixed size, or a share of what the weights leave on the device."""

from __future__ import annotations

import argparse
import dataclasses
import math

import pytest

from engine.config import CACHE_BYTES, CACHE_SHARE, CacheConfig, EngineConfig
from engine.errors import ConfigError, UnsupportedModel
from engine.loading import cut_to_share, load_engine
from engine.model_runner import block_bytes
from engine.types import GenerateRequest, SamplingParams
from engine.weights.open import open_checkpoint
from kernels import resolve as module
from kernels.ops import BackendOptions, NoKernel, StepLimits
from kernels.reference.backend import reference_ops
from server.settings import add_serve_flags, serve_settings
from tests.support.backends import DEVICES
from tests.support.tiny_models import GOLDEN

MODEL = GOLDEN / "tiny-mistral"
SIZES = open_checkpoint(MODEL).config
PER_BLOCK = block_bytes(SIZES, reference_ops(BackendOptions()), 16)


def spare_bytes_of(share):
    """Free bytes of which the cache's share is so many."""
    return math.ceil(share / CACHE_SHARE)


def noting(name, events, real):
    def call(*args, **kwargs):
        events.append(name)
        return real(*args, **kwargs)

    return call


@pytest.fixture
def device(monkeypatch):
    """A backend whose memory is its own: what is done with it, in order, and how much of it a cache gets."""
    ops, events, share = reference_ops(BackendOptions()), [], [0]
    memory = dataclasses.replace(
        ops.memory,
        alloc_cache=noting("cache", events, ops.memory.alloc_cache),
        spare_bytes=noting("share", events, lambda _forward, _limits: spare_bytes_of(share[0])),
    )
    prepared = {
        name: noting("weights", events, getattr(ops, name))
        for name in ("prepare_linear", "prepare_vector", "prepare_rope")
    }
    table = dataclasses.replace(ops, memory=memory, record=noting("record", events, ops.record), **prepared)
    monkeypatch.setattr(module, "BACKENDS", {"device": lambda _options: table})
    return events, share


def loaded(**options):
    return load_engine(EngineConfig(model_path=str(MODEL), **options), lambda *_: None)


def test_the_share_is_asked_for_between_weights_and_cache(device):
    events, share = device
    share[0] = 9 * PER_BLOCK + PER_BLOCK - 1
    engine, ready = loaded()
    assert ready.num_blocks == engine.pool.num_free == 9
    assert ready.kv_cache_bytes == 9 * PER_BLOCK
    assert ready.max_model_len == 9 * 16 < SIZES.max_position_embeddings
    stages = [stage for i, stage in enumerate(events) if i == 0 or events[i - 1] != stage]
    assert stages == ["weights", "cache", "share", "cache", "record"], (
        "the first cache is what the largest step writes to"
    )
    engine.submit(GenerateRequest("r", [5] * 100, SamplingParams(max_tokens=44, temperature=0.0, ignore_eos=True)))
    tokens = [token for _ in range(60) for delta in engine.step().deltas for token in delta.token_ids]
    assert len(tokens) == 44, "the whole context can be used"


def test_it_is_never_more_than_all_sequences_could_use(device):
    _, share = device
    share[0] = 1 << 50
    _, ready = loaded(max_model_len=100, max_num_seqs=3)
    assert ready.num_blocks == 3 * 7
    assert ready.max_model_len == 100


@pytest.mark.parametrize(
    ("options", "blocks"),
    [({"num_blocks": 5}, 5), ({"kv_cache_bytes": 6 * PER_BLOCK}, 6), ({"num_blocks": 5, "kv_cache_bytes": 1 << 30}, 5)],
)
def test_what_the_user_says_goes_first(device, options, blocks):
    events, share = device
    share[0] = 100 * PER_BLOCK
    assert loaded(**options)[1].num_blocks == blocks
    assert events.index("weights") < events.index("share") < events.index("record")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"num_blocks": 5}, "--num-blocks"),
        ({"kv_cache_bytes": 5 * PER_BLOCK + 9}, "--kv-cache-memory-bytes"),
        ({"num_blocks": 5, "kv_cache_bytes": 1}, "--num-blocks"),
    ],
)
def test_what_the_user_says_has_to_fit_beside_the_weights(device, options, flag):
    events, share = device
    share[0] = int(CACHE_SHARE * (5 * PER_BLOCK - 2))
    free = spare_bytes_of(share[0])
    assert free < 5 * PER_BLOCK
    told = rf"5 blocks .* need {5 * PER_BLOCK} bytes, .* leave {free} bytes free .*: 4 blocks at most"
    wanted = rf"{told}; lower {flag} or --max-num-batched-tokens\.$"
    with pytest.raises(ConfigError, match=wanted):
        loaded(**options)
    assert "weights" in events
    assert events[-1] == "share"
    share[0] = math.ceil(CACHE_SHARE * 5 * PER_BLOCK)
    assert spare_bytes_of(share[0]) - 5 * PER_BLOCK in {0, 1}, "all that is free may be asked for, and not a share"
    assert loaded(**options)[1].num_blocks == 5


@pytest.mark.parametrize(("options", "words"), [({}, f"{CACHE_SHARE:.0%}.* 7 bytes"), ({"num_blocks": 5}, "0 blocks")])
def test_where_no_block_fits_there_have_to_be_fewer_weights_or_more_memory(device, options, words):
    events, share = device
    share[0] = 7
    way_out = (
        r"more memory, .* lower --max-num-batched-tokens, .* --quantization w8a8 or a larger --tensor-parallel-size\.$"
    )
    with pytest.raises(ConfigError, match=rf"leave {spare_bytes_of(7)} bytes free .*{words}.*{way_out}") as caught:
        loaded(**options)
    assert str(caught.value).count("lower") == 1, "no flag of the cache or the context helps"
    assert events[-1] == "share"


def test_a_share_that_leaves_less_than_the_given_context_says_what_to_do(device):
    events, share = device
    share[0] = 6 * PER_BLOCK + 7
    wanted = rf"needs {7 * PER_BLOCK} bytes .* is {share[0]}; lower --max-model-len or .*, or .*--kv-cache-memory-bytes"
    with pytest.raises(ConfigError, match=wanted):
        loaded(max_model_len=100)
    assert events[-1] == "share"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("heads of 7 elements", "heads of 7 elements; --device reference can."),
        ("heads in a cache of int8; --kv-cache-dtype auto serves them", "int8; --kv-cache-dtype auto serves them."),
    ],
)
def test_another_device_is_named_only_where_no_flag_is(device, monkeypatch, said, told):
    def refuse(*_):
        raise NoKernel(said)

    table = module.BACKENDS["device"](BackendOptions())
    refusing = dataclasses.replace(table, memory=dataclasses.replace(table.memory, alloc_cache=refuse))
    monkeypatch.setattr(module, "BACKENDS", {"device": lambda _options: refusing})
    device[1][0] = 100 * PER_BLOCK
    with pytest.raises(UnsupportedModel, match="cannot run this model") as caught:
        loaded()
    assert str(caught.value).endswith(told)
    assert str(caught.value).count("--") == 1


@pytest.mark.parametrize("options", [{"block_size": 7}, {"max_model_len": 1 << 40}])
def test_what_can_be_known_before_is_said_before_weights_are_read(device, options):
    with pytest.raises(ConfigError, match="--block-size" if "block_size" in options else "--max-model-len"):
        loaded(**options)
    assert device[0] == []


def test_a_given_context_is_never_cut():
    cache, limits = CacheConfig(100, 16, enable_prefix_caching=False), StepLimits(64, 4, 320)
    cut, steps = cut_to_share(spare_bytes_of(20 * 7), cache, limits, 7, is_context_given=True)
    assert (cut, steps) == (CacheConfig(20, 16, enable_prefix_caching=False), limits)
    with pytest.raises(ConfigError, match="320 tokens"):
        cut_to_share(spare_bytes_of(20 * 7 - 1), cache, limits, 7, is_context_given=True)
    cut, steps = cut_to_share(spare_bytes_of(20 * 7 - 1), cache, limits, 7, is_context_given=False)
    assert (cut.num_blocks, steps.max_model_len, cut.enable_prefix_caching) == (19, 304, False)


@pytest.mark.parametrize("name", DEVICES)
def test_backends_that_share_the_machines_memory_take_a_fixed_size(name):
    per_block = block_bytes(SIZES, module.BACKENDS[name](BackendOptions()), 16)
    ready = loaded(device=name, max_num_seqs=1 << 12, max_num_batched_tokens=1 << 12)[1]
    assert ready.num_blocks == CACHE_BYTES // per_block


def test_help_and_readme_say_both_sizes_and_the_flag_leaves_them_open():
    parser = argparse.ArgumentParser()
    add_serve_flags(parser)
    text = " ".join(parser.format_help().split())
    assert f"(default: 1GiB; on Ascend {CACHE_SHARE:.0%} of what the weights and".replace("%", " %") in text
    assert (
        f"on Ascend {100 * CACHE_SHARE:.0f} % of what the weights and" in (GOLDEN.parents[1] / "README.md").read_text()
    )
    assert serve_settings(parser.parse_args([])).engine.kv_cache_bytes is None
    assert serve_settings(parser.parse_args(["--kv-cache-memory-bytes", "2GiB"])).engine.kv_cache_bytes == 2 << 30
