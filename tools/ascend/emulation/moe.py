"""Mixture of experts: choosing experts, sorting tokens by them, multiplying by group, and back.

Source of the rules: npu_moe_gating_top_k_softmax, npu_moe_gating_top_k, npu_moe_init_routing_v2, npu_grouped_matmul and
npu_moe_token_unpermute in torch_npu's own documentation (``_op_plugin_docs`` of torch-npu 2.13.0), for Atlas A2.
Not verified, since it takes a device: which of two equal scores the device takes first (here the lower expert), the
numbers in row_idx (here choice * tokens + token, which npu_moe_init_routing wants), and that npu_moe_gating_top_k
divides by the sum of the chosen scores under sigmoid alone. That a group_list of sizes must be more than one number is
what npu_grouped_matmul's page says; the checks of aclnnGroupedMatmul that CANN publishes do not ask for it. What the
documentation calls undefined is NaN here.
"""

from __future__ import annotations

import torch

from tools.ascend.emulation.norm import FLOATS
from tools.ascend.emulation.quant import SCALAR_TYPES, scaled
from tools.ascend.emulation.registry import emulates, refuse, require
from tools.ascend.emulation.rows import by_row, integer_product, product

MAX_TOP_K = 1024
MAX_GATED_EXPERTS = 2048
MAX_EXPERTS = 10240
MAX_GROUPS = 1024
MAX_UNPERMUTE_TOP_K = 512
MAX_INNER = 65535


