"""Link 5: folders of W8A8 weights as llm-compressor writes them, served by the engine on the Ascend backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.test_ascend_engine import BLUR, REQUESTS, agreeing, answers, engine_of
from tests.engine.test_hf_quantization import compress, is_linear
from tests.support.ascend_backend import emulated_ascend
from tests.support.ascend_links import link
from tests.support.tiny_models import GOLDEN, TINY_MODELS
from tools.ascend.emulation import CallRecord

pytestmark = link(5)


@pytest.fixture(autouse=True)
def calls() -> Iterator[CallRecord]:
    with emulated_ascend() as record:
        yield record


def check_against_reference(folder: Path, got: dict) -> None:
    """All of them, as far as the reference is sure of the same integers."""
    reference = answers(engine_of(folder, "reference", block_size=128), REQUESTS)
    same = agreeing(got, reference, 3 * BLUR)
    assert len(same) == len(REQUESTS)
    assert sum(same.values()) >= 0.25 * 12 * len(REQUESTS), "the reference is sure of too little to compare"


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_folder_of_int8_gives_the_references_tokens_and_the_bits_of_the_flag(tmp_path, calls, name):
    """In company, with chunks, graphs and prefixes from the cache; the flag makes the same integers of the floats."""
    folder = compress(GOLDEN / name, tmp_path)
    engine = engine_of(folder, "ascend")
    got = answers(engine, REQUESTS)
    assert calls.called >= {"npu_dynamic_quant", "npu_quant_matmul"}
    assert ("npu_grouped_matmul" in calls.called) == ("moe" in name)
    assert not calls.refused
    assert answers(engine, REQUESTS) == got
    assert answers(engine_of(GOLDEN / name, "ascend", quantization="w8a8"), REQUESTS) == got
    check_against_reference(folder, got)


def test_a_head_and_a_router_of_int8_are_served_too(tmp_path):
    def is_int8(tensor):
        return is_linear(tensor) or tensor.endswith(("lm_head.weight", "mlp.gate.weight"))

    folder = compress(GOLDEN / "tiny-qwen3-moe", tmp_path, is_int8=is_int8)
    check_against_reference(folder, answers(engine_of(folder, "ascend"), REQUESTS))
