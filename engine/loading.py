"""From an ``EngineConfig`` to a running ``Engine``: opens the model, sizes the cache, lays the weights out.

What the user says of the cache's size is checked before weights are read. On a device with memory of its own it is
checked again when they are there and the largest steps have run, before steps are recorded; where nothing is said, it
is a share of what these leave.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.config import (
    CACHE_BYTES,
    CACHE_SHARE,
    ENOUGH_ROWS,
    MAX_RANKS,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from engine.engine import Engine, Runner
from engine.errors import ConfigError, UnsupportedModel
from engine.fingerprint import fingerprint
from engine.model_runner import ModelRunner, block_bytes, spare_bytes
from engine.models.registry import model_class
from engine.parallel import Followers, LeadingRunner
from engine.prediction import MOST_DRAFTS
from engine.types import EngineReady
from engine.weights.checkpoint import Checkpoint
from engine.weights.open import open_checkpoint
from engine.weights.quantised import quantised
from engine.weights.sharded import ShardedCheckpoint
from kernels.ops import BackendOptions, BackendUnavailable, NoKernel, Ops, Parallel, StepLimits
from kernels.resolve import Resolved, resolve

BLOCK_SIZE = 16
"""Tokens of a KV block where neither the user nor the backend wants others."""
_LEAVE = "the weights and the largest step leave"
_MAKE_ROOM = (
    "take a device with more memory, end other processes on it, lower --max-num-batched-tokens, or have fewer bytes of "
    "weights on it, with --quantization w8a8 or a larger --tensor-parallel-size."
)
"""The way out where no block fits beside the weights."""

Progress = Callable[[int, int], None]
"""Called with (bytes laid out, bytes in all)."""


def load_engine(
    config: EngineConfig, progress: Progress, followers: Followers | None = None
) -> tuple[Engine, EngineReady]:
    """Everything from disk to a first possible step.

    Args:
        config: what to load and how.
        progress: told how far it is, of all ranks together.
        followers: with a tensor parallel size above 1, not yet started; they are the caller's to close.

    Raises:
        ModelError: the model cannot be served.
        ConfigError: the settings do not fit the model, the device or each other.
        FollowerFailed: another rank could not load its part.
        MemoryError: the weights or the cache do not fit.
        ValueError: there are to be several ranks, and no followers.
    """
    parallel = _leader(config, followers)
    resolved, checkpoint = _opened(config, parallel)
    model, ops = checkpoint.config, resolved.ops
    cache, max_model_len = size_cache(config, model, ops)
    max_tokens = max(config.max_num_batched_tokens, 1)
    max_rows = max(config.max_num_seqs, min(1 + MOST_DRAFTS, max_tokens))
    limits = StepLimits(max_tokens, max_rows, max_model_len)
    runner: Runner
    if followers is None or parallel is None:
        runner, cache, limits = _lay_out(config, checkpoint, ops, cache, limits, progress)
        weights_bytes = checkpoint.total_bytes
    else:
        followers.start(config, cache, limits)
        laid = _led(config, checkpoint, ops, cache, limits, progress, followers)
        runner, cache, limits, weights_bytes = laid
    scheduling = _scheduling(config.max_num_seqs, limits, model)
    engine = Engine(runner, checkpoint.vocabulary(), model.eos_token_ids, scheduling, cache)
    ready = EngineReady(
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        max_model_len=limits.max_model_len,
        num_blocks=cache.num_blocks,
        block_size=cache.block_size,
        backend=_describe(resolved),
        provenance=resolved.provenance,
        weights_bytes=weights_bytes,
        kv_cache_bytes=config.tensor_parallel_size * cache.num_blocks * block_bytes(model, ops, cache.block_size),
        fingerprint=fingerprint(config, ops.info),
    )
    return engine, ready


def load_part(
    config: EngineConfig, parallel: Parallel, cache: CacheConfig, limits: StepLimits, progress: Progress
) -> ModelRunner:
    """A follower's part of what ``load_engine`` loads, for the cache and the steps that rank 0 has chosen.

    Where the cache takes a share of what the weights leave free, it is cut to that here too, by the same number.

    Raises:
        ModelError, ConfigError, MemoryError: as ``load_engine`` does.
    """
    resolved, checkpoint = _opened(config, parallel)
    return _lay_out(config, checkpoint, resolved.ops, cache, limits, progress)[0]


def _leader(config: EngineConfig, followers: Followers | None) -> Parallel | None:
    """This process' place among several; None if it is to be alone."""
    size = config.tensor_parallel_size
    if not 1 <= size <= MAX_RANKS:
        raise ConfigError(f"--tensor-parallel-size must be between 1 and {MAX_RANKS}, but is {size}.")
    if size == 1:
        return None
    if followers is None:
        raise ValueError(f"{size} tensor parallel processes are asked for, but there are no followers to start")
    return followers.leader(size)


