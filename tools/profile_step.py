"""Where a native step's time goes: milliseconds of each kind of call, for a step of one's choice.

    .venv/bin/python -m tools.profile_step [--model PATH] [--seqs 64] [--new 1] [--context 192] [--threads N]

A step of ``--seqs`` sequences with ``--context`` tokens in the cache each, of which ``--new`` are computed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from engine.models.registry import model_class
from engine.weights.open import open_checkpoint
from kernels.cpu.backend import cpu_ops
from kernels.cpu.memory import CacheHalf
from kernels.cpu.recorded import RecordedStep
from kernels.ops import AttentionBatch, BackendOptions, LayerCache, Ops, StepInputs, StepLimits

BLOCK_SIZE = 16


def inputs_of(seqs: int, new: int, context: int) -> StepInputs:
    """Sequences of random tokens, each in blocks of its own."""
    blocks = -(-context // BLOCK_SIZE)
    table = np.arange(seqs * blocks, dtype=np.int32).reshape(seqs, blocks)
    positions = np.tile(np.arange(context - new, context, dtype=np.int32), seqs)
    owners = np.repeat(np.arange(seqs), new)
    starts = np.arange(seqs + 1, dtype=np.int32) * new
    return StepInputs(
        np.random.default_rng(0).integers(0, 1000, seqs * new).astype(np.int32),
        positions,
        (table[owners, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE).astype(np.int32),
        AttentionBatch(starts, np.full(seqs, context, dtype=np.int32), table),
        starts[1:] - 1,
    )


def fill(cache: LayerCache) -> None:
    """Write to all of a cache: pages that nobody has written to are one page of zeros, which no memory is read for."""
    if isinstance(cache.k, CacheHalf):
        cache.k.struct.memory[:] = 0x3C  # 0.0115 as a scale


def record(model: Path, ops: Ops, seqs: int, new: int, context: int) -> RecordedStep:
    """The model's forward pass for steps of that size."""
    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    decoder = model_class(config.architecture)(config, checkpoint, ops, context, lambda _: None)
    num_blocks = seqs * -(-context // BLOCK_SIZE)
    caches = [
        ops.memory.alloc_cache(num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        for _ in range(config.num_layers)
    ]
    for cache in caches:
        fill(cache)
    step = ops.record(lambda inputs: decoder.forward(inputs, caches), StepLimits(seqs * new, seqs, context))
    if not isinstance(step, RecordedStep):
        raise TypeError("the native backend records its steps")
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds of each kind of native call in one step.")
    default = sorted((Path.home() / ".cache/upwell/smollm2-135m").glob("*.gguf"))
    parser.add_argument("--model", type=Path, default=default[0] if default else None)
    for name, value in (("seqs", 64), ("new", 1), ("context", 192), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.model is None:
        parser.error("no model: run `upwell pull smollm2-135m` first, or give --model")
    if not 1 <= options.new <= options.context:
        parser.error("--new must be between 1 and --context")
    ops = cpu_ops(BackendOptions(threads=options.threads))
    step = record(options.model, ops, options.seqs, options.new, options.context)
    inputs = inputs_of(options.seqs, options.new, options.context)
    batch = step.batch(inputs)
    times = np.zeros((options.repeats, step.program.num_calls), dtype=np.int64)
    step.runner.run(step.program, batch)
    for row in times:
        step.runner.profile(step.program.instructions, batch, row)
    median = np.median(times, axis=0)
    kinds = [op.name for op in step.program.ops]
    print(f"{ops.info.description}; medians of {options.repeats} steps")
    for kind in dict.fromkeys(kinds):
        calls = [index for index, name in enumerate(kinds) if name == kind]
        print(f"{kind:14} {len(calls):5} calls {median[calls].sum() / 1e6:9.3f} ms")
    print(f"{'all':14} {len(kinds):5} calls {median.sum() / 1e6:9.3f} ms")


if __name__ == "__main__":
    main()
