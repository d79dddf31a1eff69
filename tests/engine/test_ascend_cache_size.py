"""Link 5: the KV cache's share of a device's memory, by one process and by two that have different amounts of it."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from engine.config import CACHE_SHARE, EngineConfig
from engine.errors import ConfigError
from engine.loading import load_engine
from engine.model_runner import block_bytes
from engine.parallel import Followers
from engine.types import GenerateRequest, SamplingParams
from engine.weights.open import open_checkpoint
from kernels.ascend import rehearsal
from kernels.ascend.backend import ops_on
from kernels.ascend.platform import npu_platform
from kernels.ops import BackendOptions, StepLimits
from kernels.resolve import BACKENDS
from tests.support.ascend_backend import emulated_ascend
from tests.support.ascend_links import link
from tests.support.emulated_rank import ENVIRONMENT
from tests.support.tiny_models import GOLDEN
from tools.ascend.emulation.platform import emulated_platform

pytestmark = link(5)

MODEL = GOLDEN / "tiny-mistral"
MIB = 1 << 20
LIMITS = StepLimits(4, 4, 4)
RANK_WITH = """
import sys
import kernels.control_groups
kernels.control_groups.memory_bytes = lambda: {free}
import tools.ascend.emulation.peak as peak
peak.peak_bytes = lambda run: run() or 0
sys.argv[1:1] = ["follower"]
from tests.support import emulated_rank
emulated_rank.main()
"""
"""A follower on the emulation, whose device has so many bytes free."""


@pytest.fixture(autouse=True)
def emulation(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with emulated_ascend():
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def free(emulation):
    """Sets what is free on this process' device."""
    with pytest.MonkeyPatch.context() as patch:  # its own, which ends before the emulation does

        def set_to(num_bytes):
            platform = dataclasses.replace(emulated_platform(), free_bytes=lambda: num_bytes, peak_bytes=nothing)
            patch.setitem(BACKENDS, "ascend", lambda options: ops_on(platform, options))
            return platform

        yield set_to


def nothing(run):
    """What a run takes, if it does not count."""
    run()
    return 0


def config(**options):
    given = {"device": "ascend", "max_num_seqs": 512, "max_num_batched_tokens": 512, "eager": True, **options}
    return EngineConfig(model_path=str(MODEL), **given)


def bytes_of_a_block(num_ranks):
    sizes = open_checkpoint(MODEL).config
    ops = ops_on(emulated_platform(), BackendOptions())
    return block_bytes(sizes, ops, 128) // num_ranks


def shared(num_bytes, num_ranks=1):
    """Blocks that a cache has of so many free bytes."""
    return int(CACHE_SHARE * num_bytes) // bytes_of_a_block(num_ranks)


def answer(engine):
    engine.submit(GenerateRequest("r", [5, 6, 7], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)))
    return [token for _ in range(6) for delta in engine.step().deltas for token in delta.token_ids]


def test_the_cache_takes_its_share_of_what_is_free(free):
    free(20 * MIB)
    engine, ready = load_engine(config(eager=False, max_num_seqs=40), lambda *_: None)
    assert ready.num_blocks == shared(19 * MIB) > 40, "the logits of all graphs take some, and it is counted in MiB"
    assert engine._runner._caches[0].k.shape[0] > ready.num_blocks
    assert len(answer(engine)) == 4
    free(30 * MIB)
    assert load_engine(config(), lambda *_: None)[1].num_blocks == shared(30 * MIB) > ready.num_blocks
    assert load_engine(config(kv_cache_bytes=8 * MIB), lambda *_: None)[1].num_blocks == 8 * MIB // bytes_of_a_block(1)


def test_there_is_a_way_out_where_the_weights_leave_too_little(free):
    free(MIB - 1)
    with pytest.raises(ConfigError, match=r"leave 0 bytes free .* --quantization w8a8"):
        load_engine(config(), lambda *_: None)


def test_a_large_device_is_counted_in_numbers_that_fit(free):
    def spare(num_bytes, other):
        step = rehearsal.spare_bytes
        return step(free(num_bytes), Told(other), lambda _inputs: torch.zeros(1, 1), LIMITS, eager=True)

    assert spare((1 << 40) + 7, 7 << 40) == 1 << 40
    assert spare(1 << 40, 64 << 30) == 64 << 30


class Told:
    """Two ranks, of which the other has said how many bytes it has free."""

    def __init__(self, other):
        self._other = other

    def each(self, number):
        assert number < 1 << 31, "ranks tell each other 32-bit integers"
        return self._other >> 20, number


@pytest.mark.parametrize(("own", "others"), [(30 * MIB, 12 * MIB), (12 * MIB, 30 * MIB)])
def test_all_ranks_take_the_share_of_the_one_that_has_least(free, own, others):
    free(own)
    command = (sys.executable, "-c", RANK_WITH.format(free=others))
    with Followers(command=command) as followers:
        engine, ready = load_engine(config(tensor_parallel_size=2), lambda *_: None, followers)
        assert ready.num_blocks == shared(12 * MIB, num_ranks=2)
        assert ready.kv_cache_bytes == 2 * ready.num_blocks * bytes_of_a_block(2)
        assert len(answer(engine)) == 4


def test_a_size_that_is_given_has_to_fit_on_all_ranks(free):
    """Rank 0 has room, so that it starts the other; then all are told, and it says so of itself."""
    free(30 * MIB)
    command = (sys.executable, "-c", RANK_WITH.format(free=12 * MIB))
    most = 12 * MIB // bytes_of_a_block(2)
    told = rf"leave {12 * MIB} bytes free .*: {most} blocks at most; lower --kv-cache-memory-bytes or"
    with Followers(command=command) as followers, pytest.raises(ConfigError, match=told):
        load_engine(config(tensor_parallel_size=2, kv_cache_bytes=20 * MIB), lambda *_: None, followers)


def test_memory_that_torch_keeps_for_later_counts_as_free(monkeypatch):
    import torch_npu

    from tests.engine.test_ascend_parallel import FakeNpu

    class Keeping(FakeNpu):
        kept = 5 * MIB

        def empty_cache(self):
            self.kept = 0

        def mem_get_info(self):
            return 9 * MIB - self.kept, 64 * MIB

    monkeypatch.setattr("kernels.ascend.platform.refuse_stubs", lambda: None)
    monkeypatch.setattr("kernels.ascend.platform._cores", lambda _device: (20, 40))
    monkeypatch.setattr(torch_npu, "npu", Keeping(1))
    assert npu_platform().free_bytes() == 9 * MIB
