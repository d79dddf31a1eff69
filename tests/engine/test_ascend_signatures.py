"""Link 5: what the backend calls, held against the signatures of every torch_npu that a set of versions has.

The emulations are under the schemas of the torch_npu that is installed. Those of others are recorded, from the strings
of their libraries; for them it is counted what a call gives by position and what by name, as the backend writes it.
"""

from __future__ import annotations

import importlib
import json
import shutil

import pytest
import torch
import transformers

from engine.config import EngineConfig
from engine.loading import load_engine
from engine.types import GenerateRequest, SamplingParams
from kernels.ascend import attention
from kernels.ascend.versions import SETS
from tests.support.ascend_backend import emulated_ascend
from tests.support.ascend_links import link
from tests.support.judge import make_checkpoint
from tests.support.tiny_models import GOLDEN, TINY_VOCAB_SIZE

pytestmark = link(5)

SIGNATURES = json.loads((GOLDEN / "torch_npu_signatures.json").read_text())
MOE = {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
RUNS = {
    "floats": {},
    "a cache of int8": {"kv_cache_dtype": "i8"},
    "linear layers of int8": {"quantization": "w8a8"},
    "the fused attention": {"prompt_attention": "fused"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(transformers.Qwen3MoeConfig, folder, vocab_size=TINY_VOCAB_SIZE, **MOE)
    shutil.copy(GOLDEN / "tiny-mistral" / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def npu():
    """torch_npu, which cannot be imported before the stubs of this link are there."""
    return importlib.import_module("torch_npu")


def calls_of(npu, model, version):
    """operation -> {(how many arguments by position, names of the others)} of all runs, with that torch_npu's store."""
    calls = {}

    def counting(name, real):
        def call(*args, **kwargs):
            calls.setdefault(name, set()).add((len(args), frozenset(kwargs)))
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch, emulated_ascend():
        for name in (name for name in dir(npu) if name.startswith("npu_")):
            patch.setattr(npu, name, counting(name, getattr(npu, name)))
        told = attention.is_told_how_caches_lie(parsed(version, "npu_scatter_pa_kv_cache"))
        patch.setattr(attention, "is_told_how_caches_lie", lambda _schema: told)
        for options in RUNS.values():
            config = EngineConfig(
                model_path=str(model), device="ascend", dtype="float16", max_num_seqs=2, max_num_batched_tokens=32,
                max_model_len=128, num_blocks=4, **options,
            )  # fmt: skip
            engine = load_engine(config, lambda *_: None)[0]
            engine.submit(GenerateRequest("r", [5, 6, 7], SamplingParams(max_tokens=2, temperature=0.0)))
            while engine.has_work:
                assert not any(delta.error for delta in engine.step().deltas)
    return calls


def parsed(version, name):
    return torch._C.parse_schema(SIGNATURES[version][name])


def mistakes(schema, installed, num_args, names):
    """Why a call with so many arguments by position, and others by name, is not one for a schema."""
    positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    given = {*positional[:num_args], *names}
    found = [f"{num_args} by position"] if num_args > len(positional) else []
    found += [f"there is no {name}" for name in sorted(names - {argument.name for argument in schema.arguments})]
    found += [f"{name} is given twice" for name in sorted(names & set(positional[:num_args]))]
    ours = {argument.name: argument for argument in installed.arguments}
    for argument in schema.arguments:
        if argument.name in given:
            continue
        if not argument.has_default_value():
            found.append(f"{argument.name} is missing")
        elif argument.name in ours and argument.default_value != ours[argument.name].default_value:
            in_tests = ours[argument.name].default_value
            found.append(f"{argument.name} is {argument.default_value} if unsaid, but {in_tests} in tests")
    return found


def test_the_recorded_versions_are_those_of_the_sets(npu):
    recorded = {*SIGNATURES, npu.__version__.partition("+")[0]}
    assert recorded == {entry.torch_npu for entry in SETS}


@pytest.mark.parametrize("version", SIGNATURES)
def test_calls_are_such_as_each_version_takes(npu, model, version):
    calls = calls_of(npu, model, version)
    store = {"npu_scatter_nd_update_", "npu_scatter_pa_kv_cache"}
    assert set(calls) | store >= set(SIGNATURES[version]) - {"npu_add_rms_norm"}, "what is recorded is called"
    for name, forms in calls.items():
        installed = getattr(torch.ops.npu, name).default._schema
        for num_args, names in forms:
            assert mistakes(parsed(version, name), installed, num_args, names) == [], name


@pytest.mark.usefixtures("npu")
def test_a_call_that_a_version_does_not_take_is_found():
    installed = torch.ops.npu.npu_scatter_pa_kv_cache.default._schema
    names = frozenset({"cache_mode"})
    assert mistakes(installed, installed, 5, names) == []
    old = parsed("2.7.1", "npu_scatter_pa_kv_cache")
    assert mistakes(old, installed, 5, names) == ["there is no cache_mode"]
    assert mistakes(old, installed, 4, frozenset({"key"})) == ["key is given twice", "slot_mapping is missing"]
    assert mistakes(old, installed, 6, frozenset()) == ["6 by position"]
    routing = parsed("2.7.1", "npu_moe_init_routing_v2")
    unsaid = mistakes(routing, torch.ops.npu.npu_moe_init_routing_v2.default._schema, 2, frozenset())
    assert unsaid == ["quant_mode is 0 if unsaid, but -1 in tests"]


@pytest.mark.parametrize("told", [True, False])
def test_answers_are_those_of_the_reference_with_either_store(npu, model, monkeypatch, told):
    stored = []
    for name in ("npu_scatter_nd_update_", "npu_scatter_pa_kv_cache"):
        real = getattr(npu, name)
        monkeypatch.setattr(npu, name, lambda *a, r=real, n=name, **k: stored.append(n) or r(*a, **k))
    monkeypatch.setattr(attention, "is_told_how_caches_lie", lambda _schema: told)
    tokens = {}
    with emulated_ascend():
        for device in ("ascend", "reference"):
            config = EngineConfig(
                model_path=str(model), device=device, dtype="float16" if device == "ascend" else "auto", max_num_seqs=2,
                max_num_batched_tokens=32, max_model_len=256, num_blocks=16,
            )  # fmt: skip
            engine = load_engine(config, lambda *_: None)[0]
            ids = [(7 * i) % 190 + 5 for i in range(140)]
            engine.submit(GenerateRequest("r", ids, SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)))
            while engine.has_work:
                for delta in engine.step().deltas:
                    tokens.setdefault(device, []).extend(delta.token_ids)
    assert set(stored) == {"npu_scatter_pa_kv_cache" if told else "npu_scatter_nd_update_"}
    assert tokens["ascend"] == tokens["reference"]
