"""Emulated attention: layouts, paging, masks and windows against NumPy; chunks and neighbours; refusals."""

import numpy as np
import pytest
import torch

from tests.support.ascend_calls import HALVES, close, f64, normal, refused
from tests.support.ascend_links import link

pytestmark = link(5, attention=False)

DIM = 32
SCALE = DIM**-0.5
CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def softmax_attention(query, keys, values, visible):
    """q [S, N, D], k and v [L, KV_N, D], visible bool [S, L], float64: [S, N, D] and lse [S, N, 1]."""
    share = query.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, share, 1), np.repeat(values, share, 1)
    scores = np.where(visible[:, None], np.einsum("snd,lnd->snl", query, keys) * SCALE, -np.inf)
    highest = scores.max(-1, keepdims=True)
    weights = np.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("snl,lnd->snd", weights / total, values), np.log(total) + highest


def causal(count, length, before=None):
    own = np.arange(count)[:, None] + length - count
    keys = np.arange(length)[None]
    return (keys <= own) & (keys >= own - (length if before is None else before))


class Paged:
    """Sequences in a shuffled paged cache, and the call that attends to them in TND."""

    def __init__(self, rng, dtype, query_lengths, kv_lengths, heads=4, kv_heads=2, block_size=16):
        self.heads, self.kv_heads, self.block_size = heads, kv_heads, block_size
        self.query_lengths, self.kv_lengths = query_lengths, kv_lengths
        self.query = normal(rng, sum(query_lengths), heads, DIM, dtype=dtype)
        needed = [-(-length // block_size) for length in kv_lengths]
        order = torch.randperm(sum(needed) + 1, generator=rng)[: sum(needed)].split(needed)
        shape = (sum(needed) + 1, block_size, kv_heads * DIM)
        self.keys, self.values = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
        self.table = torch.full((len(kv_lengths), max(needed) + 1), -1, dtype=torch.int32)
        for sequence, blocks in enumerate(order):
            self.table[sequence, : len(blocks)] = blocks

    def call(self, npu, rows=slice(None), **changed):
        options = {
            "block_table": self.table[rows], "num_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "input_layout": "TND", "block_size": self.block_size, "scale": SCALE, "sparse_mode": 3,
            "atten_mask": CAUSAL, "softmax_lse_flag": True,
            "actual_seq_lengths": np.cumsum(self.query_lengths[rows]).tolist(),
            "actual_seq_lengths_kv": self.kv_lengths[rows],
        }  # fmt: skip
        starts = np.cumsum([0, *self.query_lengths])
        ends = range(len(self.query_lengths))[rows]
        query = self.query[starts[ends[0]] : starts[ends[-1] + 1]]
        return npu.npu_fused_infer_attention_score(query, self.keys, self.values, **(options | changed))

    def sequence(self, index):
        start = sum(self.query_lengths[:index])
        query = f64(self.query[start : start + self.query_lengths[index]])
        blocks = self.table[index, : -(-self.kv_lengths[index] // self.block_size)].long()
        rows = [f64(cache[blocks]).reshape(-1, self.kv_heads, DIM) for cache in (self.keys, self.values)]
        return query, *(tensor[: self.kv_lengths[index]] for tensor in rows)

    def wanted(self, visible):
        pairs = zip(self.query_lengths, self.kv_lengths, strict=True)
        parts = [softmax_attention(*self.sequence(index), visible(*pair)) for index, pair in enumerate(pairs)]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("query_lengths", "kv_lengths"),
    [([1, 1, 1], [1, 40, 16]), ([7], [7]), ([5, 1, 12], [21, 33, 12])],
    ids=["decode", "prompt", "mixed"],
)
def test_paged_sequences_in_tnd(npu, rng, dtype, query_lengths, kv_lengths):
    case = Paged(rng, dtype, query_lengths, kv_lengths)
    out, lse = case.call(npu)
    want, want_lse = case.wanted(causal)
    close(out, want, max(kv_lengths), magnitude=4)
    close(lse, want_lse, DIM)


def test_a_window_in_tnd(npu, rng):
    case = Paged(rng, torch.float16, [5, 1, 12], [21, 33, 12])
    out, _ = case.call(npu, sparse_mode=4, pre_tokens=6, next_tokens=0)
    want, _ = case.wanted(lambda count, length: causal(count, length, 6))
    close(out, want, 7, magnitude=4)
    wide, _ = case.call(npu, sparse_mode=4, pre_tokens=2147483647, next_tokens=0)
    assert torch.equal(wide, case.call(npu)[0])


def test_no_mask_in_tnd(npu, rng):
    case = Paged(rng, torch.float16, [5, 1], [21, 33])
    out, lse = case.call(npu, sparse_mode=0, atten_mask=None, softmax_lse_flag=False)
    want, _ = case.wanted(lambda count, length: np.ones((count, length), dtype=bool))
    close(out, want, 33, magnitude=4)
    assert lse.shape == (0,)


def test_unused_blocks_and_rows_are_not_read(npu, rng):
    case = Paged(rng, torch.float16, [1, 3], [17, 20])
    want = case.call(npu)
    used = set(case.table[case.table >= 0].tolist())
    for cache in (case.keys, case.values):
        for sequence, length in enumerate(case.kv_lengths):
            cache[case.table[sequence, length // 16], length % 16 :] = torch.nan
        cache[[block for block in range(len(cache)) if block not in used]] = torch.nan
    assert all(torch.equal(got, one) for got, one in zip(case.call(npu), want, strict=True))


def test_a_token_does_not_know_its_neighbours_nor_its_chunk(npu, rng):
    case = Paged(rng, torch.bfloat16, [9, 1, 4], [30, 33, 4])
    whole, lse = case.call(npu)
    for index, start in enumerate(np.cumsum([0, 9, 1])):
        alone, alone_lse = case.call(npu, slice(index, index + 1))
        end = start + case.query_lengths[index]
        assert torch.equal(alone, whole[start:end])
        assert torch.equal(alone_lse, lse[start:end])
    table = case.table[:1]
    for begin, end in ((0, 4), (4, 5), (5, 9)):  # the first sequence in chunks
        chunk = npu.npu_fused_infer_attention_score(
            case.query[begin:end], case.keys, case.values, block_table=table, num_heads=4, num_key_value_heads=2,
            input_layout="TND", block_size=16, scale=SCALE, sparse_mode=3, atten_mask=CAUSAL,
            actual_seq_lengths=[end - begin], actual_seq_lengths_kv=[30 - 9 + end],
        )[0]  # fmt: skip
        assert torch.equal(chunk, whole[begin:end])


def test_plain_keys_in_tnd(npu, rng):
    query, keys, values = normal(rng, 8, 4, DIM), normal(rng, 11, 2, DIM), normal(rng, 11, 2, DIM)
    out, _ = npu.npu_fused_infer_attention_score(
        query, keys, values, num_heads=4, num_key_value_heads=2, input_layout="TND", scale=SCALE, sparse_mode=3,
        atten_mask=CAUSAL, actual_seq_lengths=[3, 8], actual_seq_lengths_kv=[4, 11],
    )  # fmt: skip
    parts = [(slice(0, 3), slice(0, 4)), (slice(3, 8), slice(4, 11))]
    want = [
        softmax_attention(f64(query)[q], f64(keys)[k], f64(values)[k], causal(q.stop - q.start, k.stop - k.start))[0]
        for q, k in parts
    ]
    close(out, np.concatenate(want), 7, magnitude=4)


@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_batches(npu, rng, layout, tokens, paged, masked):
    lengths, block = [5, 140], 128
    query, rows = normal(rng, 2, tokens, 4, DIM), normal(rng, 2, 2, 2 * block, 2, DIM)
    hidden = torch.rand(2, 1, tokens, 2 * block, generator=rng) < 0.5
    hidden[..., 0] = False
    options = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": layout, "scale": SCALE}
    options |= {"actual_seq_lengths_kv": lengths, "softmax_lse_flag": True}
    if masked:
        options["atten_mask"] = hidden
    swap = (lambda x: x.transpose(1, 2).contiguous()) if layout == "BNSD" else (lambda x: x)
    if paged:
        table = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
        stored = torch.empty(2, 4, block, 2, DIM).half()
        stored[:, table.long()] = rows.reshape(2, 2, 2, block, 2, DIM)
        caches = stored.transpose(2, 3).contiguous() if layout == "BNSD" else stored.reshape(2, 4, block, -1)
        options |= {"block_table": table, "block_size": block}
        out, lse = npu.npu_fused_infer_attention_score(swap(query), *caches, **options)
        flat = stored.reshape(2, 4, block, -1)
        assert torch.equal(npu.npu_fused_infer_attention_score(swap(query), *flat, **options)[0], out)
    else:
        out, lse = npu.npu_fused_infer_attention_score(swap(query), *map(swap, rows), **options)
    for index, length in enumerate(lengths):
        visible = ~hidden[index, 0, :, :length].numpy() if masked else np.ones((tokens, length), dtype=bool)
        want, want_lse = softmax_attention(
            f64(query)[index], f64(rows)[0, index, :length], f64(rows)[1, index, :length], visible
        )
        close(swap(out)[index] if layout == "BNSD" else out[index], want, length, magnitude=4)
        close(lse[index].transpose(0, 1), want_lse, DIM)


def test_causal_batches_with_lengths(npu, rng):
    query, rows = normal(rng, 2, 4, 3, DIM), normal(rng, 2, 2, 2, 9, DIM)
    out, _ = npu.npu_fused_infer_attention_score(
        query, *rows, num_heads=4, num_key_value_heads=2, input_layout="BNSD", scale=SCALE, sparse_mode=3,
        atten_mask=CAUSAL, actual_seq_lengths=[2, 3], actual_seq_lengths_kv=[9],
    )  # fmt: skip
    for index, count in enumerate([2, 3]):
        keys, values = (f64(rows)[kind, index].transpose(1, 0, 2) for kind in (0, 1))
        want, _ = softmax_attention(f64(query)[index].transpose(1, 0, 2)[:count], keys, values, causal(count, 9))
        close(out[index].transpose(0, 1)[:count], want, 9, magnitude=4)


def test_a_sequence_without_keys_gives_zeros(npu, rng):
    case = Paged(rng, torch.float16, [1, 1], [4, 4])
    out, lse = case.call(npu, actual_seq_lengths_kv=[4, 0], sparse_mode=0, atten_mask=None)
    assert not out[1].any()
    assert lse[1].isinf().all()


REFUSED = {
    "actual_seq_lengths is needed in TND": {"actual_seq_lengths": None},
    "must end in 3": {"actual_seq_lengths": [1, 2]},
    "must not fall": {"actual_seq_lengths": [4, 3]},
    "actual_seq_lengths_kv is needed": {"actual_seq_lengths_kv": None},
    "actual_seq_lengths_kv must have 2 elements": {"actual_seq_lengths_kv": [20]},
    "must not be negative": {"actual_seq_lengths_kv": [20, -1]},
    "as many keys as queries": {"actual_seq_lengths_kv": [20, 1]},
    "needs an atten_mask": {"atten_mask": None},
    r"atten_mask must be \[2048, 2048\]": {"atten_mask": CAUSAL[:64, :64]},
    "must hide what is above the diagonal": {"atten_mask": torch.zeros_like(CAUSAL)},
    "atten_mask of torch.float16": {"atten_mask": CAUSAL.half()},
    "takes no atten_mask in TND": {"sparse_mode": 0},
    "sparse_mode 2 is not emulated": {"sparse_mode": 2},
    "are no band": {"sparse_mode": 4, "pre_tokens": 3, "next_tokens": -4},
    "num_heads is 8": {"num_heads": 8},
    "do not share 3 evenly": {"num_key_value_heads": 3},
    r"the cache must be \[blocks, 16, 128\] in TND": {"num_key_value_heads": 4},
    r"the cache must be \[blocks, 32, 64\]": {"block_size": 32},
    "block_table must be int32": {"block_table": torch.zeros(2, 2, dtype=torch.int64)},
    r"block_table must be \[2, 2 or more\]": {"block_table": torch.zeros(2, 1, dtype=torch.int32)},
    "block_table leads out of the cache for sequence 1": {"block_table": torch.tensor([[0, 1], [2, 9]]).int()},
    "inner_precise must be one of": {"inner_precise": 1},
    'input_layout "BSH" is not emulated': {"input_layout": "BSH"},
    "query .* is not BNSD": {"input_layout": "BNSD"},
    "pse_shift is not emulated": {"pse_shift": torch.ones(1).half()},
    "antiquant_mode is not emulated": {"antiquant_mode": 1},
}


@pytest.mark.parametrize(("reason", "changed"), REFUSED.items(), ids=REFUSED)
def test_paged_calls_in_tnd_refuse(npu, rng, reason, changed):
    case = Paged(rng, torch.float16, [1, 2], [20, 30])
    refused(reason, case.call, npu, **changed)


@pytest.mark.parametrize("block_size", [8, 24, 256])
def test_block_sizes_in_tnd(npu, rng, block_size):
    case = Paged(rng, torch.float16, [1], [20], block_size=block_size)
    refused("block_size must be a multiple of 16 up to 128", case.call, npu)


def test_tensors_are_refused(npu, rng):
    case = Paged(rng, torch.float16, [1, 2], [20, 30])

    def call(query=case.query, keys=case.keys, values=case.values, **changed):
        case.query, case.keys, case.values = query, keys, values
        case.call(npu, **changed)

    query, keys, values = case.query, case.keys, case.values
    refused("query of torch.float32", call, query.float(), keys.float(), values.float())
    refused("one dtype", call, query, keys.bfloat16(), values)
    refused("one shape", call, query, keys[:1], values)
    refused("key must be contiguous", call, query, keys.transpose(0, 1).contiguous().transpose(0, 1), values)
    refused("D must be a multiple of 16 up to 256", call, query[..., :24].contiguous(), keys, values)
    refused("D must be a multiple of 16 up to 256", call, normal(rng, 3, 4, 272), keys, values)


def test_batches_refuse(npu, rng):
    query, rows = normal(rng, 2, 1, 4, DIM), normal(rng, 2, 2, 40, 2, DIM)
    base = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": "BSND"}

    def call(query=query, keys=rows[0], values=rows[1], **changed):
        npu.npu_fused_infer_attention_score(query, keys, values, **(base | changed))

    refused("has no effect on single queries in BSND", call, sparse_mode=3, atten_mask=CAUSAL)
    refused("must be from 0 to 40", call, actual_seq_lengths_kv=[41])
    refused(r"only an atten_mask \[2, 1, 1, keys\]", call, atten_mask=torch.zeros(1, 1, 1, 40, dtype=torch.bool))
    refused("must reach over 40 keys", call, atten_mask=torch.zeros(2, 1, 1, 39, dtype=torch.bool))
    refused("num_key_value_heads is 4", call, num_key_value_heads=4)
    refused("one head dimension", call, query[..., :16].contiguous())
    refused("one number of sequences", call, query[:1])
    refused("inner_precise", call, inner_precise=2)
    one = normal(rng, 1, 600, 2, DIM)
    mask = torch.zeros(1, 1, 1, 600, dtype=torch.bool)
    refused("reported to be ignored beyond key 512", call, query[:1], one, one, atten_mask=mask)
    table, cache = torch.zeros(2, 1, dtype=torch.int32), normal(rng, 2, 144, 2 * DIM)
    paged = {"block_table": table, "actual_seq_lengths_kv": [3, 3], "block_size": 144}
    call(query, cache, cache, **paged)
    refused("block_size must be a multiple of 128 up to 512", call, query.repeat(1, 2, 1, 1), cache, cache, **paged)
    heads = cache.reshape(2, 2, 144, DIM)
    refused(r"the cache must be \[blocks, 144, 64\] in BSND", call, query, heads, heads, **paged)
