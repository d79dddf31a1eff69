"""Writing keys and values into a paged cache.

Source of the rules: npu_scatter_pa_kv_cache, its second case, and npu_scatter_nd_update_ in torch_npu's own
documentation (``_op_plugin_docs`` of torch-npu 2.13.0). Not verified, since it takes a device: what a negative or
repeated slot does there. The documentation allows neither in a cache, and says nothing of a row that is updated twice;
all are refused.
"""

from __future__ import annotations

import torch

from tools.ascend.emulation.formats import ND, format_of
from tools.ascend.emulation.registry import emulates, require

DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.int8})


@emulates("npu_scatter_pa_kv_cache")
def scatter_pa_kv_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    cache_mode: str | None,
) -> None:
    """Row t of key and value goes to slot slot_mapping[t], which is block * block_size + offset. Norm mode only.

    Shapes: key [T, heads, k_dim], value [T, heads, v_dim], caches [blocks, block_size, heads, k_dim or v_dim],
    slot_mapping [T]; all contiguous and in ND.
    Dtypes: float16, bfloat16, float32 or int8, one for all; slots int32 or int64, in range, none twice.
    """
    name = "npu_scatter_pa_kv_cache"
    tensors = {
        "key": key, "value": value, "key_cache": key_cache, "value_cache": value_cache, "slot_mapping": slot_mapping,
    }  # fmt: skip
    require(cache_mode in {"Norm", None}, name, f'cache_mode "{cache_mode}" wants caches in PA_NZ; not emulated')
    for what, tensor in tensors.items():
        require(tensor.is_contiguous(), name, f"{what} must be contiguous")
        require(format_of(tensor) == ND, name, f"{what} must be in ND in this cache_mode")
    require(key.dtype in DTYPES, name, f"{key.dtype} is not supported")
    same = key.dtype == value.dtype == key_cache.dtype == value_cache.dtype
    require(same, name, "key, value and their caches must have one dtype")
    require(key.dim() == value.dim() == 3, name, "only key and value of 3 dimensions are emulated")
    require(key_cache.dim() == value_cache.dim() == 4, name, "the caches must have 4 dimensions")
    require(key.shape[:2] == value.shape[:2], name, "key and value must share tokens and heads")
    blocks, block_size = key_cache.shape[:2]
    for what, rows, stored in (("key", key, key_cache), ("value", value, value_cache)):
        wanted = (blocks, block_size, *rows.shape[1:])
        fits = tuple(stored.shape) == wanted
        require(fits, name, f"{what}_cache must be {list(wanted)}, but is {list(stored.shape)}")
    require(slot_mapping.dtype in {torch.int32, torch.int64}, name, "slot_mapping must be int32 or int64")
    require(tuple(slot_mapping.shape) == (len(key),), name, f"slot_mapping must be [{len(key)}]")
    slots = slot_mapping.to(torch.int64)
    inside = bool(((slots >= 0) & (slots < blocks * block_size)).all())
    require(inside, name, f"slots must be from 0 to {blocks * block_size - 1}")
    require(len(torch.unique(slots)) == len(slots), name, "a slot is written twice")
    key_cache.view(-1, *key.shape[1:])[slots] = key
    value_cache.view(-1, *value.shape[1:])[slots] = value


@emulates("npu_scatter_nd_update_")
def scatter_nd_update_(input: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """Row t of updates goes to row indices[t,0] of input, which is returned; indices of one column only.

    Shapes: input [N, ...], indices [T, 1], updates [T, ...].
    Dtypes: float32, float16, bfloat16 or int8, one for both; indices int32 or int64, in range, none twice.
    """
    name = "npu_scatter_nd_update_"
    require(format_of(input) == ND and format_of(updates) == ND, name, "input and updates must be in ND")
    require(input.dtype in DTYPES, name, f"{input.dtype} is not supported")
    require(input.dtype == updates.dtype, name, "input and updates must have one dtype")
    require(indices.dtype in {torch.int32, torch.int64}, name, "indices must be int32 or int64")
    require(indices.dim() == 2 and indices.shape[1] == 1, name, "only indices of one column are emulated")
    wanted = (len(indices), *input.shape[1:])
    require(tuple(updates.shape) == wanted, name, f"updates must be {list(wanted)}, but is {list(updates.shape)}")
    rows = indices[:, 0].to(torch.int64)
    require(bool(((rows >= 0) & (rows < len(input))).all()), name, f"indices must be from 0 to {len(input) - 1}")
    require(len(torch.unique(rows)) == len(rows), name, "a row is written twice, in an order that is not known")
    input[rows] = updates
    return input
