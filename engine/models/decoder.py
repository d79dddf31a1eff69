"""The dense GQA decoder family, its differences as switches, and its form with routed experts.

Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE and Seed-OSS are this one model. It is written once against ``kernels.Ops``;
``registry.py`` says which architectures it serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.config import ModelConfig
from engine.models.rope import rope_frequencies
from engine.weights.checkpoint import Checkpoint
from engine.weights.sharded import split_of
from kernels.formats import RawTensor
from kernels.ops import Experts, LayerCache, Linear, Ops, StepInputs, Tensor


@dataclass(frozen=True)
class RoutedMlp:
    """Router [E,H] and experts of one layer."""

    router: Linear
    experts: Experts


@dataclass(frozen=True)
class DenseMlp:
    """gate_up [2F,H] and down [H,F]."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class Layer:
    """One layer's prepared weights: H hidden size, d head dimension.

    Attributes:
        input_norm: [H]; post_norm: [H], before the MLP.
        qkv: [(heads + 2 kv_heads) d, H]; out: [H, heads d].
        q_norm: [d], or None without per-head norms; k_norm: likewise.
        window: how many positions back it sees, its own included; None for all.
    """

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    post_norm: Tensor
    mlp: DenseMlp | RoutedMlp
    window: int | None


class Decoder:
    """Weights laid out for a backend, and the forward pass."""

    def __init__(
        self, config: ModelConfig, checkpoint: Checkpoint, ops: Ops, max_model_len: int, progress: Callable[[int], None]
    ) -> None:
        """Prepare every weight.

        Args:
            config: the checkpoint's configuration.
            checkpoint: read tensor by tensor.
            ops: the backend.
            max_model_len: how many positions there will be.
            progress: called with the bytes of each tensor, once it is laid out.

        Raises:
            MalformedModel: a tensor is missing.
            UnsupportedModel: a rotary scaling we do not know.
            NoKernel: the backend has none for a weight.
        """
        self.config = config
        self._ops = ops
        load = _Loader(checkpoint, ops, progress)
        inv_freq, scale = rope_frequencies(config.rope, config.head_dim)
        self._rope = ops.prepare_rope(inv_freq, scale, max_model_len)
        self._embedding = load.linear("model.embed_tokens.weight")
        self._layers = [self._load_layer(load, index) for index in range(config.num_layers)]
        self._norm = load.vector("model.norm.weight")
        self._head = self._embedding if config.tie_word_embeddings else load.linear("lm_head.weight")

    def forward(self, inputs: StepInputs, caches: list[LayerCache]) -> Tensor:
        """Write the step's keys and values into ``caches``, one a layer, and return logits f32[R,V].

        Batch-invariant, as the operations are.
        """
        ops, eps = self._ops, self.config.rms_norm_eps
        residual = ops.embed(inputs.token_ids, self._embedding)
        hidden = ops.rms_norm(residual, self._layers[0].input_norm, eps)
        for index, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            attended = self._attention(layer, hidden, inputs, cache)
            hidden, residual = ops.add_rms_norm(attended, residual, layer.post_norm, eps)
            is_last = index + 1 == len(self._layers)
            next_norm = self._norm if is_last else self._layers[index + 1].input_norm
            hidden, residual = ops.add_rms_norm(self._mlp(layer.mlp, hidden), residual, next_norm, eps)
        return ops.logits(hidden, inputs.logit_rows, self._head)

    def _attention(self, layer: Layer, x: Tensor, inputs: StepInputs, cache: LayerCache) -> Tensor:
        ops, config = self._ops, self.config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        qkv = ops.linear(x, layer.qkv).reshape(-1, heads + 2 * kv_heads, head_dim)
        q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
        if layer.q_norm is not None:
            q = ops.rms_norm(q, layer.q_norm, config.rms_norm_eps)
            k = ops.rms_norm(k, layer.k_norm, config.rms_norm_eps)
        q, k = ops.rope(q, inputs.positions, self._rope), ops.rope(k, inputs.positions, self._rope)
        ops.write_kv(cache, k, v, inputs.slots)
        attended = ops.paged_attention(q, cache, inputs.attention, head_dim**-0.5, layer.window)
        return ops.linear(attended.reshape(-1, heads * head_dim), layer.out)

    def _mlp(self, mlp: DenseMlp | RoutedMlp, x: Tensor) -> Tensor:
        ops, moe = self._ops, self.config.moe
        if isinstance(mlp, DenseMlp):
            return ops.linear(ops.silu_mul(ops.linear(x, mlp.gate_up)), mlp.down)
        if moe is None:
            raise ValueError("a layer has routed experts, but the configuration has none")
        return ops.moe(x, mlp.router, mlp.experts, moe.num_experts_per_tok, moe.norm_topk_prob)

    def _load_layer(self, load: _Loader, index: int) -> Layer:
        config, prefix = self.config, f"model.layers.{index}"
        attn = f"{prefix}.self_attn"
        return Layer(
            input_norm=load.vector(f"{prefix}.input_layernorm.weight"),
            qkv=load.linear(*(f"{attn}.{p}_proj.weight" for p in "qkv"), bias=config.qkv_bias),
            q_norm=load.vector(f"{attn}.q_norm.weight") if config.qk_norm else None,
            k_norm=load.vector(f"{attn}.k_norm.weight") if config.qk_norm else None,
            out=load.linear(f"{attn}.o_proj.weight", bias=config.o_bias),
            post_norm=load.vector(f"{prefix}.post_attention_layernorm.weight"),
            mlp=self._load_mlp(load, index, f"{prefix}.mlp"),
            window=config.windows[index] if config.windows else None,
        )

    def _load_mlp(self, load: _Loader, index: int, prefix: str) -> DenseMlp | RoutedMlp:
        config = self.config
        if config.moe_layers and config.moe_layers[index]:
            return RoutedMlp(load.linear(f"{prefix}.gate.weight"), load.experts(f"{prefix}.experts"))
        return DenseMlp(
            gate_up=load.linear(f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight", bias=config.mlp_bias),
            down=load.linear(f"{prefix}.down_proj.weight", bias=config.mlp_bias),
        )


class _Loader:
    """Takes tensors from a checkpoint, lays them out, and reports the bytes."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops, progress: Callable[[int], None]) -> None:
        self._checkpoint = checkpoint
        self._ops = ops
        self._progress = progress

    def vector(self, name: str) -> Tensor:
        raw = self._checkpoint.tensor(name)
        out = self._ops.prepare_vector(raw)
        self._progress(raw.nbytes)
        return out

    def linear(self, *names: str, bias: bool = False) -> Linear:
        """Weights with the same input, stacked; with ``bias`` each has one beside it."""
        weights = [self._checkpoint.tensor(name) for name in names]
        biases = [self._checkpoint.tensor(name.removesuffix("weight") + "bias") for name in names] if bias else None
        out = self._ops.prepare_linear(weights, biases, split=split_of(names[0]))
        self._report([*weights, *(biases or [])])
        return out

    def experts(self, prefix: str) -> Experts:
        stacks = [self._checkpoint.tensor(f"{prefix}.{part}_proj.weight") for part in ("gate", "up", "down")]
        out = self._ops.prepare_experts(*stacks)
        self._report(stacks)
        return out

    def _report(self, tensors: list[RawTensor]) -> None:
        self._progress(sum(raw.nbytes for raw in tensors))