def _opened(config: EngineConfig, parallel: Parallel | None) -> tuple[Resolved, Checkpoint]:
    """The backend, and the checkpoint or a rank's part of it."""
    options = BackendOptions(
        threads=config.threads,
        kv_cache_dtype=config.kv_cache_dtype,
        dtype=config.dtype,
        eager=config.eager,
        attention_scores=config.attention_scores,
        prompt_attention=config.prompt_attention,
        parallel=parallel,
    )
    try:
        resolved = resolve(config.device, options)
    except BackendUnavailable as error:
        raise ConfigError(str(error)) from error
    checkpoint = quantised(open_checkpoint(Path(config.model_path)), config.quantization)
    return resolved, ShardedCheckpoint(checkpoint, parallel.rank, parallel.size) if parallel else checkpoint


def _scheduling(max_num_seqs: int, limits: StepLimits, model: ModelConfig) -> SchedulerConfig:
    return SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=limits.max_tokens,
        max_model_len=limits.max_model_len,
        enough_prompt_tokens=model.moe.tokens_for(ENOUGH_ROWS) if model.moe else ENOUGH_ROWS,
        max_rows=limits.max_rows,
    )


def _led(
    config: EngineConfig,
    checkpoint: Checkpoint,
    ops: Ops,
    cache: CacheConfig,
    limits: StepLimits,
    progress: Progress,
    followers: Followers,
) -> tuple[LeadingRunner, CacheConfig, StepLimits, int]:
    """Rank 0's part laid out while the followers do theirs, as ``_lay_out`` does, and the bytes of all parts."""
    own_bytes = checkpoint.total_bytes
    with followers.blamed():
        laid = _lay_out(config, checkpoint, ops, cache, limits, lambda *own: progress(*followers.progress(*own)))
        runner, cache, limits = laid
        followers.wait_until_ready(lambda: progress(*followers.progress(own_bytes, own_bytes)))
    done_bytes, all_bytes = followers.progress(own_bytes, own_bytes)
    progress(done_bytes, all_bytes)
    return LeadingRunner(runner, followers), cache, limits, all_bytes


def _lay_out(
    config: EngineConfig, checkpoint: Checkpoint, ops: Ops, cache: CacheConfig, limits: StepLimits, progress: Progress
) -> tuple[ModelRunner, CacheConfig, StepLimits]:
    """The model on its backend: the weights, then the cache, then the recorded pass; and what these two are for."""
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(done, checkpoint.total_bytes)

    advance(0)
    model = checkpoint.config
    try:
        decoder = model_class(model.architecture)(model, checkpoint, ops, limits.max_model_len, advance)
        spare = spare_bytes(decoder, ops, cache.block_size, limits)
        if spare is not None:
            cache, limits = _beside_weights(config, cache, limits, spare, block_bytes(model, ops, cache.block_size))
        return ModelRunner(decoder, ops, cache, limits), cache, limits
    except NoKernel as error:
        way_out = "" if " --" in str(error) else "; --device reference can"
        raise UnsupportedModel(f"the {ops.info.name} backend cannot run this model: {error}{way_out}.") from error


def _beside_weights(
    config: EngineConfig, cache: CacheConfig, limits: StepLimits, spare: int, per_block: int
) -> tuple[CacheConfig, StepLimits]:
    """The cache, and what it leaves of the limits, with so many bytes spare on the device.

    Raises:
        ConfigError: it does not fit.
    """
    if not _is_size_given(config):
        is_context_given = config.max_model_len is not None
        return cut_to_share(spare, cache, limits, per_block, is_context_given=is_context_given)
    if cache.num_blocks * per_block > spare:
        fitting = spare // per_block
        raise ConfigError(
            f"{cache.num_blocks} blocks of KV cache need {cache.num_blocks * per_block} bytes, but {_LEAVE} {spare} "
            f"bytes free on the device: {fitting} blocks at most; "
            + (f"lower {_size_flag(config)} or --max-num-batched-tokens." if fitting else _MAKE_ROOM)
        )
    return cache, limits


def _is_size_given(config: EngineConfig) -> bool:
    """Whether the user has said how large the cache is to be."""
    return config.num_blocks is not None or config.kv_cache_bytes is not None


