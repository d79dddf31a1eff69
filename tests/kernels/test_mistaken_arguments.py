"""Mistaken arguments of the native backend are refused by name, under every instruction set; none is followed."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from engine.config import CacheConfig
from engine.model_runner import ModelRunner
from engine.models.registry import model_class
from engine.weights.open import open_checkpoint
from kernels.cpu.abi import ROWS_SAMPLED, Batch, Experts, Matrix, Op
from kernels.cpu.library import load_library
from kernels.cpu.lowering import one_call
from kernels.cpu.memory import address, copy_block
from kernels.formats import RawTensor, WeightFormat
from kernels.ops import AttentionBatch, BackendOptions, DrawParams, StepInputs, StepLimits
from kernels.resolve import BACKENDS
from kernels.spec import f32_tensor, random_tensor
from tests.support.backends import DEVICES, ISAS, use_best_isa
from tests.support.tiny_models import GOLDEN

pytestmark = pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")

T, HIDDEN, HEADS, KV_HEADS, DIM, BLOCKS, SIZE, POSITIONS, VOCAB, EXPERTS = 5, 64, 4, 2, 32, 3, 16, 40, 48, 4


@pytest.fixture(params=ISAS or ["none"])
def ops(request):
    table = BACKENDS["cpu"](BackendOptions(threads=2))
    assert load_library().use(request.param.encode())
    yield table
    use_best_isa()


def i32(*numbers):
    return np.array(numbers, dtype=np.int32)


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def f32_weight(*shape):
    return f32_tensor(floats(*shape))


def arguments(ops):
    """Operation -> its arguments by name, none of them mistaken."""
    upload, linear = ops.memory.upload, lambda *shape: ops.prepare_linear([f32_weight(*shape)], None)
    table = ops.prepare_rope(np.ones(DIM // 2), 1.0, POSITIONS)
    cache, kv = ops.memory.alloc_cache(BLOCKS, SIZE, KV_HEADS, DIM), floats(T, KV_HEADS, DIM)
    x, ones, positions = upload(floats(T, HIDDEN)), np.ones(HIDDEN, dtype=np.float32), np.arange(T, dtype=np.int32)
    experts = [f32_weight(EXPERTS, 32, HIDDEN), f32_weight(EXPERTS, 32, HIDDEN), f32_weight(EXPERTS, HIDDEN, 32)]
    attention = {
        "q_starts": i32(0, 4, 5),
        "kv_lens": i32(4, 20),
        "block_table": np.array([[1, -1], [2, 0]], dtype=np.int32),
    }
    draws = {"temperature": 1.0, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "uniform": 0.5}
    return {
        "prepare_linear": {"weights": [f32_weight(VOCAB, HIDDEN)] * 2, "biases": [f32_weight(VOCAB)] * 2},
        "prepare_experts": dict(zip(("gate", "up", "down"), experts, strict=True)),
        "embed": {"ids": i32(0, 1, VOCAB - 1), "weight": linear(VOCAB, HIDDEN)},
        "rms_norm": {"x": x, "weight": ones, "eps": 1e-5},
        "add_rms_norm": {"x": x, "residual": x, "weight": ones, "eps": 1e-5},
        "linear": {"x": x, "weight": linear(VOCAB, HIDDEN)},
        "rope": {"x": upload(floats(T, HEADS, DIM)), "positions": positions, "table": table},
        "write_kv": {"cache": cache, "k": upload(kv), "v": upload(kv), "slots": i32(0, 1, 2, 3, BLOCKS * SIZE - 1)},
        "paged_attention": {"q": upload(floats(T, HEADS, DIM)), "cache": cache, **attention, "scale": 0.2, "window": 7},
        "silu_mul": {"x": x},
        "moe": {"x": x, "router": linear(EXPERTS, HIDDEN), "experts": ops.prepare_experts(*experts), "top_k": 2,
                "normalise": True},
        "logits": {"x": x, "rows": i32(4, 0), "weight": linear(VOCAB, HIDDEN)},
        "draw": {"logits": floats(2, VOCAB), **{name: np.full(2, value) for name, value in draws.items()}},
        "alloc_cache": {"num_blocks": BLOCKS, "block_size": SIZE, "kv_heads": KV_HEADS, "head_dim": DIM},
        "copy_block": {"cache": cache, "source": 0, "target": 2},
        "upload": {"array": floats(T, HIDDEN)},
    }  # fmt: skip


def call(ops, name, given):
    if name == "draw":
        return ops.draw(given["logits"], DrawParams(*list(given.values())[1:]))
    if name == "paged_attention":
        batch = AttentionBatch(given["q_starts"], given["kv_lens"], given["block_table"])
        return ops.paged_attention(given["q"], given["cache"], batch, given["scale"], given["window"])
    function = copy_block if name == "copy_block" else getattr(ops, name, None) or getattr(ops.memory, name)
    return function(*given.values())


def uploaded(ops, *shape):
    return ops.memory.upload(floats(*shape))


def put(array, at, value):
    changed = array.copy()
    changed[at] = value
    return changed


def strided(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


INTEGERS = {
    "int64": lambda ops, a: a.astype(np.int64),
    "floats": lambda ops, a: a.astype(np.float32),
    "another shape": lambda ops, a: a[None],
    "a list": lambda ops, a: a.tolist(),
    "not contiguous": lambda ops, a: strided(a),
}
INDICES = {"one too few": lambda ops, a: a[:-1], "one too many": lambda ops, a: np.append(a, i32(0))}
TENSORS = {
    "not uploaded": lambda ops, x: ops.memory.download(x),
    "other columns": lambda ops, x: uploaded(ops, T, *x.shape[:-1], x.shape[-1] + 2),
    "another rank": lambda ops, x: uploaded(ops, T, *x.shape, 2),
    "sampled rows": lambda ops, x: ops.logits(uploaded(ops, T, 8), i32(1, 2), ops.prepare_linear(
        [f32_weight(x.columns, 8)], None)).reshape(-1, *x.shape),
}  # fmt: skip
OTHER_ROWS = {"other rows": lambda ops, x: uploaded(ops, T - 1, *x.shape)}
VECTORS = {
    "float64": lambda ops, w: w.astype(np.float64),
    "one too few": lambda ops, w: w[..., :-1].copy(),
    "not contiguous": lambda ops, w: strided(w),
}


def index(at, *values):
    return {f"{value} at {at}": lambda ops, a, value=value: put(a, at, value) for value in values}


def number(*values):
    return {str(value): lambda ops, _, value=value: value for value in values}


def rows(*values):
    return index(1, *values) | {"another shape": lambda ops, a: a[:1], "two axes": lambda ops, a: a[:, None]}


def shaped(*shapes):
    return {str(shape): lambda ops, _, shape=shape: f32_weight(*shape) for shape in shapes}


def of_data(change):
    return lambda ops, raw: RawTensor(raw.shape, raw.format, change(raw.data))


DATA = {
    "short rows": of_data(lambda data: data[..., :-4]),
    "too few rows": of_data(lambda data: data[:-1]),
    "floats as data": of_data(lambda data: data.view(np.float32)),
}
LISTED = {name: (lambda ops, all_, change=change: [all_[0], change(ops, all_[1])]) for name, change in DATA.items()}
LARGE = 1 << 30
MISTAKES = {
    ("prepare_linear", "weights"): {
        "none": lambda ops, _: [],
        "a vector": lambda ops, _: [f32_weight(8)],
        "other columns": lambda ops, all_: [all_[0], f32_weight(VOCAB, HIDDEN + 1)],
        "other columns in another format": lambda ops, all_: [
            all_[0], random_tensor(np.random.default_rng(0), (VOCAB, HIDDEN + 32), WeightFormat.Q8_0)],
        **LISTED,
    },
    ("prepare_linear", "biases"): {"of other rows": lambda ops, _: [f32_weight(VOCAB - 1)] * 2,
                                   "two axes": lambda ops, _: [f32_weight(VOCAB, 1)] * 2,
                                   "one too few": lambda ops, all_: all_[:1], **LISTED},
    ("prepare_experts", "gate"): shaped((32, HIDDEN)) | DATA,
    ("prepare_experts", "up"): shaped((EXPERTS - 1, 32, HIDDEN), (EXPERTS, 31, HIDDEN), (EXPERTS, 32, 8)) | DATA,
    ("prepare_experts", "down"): shaped((EXPERTS + 1, HIDDEN, 32), (EXPERTS, 32, HIDDEN)) | DATA,
    ("embed", "ids"): INTEGERS | index(1, -1, VOCAB, LARGE),
    ("rms_norm", "x"): TENSORS,
    ("rms_norm", "weight"): VECTORS,
    ("add_rms_norm", "x"): {name: TENSORS[name] for name in ("not uploaded", "another rank", "sampled rows")},
    ("add_rms_norm", "residual"): TENSORS | OTHER_ROWS,
    ("add_rms_norm", "weight"): VECTORS,
    ("linear", "x"): TENSORS,
    ("rope", "x"): TENSORS,
    ("rope", "positions"): INTEGERS | INDICES | index(1, -1, POSITIONS, LARGE),
    ("rope", "table"): VECTORS | {"one half": lambda ops, table: table[:1]},
    ("write_kv", "k"): TENSORS,
    ("write_kv", "v"): TENSORS | OTHER_ROWS,
    ("write_kv", "slots"): INTEGERS | INDICES | index(1, -1, BLOCKS * SIZE, LARGE),
    ("paged_attention", "q"): TENSORS,
    ("paged_attention", "q_starts"): INTEGERS | INDICES | index(0, 1, -1) | index(1, -1, 6) | index(2, 4, 6, LARGE),
    ("paged_attention", "kv_lens"): INTEGERS | index(0, 3, -1) | index(1, 0, 33, LARGE),
    ("paged_attention", "block_table"): {**INTEGERS, "one row": lambda ops, a: a[:1].copy(),
                                         **index((1, 1), -1, BLOCKS, LARGE), **index((0, 0), -1)},
    ("paged_attention", "window"): number(0, -3),
    ("silu_mul", "x"): {"not uploaded": TENSORS["not uploaded"], "sampled rows": TENSORS["sampled rows"],
                        "odd": lambda ops, _: uploaded(ops, T, 7)},
    ("moe", "x"): TENSORS,
    ("moe", "router"): {"other experts": lambda ops, _: ops.prepare_linear([f32_weight(EXPERTS + 1, HIDDEN)], None)},
    ("moe", "top_k"): number(0, -1, EXPERTS + 1),
    ("logits", "x"): TENSORS,
    ("logits", "rows"): INTEGERS | index(1, -1, T, LARGE),
    ("draw", "logits"): {"float64": lambda ops, a: a.astype(np.float64), "one row": lambda ops, a: a[0],
                         "no columns": lambda ops, a: a[:, :0]},
    ("draw", "temperature"): rows(0.0, -1.0, np.nan),
    ("draw", "top_k"): rows(-1, 1 << 40) | {"fractions": lambda ops, a: a + 0.5},
    ("draw", "top_p"): rows(0.0, -1.0, np.nan),
    ("draw", "min_p"): rows(-0.1, 1.5, np.nan),
    ("draw", "uniform"): rows(-0.1, 1.0, np.nan),
    ("alloc_cache", "num_blocks"): number(0, -1),
    ("alloc_cache", "block_size"): number(0, -16, 24, 256),
    ("alloc_cache", "kv_heads"): number(0, -2),
    ("alloc_cache", "head_dim"): number(0, -2),
    ("copy_block", "source"): number(-1, BLOCKS),
    ("copy_block", "target"): number(-1, BLOCKS),
    ("upload", "array"): {"float64": lambda ops, a: a.astype(np.float64), "a vector": lambda ops, a: a[0],
                          "beyond i32": lambda ops, _: np.array([1 << 40])},
}  # fmt: skip
CASES = [
    pytest.param(name, argument, change, id=f"{name}-{argument}-{mistake}")
    for (name, argument), changes in MISTAKES.items()
    for mistake, change in changes.items()
]
NAMED = {"block_size": "block size", "source": "block", "target": "block"}
BESIDE = {("rms_norm", "x"): "weight", ("rope", "x"): "table"}
"""Which other argument may be named instead: one of both is mistaken."""


def test_arguments_that_are_not_mistaken_are_taken(ops):
    given = arguments(ops)
    assert {name for name, _ in MISTAKES} == set(given)
    for name in given:
        call(ops, name, given[name])


@pytest.mark.parametrize(("name", "argument", "change"), CASES)
def test_a_mistaken_argument_is_refused_by_name(ops, name, argument, change):
    given = arguments(ops)[name]
    given[argument] = change(ops, given[argument])
    names = f"{NAMED.get(argument, argument)}|{BESIDE.get((name, argument), argument)}"
    with pytest.raises((TypeError, ValueError), match=names):
        call(ops, name, given)


def test_the_data_of_a_block_format_are_held_against_its_blocks(ops):
    raw = random_tensor(np.random.default_rng(0), (4, 64), WeightFormat.Q4_0)
    for data in (raw.data[:, :-1], raw.data[:3], raw.data.view(np.int8)):
        with pytest.raises(ValueError, match="weights"):
            ops.prepare_linear([RawTensor(raw.shape, raw.format, data)], None)
    with pytest.raises(ValueError, match="q4_0 blocks"):
        ops.prepare_linear([RawTensor((4, 63), raw.format, raw.data)], None)


def inputs():
    """A chunk of 20 tokens, and one token after 16."""
    positions = np.append(np.arange(20), 16).astype(np.int32)
    table = np.array([[2, 1], [0, 3]], dtype=np.int32)
    slots = np.append(np.arange(32, 48), [16, 17, 18, 19, 48]).astype(np.int32)
    return StepInputs(positions + 1, positions, slots, AttentionBatch(i32(0, 20, 21), i32(20, 17), table), i32(19, 20))


STEP_FIELDS = {"token_ids": (3, -1, 1 << 20), "positions": (3, -1, 64, 4), "slots": (3, -1, 4 * 16),
               "q_starts": (1, -1, 22), "kv_lens": (1, 0, 33), "block_table": ((1, 1), -1, 4),
               "logit_rows": (1, -1, 21)}  # fmt: skip
STEP_CASES = [
    pytest.param(name, change, id=f"{name}-{mistake}")
    for name, (at, *values) in STEP_FIELDS.items()
    for mistake, change in {
        **index(at, *values),
        "int64": lambda _, a: a.astype(np.int64),
        "floats": lambda _, a: a.astype(np.float64),
        **({} if name in {"kv_lens", "token_ids", "logit_rows"} else {"another length": lambda _, a: a[:1]}),
        "one axis more": lambda _, a: a[..., None],
    }.items()
]


@pytest.mark.parametrize(("name", "change"), STEP_CASES)
def test_a_mistaken_input_of_a_recorded_step_is_refused_and_nothing_is_written(ops, name, change):
    checkpoint = open_checkpoint(GOLDEN / "tiny-mistral")
    model = model_class(checkpoint.config.architecture)(checkpoint.config, checkpoint, ops, 64, lambda _: None)
    runner = ModelRunner(model, ops, CacheConfig(4, 16), StepLimits(32, 8, 64))
    step = inputs()
    runner.forward(step)
    before = [half.copy() for cache in runner._caches for half in ops.memory.read_cache(cache)]
    if name in AttentionBatch._fields:
        attention = step.attention._replace(**{name: change(None, getattr(step.attention, name))})
        mistaken = step._replace(attention=attention)
    else:
        mistaken = step._replace(**{name: change(None, getattr(step, name))})
    with pytest.raises(ValueError, match=name):
        runner.forward(mistaken)
    after = [half for cache in runner._caches for half in ops.memory.read_cache(cache)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)


def test_what_a_step_is_recorded_with_is_its_own_inputs(ops):
    weight = ops.prepare_linear([f32_weight(VOCAB, HIDDEN)], None)
    for choose in (lambda _: i32(1, 2), lambda step: step.positions):
        with pytest.raises(ValueError, match="ids must be the step's own token_ids"):
            ops.record(lambda step, choose=choose: ops.embed(choose(step), weight), StepLimits(4, 4, 4))


HALF_A_PANEL, EXPERTS_OF_HALF_A_PANEL = Matrix(n=96), Experts(inner=48)
LIBRARY_CASES = {
    "no pool": (lambda lib, pool, run: lib.run(None, address(run), 1, Batch()), "pool"),
    "no program": (lambda lib, pool, run: lib.run(pool, None, 1, Batch()), "program"),
    "no batch": (lambda lib, pool, run: lib.run(pool, address(run), 1, None), "batch"),
    "negative count": (lambda lib, pool, run: lib.run(pool, address(run), -1, Batch()), "program"),
    "too long": (lambda lib, pool, run: lib.run(pool, address(run), (1 << 14) + 1, Batch()), "program"),
    "no such operation": (lambda lib, pool, run: lib.run(pool, address(one_call(20, 0)), 1, Batch()), "program"),
    "negative operation": (lambda lib, pool, run: lib.run(pool, address(one_call(-1, 0)), 1, Batch()), "program"),
    "a gate that ends inside of a panel": (
        lambda lib, pool, run: lib.run(pool, address(one_call(
            Op.SILU_LINEAR, 0, address(run), ctypes.addressof(HALF_A_PANEL), address(run))), 1, Batch()), "program"),
    "experts whose gates do": (
        lambda lib, pool, run: lib.run(pool, address(one_call(
            Op.EXPERT_UP, 0, ctypes.addressof(EXPERTS_OF_HALF_A_PANEL))), 1, Batch()), "program"),
    "profile": (lambda lib, pool, run: lib.profile(pool, address(one_call(20, 0)), 1, Batch(), None), "program"),
    **{
        f"negative {name}": (
            lambda lib, pool, run, name=name: lib.run(pool, address(run), 1, Batch(**{name: -1})), "counts")
        for name in ("num_tokens", "num_seqs", "max_blocks", "num_rows")
    },
    **{
        f"{op.name} of nothing": (
            lambda lib, pool, run, op=op: lib.run(pool, address(one_call(op, ROWS_SAMPLED)), 1, Batch()), "program")
        for op in Op
    },
    "pack, format": (lambda lib, pool, run: lib.pack(9, 1, 16, address(run), 64, address(run), 0), "format"),
    "pack, negative": (lambda lib, pool, run: lib.pack(0, -1, 16, address(run), 64, address(run), 0), "counts"),
    "pack, null": (lambda lib, pool, run: lib.pack(0, 1, 16, None, 64, address(run), 0), "address"),
    "pack, row": (lambda lib, pool, run: lib.pack(3, 1, 33, address(run), 34, address(run), 0), "row_bytes"),
    "packed bytes": (lambda lib, pool, run: lib.packed_bytes(9, 1, 1), "upwell_packed_bytes"),
    "packed bytes, negative": (lambda lib, pool, run: lib.packed_bytes(8, -1, 1), "upwell_packed_bytes"),
    "head bytes": (lambda lib, pool, run: lib.cache_head_bytes(4, 16, 16), "upwell_cache_head_bytes"),
    "head bytes, negative": (lambda lib, pool, run: lib.cache_head_bytes(0, -16, 16), "upwell_cache_head_bytes"),
    "cache read": (lambda lib, pool, run: lib.cache_read(None, 1, 0, address(run)), "address"),
    "cpu of none": (lambda lib, pool, run: lib.pool_cpu(None), "upwell_pool_cpu"),
    "rested of none": (lambda lib, pool, run: lib.pool_rested(None), "upwell_pool_rested"),
}  # fmt: skip


@pytest.fixture(params=ISAS or ["none"])
def library(request):
    library = load_library()
    assert library.use(request.param.encode())
    yield library
    use_best_isa()


@pytest.mark.parametrize("case", LIBRARY_CASES)
def test_a_mistaken_call_of_the_library_is_refused(library, case):
    make, word = LIBRARY_CASES[case]
    pool = library.pool_new(2)
    x = floats(16)
    try:
        with pytest.raises(ValueError, match=word):
            make(library, pool, one_call(Op.ARGMAX, 0, address(x), 16, 16, address(x)))
    finally:
        library.pool_free(pool)


def test_mistaken_pools_caches_and_names(library):
    assert [library.pool_new(threads) for threads in (0, -1, 257)] == [None] * 3
    library.pool_free(None)
    assert [library.use(name) for name in (b"", b"abacus", None)] == [0] * 3
    struct = BACKENDS["cpu"](BackendOptions(threads=1)).memory.alloc_cache(2, 16, 1, 16).k.struct
    out = np.zeros((2, 16, 1, 16), dtype=np.float32)
    for num_blocks in (-1, 3):
        with pytest.raises(ValueError, match="counts"):
            library.cache_read(ctypes.byref(struct), num_blocks, 0, address(out))
