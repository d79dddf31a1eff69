"""Link 5, by two processes: the engine on the Ascend backend, tensor parallel over gloo, on CPU emulations.

Greedy tokens are those of one process wherever the reference is sure; and of the two processes they are the same in any
company, chunking and after any preemption or prefix hit, to the last bit of their logprobs.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.errors import ConfigError, UnsupportedModel
from engine.loading import load_engine
from engine.parallel import Followers
from kernels.ascend.parallel import Ranks
from kernels.ascend.platform import npu_platform
from kernels.ops import BackendUnavailable, Parallel
from tests.engine.test_ascend_engine import BLUR, MODELS, REQUESTS, agreeing, answers, engine_of, foretold
from tests.support.ascend_backend import emulated_ascend
from tests.support.ascend_links import link
from tests.support.emulated_rank import ENVIRONMENT, FOLLOWER
from tests.support.judge import make_checkpoint
from tests.support.processes import children
from tests.support.tiny_models import GOLDEN, TINY_VOCAB_SIZE

pytestmark = link(5)

NAMES = ("qwen3", "qwen3-moe", "seed-oss")


@pytest.fixture(scope="module", autouse=True)
def emulation():
    with pytest.MonkeyPatch.context() as patch, emulated_ascend() as record:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield record
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=NAMES)
def model(request, tmp_path_factory):
    config_class, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(config_class, folder, vocab_size=TINY_VOCAB_SIZE, **options)
    shutil.copy(GOLDEN / "tiny-mistral" / "tokenizer.json", folder)
    return folder


def parallel_config(folder, **options):
    given = {"device": "ascend", "dtype": "float16", "max_num_seqs": 4, "max_num_batched_tokens": 64}
    given |= {"max_model_len": 256, "num_blocks": 64, "tensor_parallel_size": 2, **options}
    return EngineConfig(model_path=str(folder), **given)


@pytest.fixture
def two():
    """Makes engines of two processes, for the length of a test."""
    with Followers(command=FOLLOWER) as followers:
        yield lambda folder, **options: load_engine(parallel_config(folder, **options), lambda *_: None, followers)[0]


@pytest.fixture(scope="module")
def alone(model):
    """Each request by itself, by two processes, whole prompt at once, no graphs, no cache."""
    options = {"eager": True, "max_num_batched_tokens": 256, "enable_prefix_caching": False}
    wanted, seen = {}, []
    with Followers(command=FOLLOWER) as followers:
        engine, ready = load_engine(parallel_config(model, **options), lambda *at: seen.append(at), followers)
        for request in REQUESTS:
            wanted |= answers(engine, [request])
    done, total = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[-1] == ready.weights_bytes
    assert "tensor parallel over 2" in ready.backend
    return wanted


def test_tokens_are_those_of_one_process_and_of_the_reference(model, alone):
    one = answers(engine_of(model, "ascend"), REQUESTS)
    reference = answers(engine_of(model, "reference", block_size=128), REQUESTS)
    for other in (one, reference):
        same = agreeing(alone, other, BLUR)
        assert len(same) == len(REQUESTS)
        assert sum(same.values()) >= 0.5 * 12 * len(REQUESTS)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_blocks": 4, "max_num_batched_tokens": 17}],
    ids=["graphs", "preemption and small chunks"],
)
def test_nothing_else_changes_a_bit(model, alone, two, options):
    """Logprobs too, to the last bit; the second time around prefixes are in the cache."""
    engine = two(model, **options)
    assert answers(engine, REQUESTS) == alone
    assert answers(engine, REQUESTS) == alone, "with the prefixes of the first time in the cache"
    assert answers(engine, foretold(alone)) == alone, "with drafts"
    assert engine.stats().prefix_hit_tokens > 0
    if options.get("num_blocks") == 4:
        assert engine.scheduler.num_preemptions > 0
    own = engine._runner._own._caches[0]
    assert own.k.shape[2] == 1, "half of the heads of keys"


@pytest.mark.parametrize("model", ["qwen3", "seed-oss"], indirect=True)
def test_w8a8_gives_what_one_process_gives(model, two):
    """Codes and sums of whole numbers are those of one process, so logprobs are too, but for products in float."""
    one = answers(engine_of(model, "ascend", quantization="w8a8"), REQUESTS)
    together = answers(two(model, quantization="w8a8"), REQUESTS)
    for name, (tokens, logprobs) in one.items():
        assert together[name][0] == tokens
        off = [abs(a.logprob - b.logprob) for a, b in zip(together[name][1], logprobs, strict=True)]
        assert max(off) < 1e-5


@pytest.mark.parametrize("model", ["qwen3-moe"], indirect=True)
def test_experts_in_w8a8_give_the_references_tokens_but_for_a_few_and_always_the_same(model, two):
    """Codes are those of one process, and parts of sums are rounded as floats."""
    reference = answers(engine_of(model, "reference", block_size=128, quantization="w8a8"), REQUESTS)
    engine = two(model, quantization="w8a8")
    together = answers(engine, REQUESTS)
    assert len(agreeing(together, reference, 3 * BLUR)) >= len(REQUESTS) - 1
    for request in REQUESTS:
        assert answers(engine, [request]) == {request.request_id: together[request.request_id]}


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_other_backends_refuse_it(device):
    config = parallel_config(GOLDEN / "tiny-mistral", device=device, dtype="auto", num_blocks=None, max_model_len=None)
    with Followers(command=FOLLOWER) as followers, pytest.raises(ConfigError, match="size 2 is for --device ascend"):
        load_engine(config, lambda *_: None, followers)


def test_what_cannot_be_shared_out_is_refused_before_anything_is_started(model):
    with Followers(command=("/nowhere",)) as followers:
        with pytest.raises(UnsupportedModel, match=r"--tensor-parallel-size 3: .* these can be had: 1, 2, 4\."):
            load_engine(parallel_config(model, tensor_parallel_size=3), lambda *_: None, followers)
        with pytest.raises(ConfigError, match="--tensor-parallel-size must be between 1 and 64, but is 0"):
            load_engine(parallel_config(model, tensor_parallel_size=0), lambda *_: None, followers)
        with pytest.raises(ConfigError, match="--block-size"):
            load_engine(parallel_config(model, block_size=64), lambda *_: None, followers)
    with pytest.raises(ValueError, match="no followers"):
        load_engine(parallel_config(model), lambda *_: None)


class FakeNpu:
    """torch_npu.npu, as far as choosing a device goes."""

    def __init__(self, count):
        self.count, self.taken = count, 0

    def is_available(self):
        return True

    def device_count(self):
        return self.count

    def set_device(self, index):
        self.taken = index

    def current_device(self):
        return self.taken

    def __getattr__(self, name):
        return lambda *_: name


@pytest.fixture
def npus(monkeypatch):
    import torch_npu

    monkeypatch.setattr("kernels.ascend.platform.refuse_stubs", lambda: None)
    monkeypatch.setattr("kernels.ascend.platform._cores", lambda device: (20 + device, 40))

    def have(count):
        npu = FakeNpu(count)
        monkeypatch.setattr(torch_npu, "npu", npu)
        return npu

    return have


def test_each_rank_takes_the_npu_of_its_number(npus):
    npu = npus(4)
    assert npu_platform(Parallel(3, 4, "file:///x")).cube_cores == 23
    assert npu.taken == 3
    assert npu_platform().collectives == "hccl"


def test_launches_that_wait_for_the_device_are_refused_by_their_variable(npus, monkeypatch):
    npus(1)
    monkeypatch.setenv("TRITON_ENABLE_TASKQUEUE", "false")
    with pytest.raises(BackendUnavailable, match=r"TRITON_ENABLE_TASKQUEUE is off.* take it out of the environment"):
        npu_platform()


def test_fewer_npus_than_ranks_are_refused_with_the_flag(npus):
    npus(2)
    with pytest.raises(BackendUnavailable, match=r"--tensor-parallel-size 4 needs as many NPUs, .* sees 2; lower it"):
        npu_platform(Parallel(0, 4, "file:///x"))


class Told(Ranks):
    """Three ranks, of which the others' parts are given."""

    def __init__(self, *others):
        super().__init__(None, Parallel(1, 3, ""))
        self._others = others

    def _gather(self, x):
        return torch.stack([self._others[0], x, self._others[1]])