def _size_flag(config: EngineConfig) -> str:
    """The flag that the cache's size comes from."""
    return "--kv-cache-memory-bytes" if config.num_blocks is None else "--num-blocks"


def cut_to_share(
    spare: int, cache: CacheConfig, limits: StepLimits, per_block: int, *, is_context_given: bool
) -> tuple[CacheConfig, StepLimits]:
    """The cache cut to its share of the spare bytes, and the context, unless it is given, to the cache.

    Args:
        spare: bytes free on the device beside the weights and the largest steps.
        cache: with as many blocks as could be of use.
        limits: with the context that is wanted.
        per_block: bytes of a block.
        is_context_given: whether the context must not be cut.

    Raises:
        ConfigError: the share holds not one block, or not the context that is given.
    """
    wanted, block_size, share = limits.max_model_len, cache.block_size, int(CACHE_SHARE * spare)
    if share < per_block:
        raise ConfigError(
            f"{_LEAVE} {spare} bytes free on the device, and the {CACHE_SHARE:.0%} of them that are for the KV cache, "
            f"{share} bytes, hold not one block of {per_block}; {_MAKE_ROOM}"
        )
    num_blocks = min(cache.num_blocks, share // per_block)
    if num_blocks * block_size < (wanted if is_context_given else 1):
        needed = -(-wanted // block_size) * per_block
        raise ConfigError(
            f"a context of {wanted} tokens needs {needed} bytes of KV cache, but its share of the memory that "
            f"{_LEAVE} on the device is {share}; lower --max-model-len or "
            "--max-num-batched-tokens, or say with --kv-cache-memory-bytes how much it may take."
        )
    cut = CacheConfig(num_blocks, block_size, cache.enable_prefix_caching)
    return cut, StepLimits(limits.max_tokens, limits.max_rows, min(wanted, num_blocks * block_size))


def size_cache(config: EngineConfig, model: ModelConfig, ops: Ops) -> tuple[CacheConfig, int]:
    """The KV cache and the context length in tokens that it leaves.

    Without ``max_model_len`` the context is the model's own, cut to what the cache can hold. Where the cache will take
    a share of the device's memory, it has as many blocks here as could be of use.

    Raises:
        ConfigError: what was asked for does not fit, with the flag to change.
    """
    longest = model.max_position_embeddings
    if config.max_model_len is not None and not 1 <= config.max_model_len <= longest:
        raise ConfigError(
            f"--max-model-len must be between 1 and {longest}, this model's own context length, "
            f"but is {config.max_model_len}."
        )
    block_size = max(BLOCK_SIZE, ops.memory.block_multiple) if config.block_size is None else config.block_size
    if block_size < 1 or 128 % block_size:
        raise ConfigError(f"--block-size must divide 128, but is {block_size}.")
    if block_size % ops.memory.block_multiple:
        raise ConfigError(
            f"--block-size must be a multiple of {ops.memory.block_multiple} on the {ops.info.name} backend, "
            f"but is {block_size}."
        )
    wanted = config.max_model_len or longest
    per_block = block_bytes(model, ops, block_size)
    useful = -(-wanted // block_size) * config.max_num_seqs
    if ops.memory.spare_bytes is not None and not _is_size_given(config):
        return CacheConfig(useful, block_size, config.enable_prefix_caching), wanted
    num_blocks = config.num_blocks or min((config.kv_cache_bytes or CACHE_BYTES) // per_block, useful)
    capacity = num_blocks * block_size
    if capacity < 1 or (config.max_model_len is not None and capacity < config.max_model_len):
        needed = -(-wanted // block_size) * per_block
        raise ConfigError(
            f"a context of {wanted} tokens needs {needed} bytes of KV cache, but there are {num_blocks * per_block}; "
            "raise --kv-cache-memory-bytes (or --num-blocks) or lower --max-model-len."
        )
    capacity_bytes = ops.memory.capacity_bytes()
    if num_blocks * per_block > capacity_bytes:
        raise ConfigError(
            f"{num_blocks} blocks of KV cache need {num_blocks * per_block} bytes, but there are {capacity_bytes} "
            f"bytes of {ops.memory.capacity}: {capacity_bytes // per_block} blocks at most; lower {_size_flag(config)}."
        )
    return CacheConfig(num_blocks, block_size, config.enable_prefix_caching), min(wanted, capacity)


def _describe(resolved: Resolved) -> str:
    """The backend in one line, and why others were passed over."""
    info = resolved.ops.info
    return "; ".join([f"{info.name} ({info.description})", *(f"not {note}" for note in resolved.notes)])
