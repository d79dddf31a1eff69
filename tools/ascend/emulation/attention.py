"""Attention over plain and paged keys and values: npu_fused_infer_attention_score.

Source of the rules: the operation's page in torch_npu's own documentation (``_op_plugin_docs`` of torch-npu 2.13.0) and
aclnnFusedInferAttentionScoreV3 in the public ops-transformer repository of CANN, whose section on the TND layout for
Atlas A2 is newer and wider: equal head dimensions up to 256, paging in blocks of up to 128. CANN 8.2 and 8.3 still
refuse paging or a head dimension of 128 in TND in some releases (vllm-project/vllm-ascend issues 4373, 8045).

Not verified, since it takes a device: the precision of the probabilities (float32 here, rounded once at the end); rows
that see no key (0 here, with an lse of infinity); a query as long as its keys under sparse_mode 3, where the page asks
for a shorter one and vllm-ascend calls it all the same (allowed here); and the page's rule that a cache has as many
blocks as the sequences together, counting shared ones twice (not held here, as prefixes may be shared).
"""

from __future__ import annotations

import torch

from tools.ascend.emulation.attention_rules import Plan, plan
from tools.ascend.emulation.registry import emulates


@emulates("npu_fused_infer_attention_score")
def fused_infer_attention_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    atten_mask: torch.Tensor | None,
    actual_seq_lengths: list[int] | None,
    actual_seq_lengths_kv: list[int] | None,
    block_table: torch.Tensor | None,
    num_heads: int,
    scale: float,
    pre_tokens: int,
    next_tokens: int,
    input_layout: str,
    num_key_value_heads: int,
    sparse_mode: int,
    inner_precise: int,
    block_size: int,
    softmax_lse_flag: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale * q k^T) v, with grouped heads; and the log of the sum of exponentials if asked for.

    Each token is computed alone over the keys that it sees, so neither its neighbours nor the way a prompt is cut into
    chunks reach its result.

    Shapes: query [T, N, D] (TND), [B, N, S, D] (BNSD) or [B, S, N, D] (BSND); keys and values alike, or with a
    block_table [B, blocks] a cache [blocks, block_size, KV_N * D], in BNSD also [blocks, KV_N, block_size, D]. Result
    as query; lse [T, N, 1] or [B, N, S, 1], or [0].
    Dtypes: float16 or bfloat16, one for all; block_table int32; lse float32.
    """
    work = plan(
        query, key, value, atten_mask, actual_seq_lengths, actual_seq_lengths_kv, block_table, num_heads, pre_tokens,
        next_tokens, input_layout, num_key_value_heads, sparse_mode, inner_precise, block_size,
    )  # fmt: skip
    result = torch.zeros(query.shape, dtype=query.dtype)
    lse = torch.full((*query.shape[:-1], 1), torch.inf)
    if input_layout == "BSND":
        lse = lse.transpose(1, 2).contiguous()
    for sequence in range(work.num_sequences):
        keys, values = work.keys_and_values(sequence, key, value)
        for token in range(work.query_lengths[sequence]):
            row = work.row(sequence, token)
            seen = work.seen(sequence, token)
            if len(seen):
                out, total = _attend(query[row], keys[:, seen], values[:, seen], scale)
                result[row] = out.to(query.dtype)
                lse[work.lse_row(sequence, token)] = total
    return result, lse if softmax_lse_flag else torch.empty(0)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token: query [N, D] over keys and values float32 [KV_N, L, D]; float32 [N, D], and lse [N, 1]."""
    grouped = query.to(torch.float32, copy=True).reshape(len(keys), -1, query.shape[-1])
    scores = torch.bmm(grouped, keys.transpose(1, 2)) * scale
    highest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - highest)
    total = weights.sum(-1, keepdim=True)
    out = torch.bmm(weights, values) / total
    return out.reshape(query.shape), (torch.log(total) + highest).reshape(-1, 1)


__all__ = ["Plan", "fused_infer_attention_score"]
