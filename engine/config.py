"""Small frozen configurations; each part gets the one it uses."""

from __future__ import annotations

import msgspec

QUANTIZATIONS = ("none", "w8a8")
"""What ``EngineConfig.quantization`` may be."""
MAX_RANKS = 64
"""Of a tensor parallel model; more than a machine has NPUs."""


CACHE_BYTES = 1 << 30
"""Of a KV cache where neither the user nor the backend says how much: a part of a laptop's memory, not most of it."""
CACHE_SHARE = 0.9
"""Of the memory that weights and the largest steps leave free, what a KV cache takes where the user has not said.

The rest is for what is not measured before it: what a captured graph keeps beside its tensors, and memory that torch
holds in pieces too small for what is asked. How much that is takes a chip to find out.
"""
ENOUGH_ROWS = 96
"""Of a matrix product: with more, a row costs as much. On the cpu backend, a row of 64 costs 14 % more than of 128."""


class SchedulerConfig(msgspec.Struct, frozen=True):
    """Limits of one step.

    Attributes:
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens that one step computes at most.
        max_model_len: tokens of prompt and answer together.
        enough_prompt_tokens: prompts of so many together fill a step: with more, a token would cost as much.
        max_rows: rows of logits, one for each sequence and each draft, so no fewer than sequences; None for as many.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enough_prompt_tokens: int = ENOUGH_ROWS
    max_rows: int | None = None


class CacheConfig(msgspec.Struct, frozen=True):
    """The paged KV cache. ``block_size`` is in tokens, divides 128 and is what the backend can use."""

    num_blocks: int
    block_size: int
    enable_prefix_caching: bool = True


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine process needs to start; crosses the socket as its first frame.

    Attributes:
        model_path: a ``.gguf`` file or a Hugging Face folder, already on disk.
        device: ``auto`` or a backend's name.
        threads: of a native backend; None leaves it to the backend.
        kv_cache_dtype: ``auto``, f32, f16, i16 or i8.
        dtype: ``auto``, bfloat16 or float16: what backends that compute in 16 bits compute in.
        eager: whether such a backend captures nothing as a graph.
        attention_scores: ``float32`` or ``float16``, as ``kernels.ops.BackendOptions`` has it.
        prompt_attention: ``own`` or ``fused``, as ``kernels.ops.BackendOptions`` has it.
        tensor_parallel_size: processes that compute the model together, each on an NPU of its own.
        quantization: of linear layers as they are loaded, one of ``QUANTIZATIONS``; ``none`` takes them as stored.
        max_model_len: None takes the model's own context length, cut to what the KV cache can hold.
        max_num_seqs: as ``SchedulerConfig`` has it, like ``max_num_batched_tokens``.
        block_size: tokens a block; divides 128. None leaves it to the backend.
        num_blocks: None sizes the KV cache by ``kv_cache_bytes``.
        kv_cache_bytes: of all layers together, at most; of tensor parallel processes, in each. None is a share of what
            weights and the largest steps leave free on devices with memory of their own, else ``CACHE_BYTES``.
    """

    model_path: str
    device: str = "auto"
    threads: int | None = None
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    eager: bool = False
    attention_scores: str = "float32"
    prompt_attention: str = "own"
    tensor_parallel_size: int = 1
    quantization: str = "none"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int | None = None
    num_blocks: int | None = None
    kv_cache_bytes: int | None = None
    enable_prefix_caching: bool = True


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary embedding; ``kind`` is default, linear, llama3 or yarn, the rest is read by those that use it.

    Source: the ``rope_parameters`` of Hugging Face configurations, whose names these are.

    Attributes:
        freq_factors: divisors of the inverse frequencies, head_dim/2 of them, as some GGUF files carry them;
            they replace ``llama3``.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    freq_factors: tuple[float, ...] | None = None


class MoeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Routed experts: softmax over all of them, the top k, their weights normalised if ``norm_topk_prob``.

    Attributes:
        intermediate_size: of one expert.
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    norm_topk_prob: bool

    def tokens_for(self, rows: int) -> int:
        """Tokens that give each expert so many rows, if they go to all of them alike."""
        return rows * self.num_experts // self.num_experts_per_tok


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One dense GQA decoder and its switches.

    Attributes:
        architecture: the Hugging Face class name, such as ``LlamaForCausalLM``.
        windows: per layer, how many positions back it sees (its own included), or None for all.
        moe_layers: per layer, whether its MLP is routed experts.
        eos_token_ids: tokens that end an answer.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    moe: MoeConfig | None = None
    moe_layers: tuple[bool, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