@emulates("npu_moe_gating_top_k_softmax")
def gating_top_k_softmax(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k largest of each row's softmax, their experts, and row numbers. The chosen scores are not normalised.

    Shapes: x [T, E]; results [T, k]. Dtypes: x float16, bfloat16 or float32; scores the same; experts and rows int32.
    """
    name = "npu_moe_gating_top_k_softmax"
    _check_gating(name, x, k, MAX_TOP_K)
    scores, experts = _largest(by_row(_softmax, x), k)
    rows = torch.arange(len(x) * k, dtype=torch.int32).reshape(k, len(x)).T.contiguous()
    return scores.to(x.dtype), experts, rows


@emulates("npu_moe_gating_top_k")
def gating_top_k(
    x: torch.Tensor,
    k: int,
    bias: torch.Tensor | None,
    norm_type: int,
    routed_scaling_factor: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The experts with the k largest scores plus bias, and their scores without it. One group only.

    Scores are the softmax (norm_type 0) or the sigmoid (1) of x; sigmoids are divided by the sum of the chosen ones.

    Shapes: x [T, E], E up to 2048; bias [E]; results [T, k], and [T, E] undefined. Dtypes: as
    ``npu_moe_gating_top_k_softmax``; bias as x.
    """
    name = "npu_moe_gating_top_k"
    _check_gating(name, x, k, MAX_GATED_EXPERTS)
    require(x.shape[1] <= MAX_GATED_EXPERTS, name, f"there may be at most {MAX_GATED_EXPERTS} experts")
    require(norm_type in {0, 1}, name, "norm_type must be 0 or 1")
    if bias is not None:
        require(tuple(bias.shape) == x.shape[1:], name, f"bias must be [{x.shape[1]}]")
        require(bias.dtype == x.dtype, name, f"bias must be {x.dtype} as x is, but is {bias.dtype}")
    every = by_row(_softmax if norm_type == 0 else _sigmoid, x)
    _, experts = _largest(every if bias is None else every + bias.to(torch.float32), k)
    scores = every.gather(1, experts.to(torch.int64))
    if norm_type == 1:
        scores = scores / (by_row(torch.sum, scores)[:, None] + eps)
    scores = scores * routed_scaling_factor
    return scores.to(x.dtype), experts, torch.full(x.shape, torch.nan)


@emulates("npu_moe_init_routing_v2")
def init_routing_v2(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    active_num: int,
    expert_num: int,
    drop_pad_mode: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,
    quant_mode: int,
    active_expert_range: list[int],
    row_idx_type: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of x, one for each chosen expert, sorted by expert; where they went; how many rows each expert has.

    Choice k of token t is number t * K + k. With row_idx_type 0 the second result tells for each number its row, or -1
    if its expert is not active; with 1 it tells for each row its number. Rows beyond the active ones are undefined.

    active_num must be T * K: CANN releases up to 8.2 check that, later ones take 0 and -1 for it.

    Shapes: x [T, H], expert_idx [T, K]; results [T * K, H], [T * K], [active experts], [T * K] (undefined).
    Dtypes: x float16, bfloat16, float32 or int8; expert_idx and row numbers int32; counts int64.
    """
    name = "npu_moe_init_routing_v2"
    require(x.dim() == expert_idx.dim() == 2, name, "x and expert_idx must have 2 dimensions")
    require(x.dtype in {*FLOATS, torch.int8}, name, f"{x.dtype} is not supported")
    require(expert_idx.dtype == torch.int32, name, f"expert_idx must be int32, but is {expert_idx.dtype}")
    require(len(x) == len(expert_idx), name, "x and expert_idx must have one number of rows")
    require(expert_idx.numel() > 0, name, "empty tensors are not supported")
    require(0 < expert_num <= MAX_EXPERTS, name, f"expert_num must be from 1 to {MAX_EXPERTS}")
    require(active_num == expert_idx.numel(), name, f"active_num must be {expert_idx.numel()}, but is {active_num}")
    require(drop_pad_mode == 0, name, "drop_pad_mode must be 0")
    require(expert_tokens_num_flag, name, "expert_tokens_num_flag must be True")
    require(expert_tokens_num_type == 1, name, "only expert_tokens_num_type 1 (counts) is emulated")
    require(quant_mode == -1, name, "only quant_mode -1 is emulated")
    require(row_idx_type in {0, 1}, name, "row_idx_type must be 0 or 1")
    start, end = active_expert_range or (0, expert_num)
    require(
        0 <= start < end <= expert_num, name, f"active_expert_range {active_expert_range} is not within the experts"
    )
    experts = expert_idx.reshape(-1).to(torch.int64)
    require(bool(((experts >= 0) & (experts < expert_num)).all()), name, f"experts must be from 0 to {expert_num - 1}")
    return _route(x, experts, expert_idx.shape[1], (start, end), row_idx_type)


@emulates("npu_grouped_matmul")
def grouped_matmul(
    x: list[torch.Tensor],
    weight: list[torch.Tensor],
    scale: list[torch.Tensor] | None,
    per_token_scale: list[torch.Tensor] | None,
    group_list: torch.Tensor | None,
    split_item: int | None,
    group_type: int | None,
    group_list_type: int,
    output_dtype: int | None,
) -> list[torch.Tensor]:
    """The product of x [T, K] and weight [E, K, N], where group e of x's rows takes weight e: one tensor [T, N].

    Groups are given by their sizes (group_list_type 1) or by the sums of sizes up to each (0). Not emulated: lists of
    several tensors, bias, activations, int4.

    Shapes: group_list [E]; for int8, scale [E, N] and per_token_scale [T].
    Dtypes: x and weight float16, bfloat16 or float32, and the result the same; or both int8 with a result of bfloat16
    (scale bfloat16) or float16 (scale float32). group_list int64, per_token_scale float32.
    """
    name = "npu_grouped_matmul"
    require(len(x) == len(weight) == 1, name, "only one x and one weight are emulated")
    rows, experts = x[0], weight[0]
    require(group_type == 0, name, "group_type must be 0 for groups of rows")
    require(split_item in {2, 3}, name, "split_item must be 2 or 3 for one result")
    require(rows.dim() == 2 and experts.dim() == 3, name, "x must have 2 dimensions and weight 3")
    require(rows.is_contiguous(), name, "x must be contiguous")
    require(rows.numel() > 0, name, "empty tensors are not supported")
    require(
        rows.shape[1] == experts.shape[1], name, f"x {list(rows.shape)} and weight {list(experts.shape)} differ in K"
    )
    require(max(rows.shape[1], experts.shape[2]) <= MAX_INNER, name, f"K and N must not exceed {MAX_INNER}")
    ends = _group_ends(name, group_list, group_list_type, len(rows), len(experts))
    if rows.dtype == torch.int8:
        dtype = _check_int8(name, rows, experts, scale, per_token_scale, output_dtype)
    else:
        dtype = _check_float(name, rows, experts, scale, per_token_scale, output_dtype)
    result = torch.empty(len(rows), experts.shape[2], dtype=dtype)
    start = 0
    for expert, end in enumerate(ends):
        group = rows[start:end]
        if rows.dtype == torch.int8 and scale is not None:
            tokens = None if per_token_scale is None else per_token_scale[0][start:end]
            result[start:end] = scaled(integer_product(group, experts[expert]), scale[0][expert], tokens).to(dtype)
        elif len(group):
            result[start:end] = product(group, experts[expert]).to(dtype)
        start = end
    return [result]


@emulates("npu_moe_token_unpermute")
def token_unpermute(
    permuted_tokens: torch.Tensor, sorted_indices: torch.Tensor, probs: torch.Tensor | None
) -> torch.Tensor:
    """Row t is the sum over k of probs[t, k] * permuted_tokens[sorted_indices[t * K + k]], in float32, k ascending.

    Shapes: permuted_tokens [T * K, H], sorted_indices [T * K], each row once, probs [T, K], K up to 512; without probs
    K is 1. Dtypes: float16, bfloat16 or float32, the result as permuted_tokens; sorted_indices int32.
    """
    name = "npu_moe_token_unpermute"
    require(permuted_tokens.dim() == 2 and sorted_indices.dim() == 1, name, "tokens must be 2-D and indices 1-D")
    require(permuted_tokens.dtype in FLOATS, name, f"{permuted_tokens.dtype} is not supported")
    require(sorted_indices.dtype == torch.int32, name, f"sorted_indices must be int32, but is {sorted_indices.dtype}")
    count = len(sorted_indices)
    require(count == len(permuted_tokens) > 0, name, "there must be one index for each row of permuted_tokens")
    if probs is not None:
        require(probs.dim() == 2 and probs.numel() == count, name, f"probs must have {count} elements in 2 dimensions")
        require(probs.dtype in FLOATS, name, f"probs of {probs.dtype} are not supported")
        require(probs.shape[1] <= MAX_UNPERMUTE_TOP_K, name, f"K must not exceed {MAX_UNPERMUTE_TOP_K}")
    order = sorted_indices.to(torch.int64)
    each_once = torch.equal(torch.sort(order).values, torch.arange(count))
    require(each_once, name, f"sorted_indices must be each of 0 to {count - 1} once")
    weights = torch.ones(count, 1) if probs is None else probs.to(torch.float32)
    rows = permuted_tokens.to(torch.float32)[order].reshape(*weights.shape, -1)
    total = torch.zeros(rows.shape[0], rows.shape[2])
    for choice in range(weights.shape[1]):
        total = total + weights[:, choice, None] * rows[:, choice]
    return total.to(permuted_tokens.dtype)


def _check_gating(name: str, x: torch.Tensor, k: int, most: int) -> None:
    require(x.dim() == 2, name, f"only x of 2 dimensions is emulated, but it has {x.dim()}")
    require(x.dtype in FLOATS, name, f"{x.dtype} is not supported")
    require(x.numel() > 0, name, "empty tensors are not supported")
    limit = min(x.shape[1], most)
    require(1 <= k <= limit, name, f"k must be from 1 to {limit}, but is {k}")


def _softmax(row: torch.Tensor) -> torch.Tensor:
    return torch.softmax(row, -1)


def _sigmoid(row: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-row))


def _largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row in falling order, the lower index first among equals: float32 and int32 [T, k]."""
    values, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    return values[:, :k].contiguous(), order[:, :k].to(torch.int32).contiguous()


def _route(
    x: torch.Tensor, experts: torch.Tensor, choices: int, active: tuple[int, int], row_idx_type: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    start, end = active
    chosen = (experts >= start) & (experts < end)
    order = torch.argsort(torch.where(chosen, experts, end), stable=True)
    num_active = int(chosen.sum())
    numbers = order[:num_active]
    expanded = torch.full((len(experts), x.shape[1]), -128 if x.dtype == torch.int8 else torch.nan, dtype=x.dtype)
    expanded[:num_active] = x[numbers // choices]
    rows = torch.full((len(experts),), -1, dtype=torch.int32)
    if row_idx_type == 0:
        rows[numbers] = torch.arange(num_active, dtype=torch.int32)
    else:
        rows[:num_active] = numbers.to(torch.int32)
    counts = torch.bincount(experts[chosen] - start, minlength=end - start)
    return expanded, rows, counts, torch.full((len(experts),), torch.nan)


def _group_ends(name: str, group_list: torch.Tensor | None, kind: int, num_rows: int, num_groups: int) -> list[int]:
    """The row after the last one of each group."""
    if group_list is None:
        refuse(name, "group_list is needed for groups of rows")
    require(group_list.dtype == torch.int64, name, f"group_list must be int64, but is {group_list.dtype}")
    require(num_groups <= MAX_GROUPS, name, f"there may be at most {MAX_GROUPS} groups")
    require(tuple(group_list.shape) == (num_groups,), name, f"group_list must be [{num_groups}]")
    require(kind in {0, 1}, name, "group_list_type must be 0 or 1")
    require(kind == 0 or num_groups > 1, name, "a group_list of sizes must have more than one element")
    ends = [int(end) for end in (torch.cumsum(group_list, 0) if kind == 1 else group_list)]
    rising = all(one <= other for one, other in zip([0, *ends], ends, strict=False))
    require(rising, name, "groups must not have negative sizes")
    require(ends[-1] == num_rows, name, f"the groups have {ends[-1]} rows together, but x has {num_rows}")
    return ends


def _check_float(
    name: str,
    rows: torch.Tensor,
    experts: torch.Tensor,
    scale: list[torch.Tensor] | None,
    per_token_scale: list[torch.Tensor] | None,
    output_dtype: int | None,
) -> torch.dtype:
    require(rows.dtype in FLOATS, name, f"{rows.dtype} is not supported")
    require(rows.dtype == experts.dtype, name, f"weight must be {rows.dtype} as x is, but is {experts.dtype}")
    require(not scale and not per_token_scale, name, "only int8 takes scales")
    same = output_dtype is None or SCALAR_TYPES.get(output_dtype) is rows.dtype
    require(same, name, f"the result must be {rows.dtype} as x is")
    return rows.dtype


def _check_int8(
    name: str,
    rows: torch.Tensor,
    experts: torch.Tensor,
    scale: list[torch.Tensor] | None,
    per_token_scale: list[torch.Tensor] | None,
    output_dtype: int | None,
) -> torch.dtype:
    require(experts.dtype == torch.int8, name, f"weight must be int8 as x is, but is {experts.dtype}")
    if scale is None or len(scale) != 1:
        refuse(name, "int8 needs one scale")
    wanted = (experts.shape[0], experts.shape[2])
    require(tuple(scale[0].shape) == wanted, name, f"scale must be {list(wanted)}, but is {list(scale[0].shape)}")
    dtype = None if output_dtype is None else SCALAR_TYPES.get(output_dtype)
    if dtype not in {torch.bfloat16, torch.float16}:
        refuse(name, f"an int8 product with a result of {dtype} is not emulated")
    needed = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32
    require(scale[0].dtype == needed, name, f"a result of {dtype} needs a scale of {needed}, not {scale[0].dtype}")
    if per_token_scale is not None:
        require(len(per_token_scale) == 1, name, "there must be one per_token_scale")
        tokens = per_token_scale[0]
        require(tokens.dtype == torch.float32, name, f"per_token_scale must be float32, but is {tokens.dtype}")
        require(tuple(tokens.shape) == (len(rows),), name, f"per_token_scale must be [{len(rows)}]")
    return dtype