def test_parts_are_added_in_float32_in_the_order_of_the_ranks():
    rng = np.random.default_rng(3)
    parts = [torch.from_numpy(rng.standard_normal((5, 64), dtype=np.float32) * 30) for _ in range(3)]
    first, own, last = parts
    assert torch.equal(Told(first, last).sum(own), first + own + last)
    assert not torch.equal(first + own + last, last + own + first), "these numbers cannot tell"
    first, own, last = (part.half() for part in parts)
    assert torch.equal(Told(first, last).sum(own), (first.float() + own.float() + last.float()).half())
    assert not torch.equal(first + own + last, (first.float() + own.float() + last.float()).half())


def test_vocabularies_parts_stand_side_by_side_without_what_pads_them():
    parts = [torch.full((2, 3), float(rank)) for rank in range(3)]
    got = Told(parts[0], parts[2]).side_by_side(parts[1][:, :2], [3, 2, 1])
    assert got.tolist() == [[0, 0, 0, 1, 1, 2]] * 2
    assert Told(parts[0], parts[2]).side_by_side(parts[1][:0, :2], [3, 2, 1]).shape == (0, 6)


def test_one_process_asks_nobody():
    x, ranks = torch.ones(2, 3), Ranks()
    assert ranks.sum(x) is x
    assert ranks.side_by_side(x, [3]) is x
    assert ranks.each(7) == (7,)


def test_no_process_is_left():
    assert not [line for line in children(os.getpid()).values() if "emulated_rank" in line]
