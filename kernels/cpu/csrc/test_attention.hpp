// The cases of test_isas.cpp that write to a cache and read it.
#pragma once
#include "test_support.hpp"

namespace {

struct Cache {
    Array<uint8_t> k, v;
    upwell_cache cache;
    Cache(int kind, int blocks, int block_size, int kv_heads, int head_dim)
        : k(blocks * kv_heads * upwell_cache_head_bytes(kind, block_size, head_dim)), v(k.count()),
          cache{kind, block_size, kv_heads, head_dim, k, v, k.count() / blocks / kv_heads, blocks} {}
};

// Three sequences: a prompt of 20, one token after 1,099, and a chunk of 7 across the border of a tile. Then one token
// of each of the long ones, whose segments are shared out.
void attention(Pass& pass, int kind, int head_dim, bool plain) {
    pass.begin(std::string("attention ") + kCacheNames[kind] + " head " + std::to_string(head_dim) +
               (plain ? "" : " all"));
    constexpr int kSize = 16, kHeads = 6, kKvHeads = 2, kMost = 1100;
    const int lengths[] = {20, kMost, 131}, queries[] = {20, 1, 7};
    const int64_t max_blocks = (kMost + kSize - 1) / kSize, width = kKvHeads * head_dim, q_width = kHeads * head_dim;
    Cache cache(kind, 3 * (int)max_blocks, kSize, kKvHeads, head_dim);
    Array<int32_t> table(3 * max_blocks), slots(20 + kMost + 131), positions(slots.count());
    for (int64_t i = 0; i < table.count(); i++) table[i] = (int32_t)(i * 7 % table.count());
    for (int s = 0, at = 0; s < 3; s++)
        for (int p = 0; p < lengths[s]; p++, at++) {
            positions[at] = p;
            slots[at] = table[s * max_blocks + p / kSize] * kSize + p % kSize;
        }
    Array<float> k(slots.count() * width, pass.random), v(slots.count() * width, pass.random),
        q(28 * q_width, pass.random);
    Array<float> rotation(2 * kMost * (head_dim / 2), pass.random), weight(head_dim, pass.random);
    Argument rope = plain ? nullptr : Argument(rotation), norm = plain ? nullptr : Argument(weight);
    pass.add(UPWELL_WRITE_KV, {&cache.cache, k, width, v, width, rope, kMost, norm, 1e-6f});
    upwell_batch batch = {};
    batch.num_tokens = slots.count(), batch.positions = positions, batch.slots = slots;
    pass.run(batch);

    Array<uint8_t> partial(upwell_partial_bytes(pass.threads(), 3, kMost, 0, kKvHeads, kHeads, head_dim));
    Rows out(28, q_width, true, head_dim % 32 ? Kind::kFloats : Kind::kBlocks);
    pass.add(UPWELL_ATTENTION, {&cache.cache, q, q_width, out, kHeads, 1 / __builtin_sqrtf((float)head_dim),
                                plain ? 0 : 37, rope, kMost, norm, 1e-6f, partial, partial.count()});
    if (out.rows.q) pass.add(UPWELL_MARK, {out, q_width});
    Array<int32_t> starts{0, queries[0], queries[0] + queries[1], 28}, kv_lens{lengths[0], lengths[1], lengths[2]};
    Array<int32_t> asked(28);
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < queries[s]; i++) asked[starts[s] + i] = lengths[s] - queries[s] + i;
    batch = {};
    batch.positions = asked, batch.num_tokens = 28, batch.num_seqs = 3, batch.max_blocks = max_blocks;
    batch.q_starts = starts, batch.kv_lens = kv_lens, batch.block_table = table;
    pass.run(batch);

    Rows last(2, q_width, true, head_dim % 32 ? Kind::kFloats : Kind::kBlocks);
    pass.add(UPWELL_ATTENTION, {&cache.cache, q, q_width, last, kHeads, 1 / __builtin_sqrtf((float)head_dim),
                                plain ? 0 : 700, rope, kMost, norm, 1e-6f, partial, partial.count()});
    if (last.rows.q) pass.add(UPWELL_MARK, {last, q_width});
    batch.num_tokens = batch.num_seqs = 2;
    Array<int32_t> each{0, 1, 2}, long_lens{lengths[1], lengths[2]}, ends{lengths[1] - 1, lengths[2] - 1};
    batch.positions = ends, batch.q_starts = each, batch.kv_lens = long_lens,
    batch.block_table = (int32_t*)table + max_blocks;
    pass.run(batch);

    Array<float> keys(3 * max_blocks * kSize * width), values(keys.count());
    upwell_cache_read(&cache.cache, 3 * max_blocks, 0, keys);
    upwell_cache_read(&cache.cache, 3 * max_blocks, 1, values);
    pass.keep("k", cache.k);
    pass.keep("v", cache.v);
    pass.keep("keys", keys);
    pass.keep("values", values);
    pass.keep(out);
    pass.keep(last);
}

// One token of each of a few sequences, whose segments are shared out, and then of more of them in the same memory: as
// many pieces as three threads share. All read one cache, each to another length.
void shared_segments(Pass& pass, int kind) {
    pass.begin(std::string("shared segments ") + kCacheNames[kind]);
    constexpr int kSize = 16, kBlocks = 69, kMost = kSize * kBlocks, kHeads = 4, kKvHeads = 2, kDim = 32, kSeqs = 5;
    constexpr int kWidth = kKvHeads * kDim, kQWidth = kHeads * kDim;
    Cache cache(kind, kBlocks, kSize, kKvHeads, kDim);
    Array<float> k(kMost * kWidth, pass.random), v(kMost * kWidth, pass.random), q(kSeqs * kQWidth, pass.random);
    Array<int32_t> slots(kMost), table(kSeqs * kBlocks), starts{0, 1, 2, 3, 4, 5}, kv_lens{1100, 600, 513, 40, 1025};
    for (int i = 0; i < kMost; i++) slots[i] = i;
    for (int i = 0; i < kSeqs * kBlocks; i++) table[i] = i % kBlocks;
    pass.add(UPWELL_WRITE_KV, {&cache.cache, k, kWidth, v, kWidth, nullptr, 0, nullptr, 0.0f});
    upwell_batch batch = {};
    batch.num_tokens = kMost, batch.slots = slots;
    pass.run(batch);

    Array<uint8_t> partial(upwell_partial_bytes(pass.threads(), kSeqs, kMost, 0, kKvHeads, kHeads, kDim));
    batch.max_blocks = kBlocks, batch.q_starts = starts, batch.kv_lens = kv_lens, batch.block_table = table;
    for (int seqs : {2, kSeqs}) {
        Rows out(seqs, kQWidth, true, Kind::kFloats);
        pass.renew_pool();
        pass.add(UPWELL_ATTENTION,
                 {&cache.cache, q, kQWidth, out, kHeads, 0.2f, 0, nullptr, 0, nullptr, 0.0f, partial, partial.count()});
        batch.num_tokens = batch.num_seqs = seqs;
        pass.run(batch);
        pass.keep(out);
    }
}

// Numbers at the ends of what a cache holds, subnormal ones among them, and queries as small and as great.
void extreme_cache(Pass& pass, int kind) {
    pass.begin(std::string("extreme cache ") + kCacheNames[kind]);
    Cache cache(kind, 2, 16, 1, 32);
    Array<int32_t> slots(32);
    Array<float> k(32 * 32, pass.random), v(32 * 32, pass.random), q(32 * 32, pass.random);
    for (int i = 0; i < 32 * 32; i++) {
        slots[i % 32] = i % 32;
        float factor = __builtin_ldexpf(1, i / 32 * 6 - 148);
        k[i] *= factor, v[i] *= factor, q[i] *= factor;
    }
    pass.add(UPWELL_WRITE_KV, {&cache.cache, k, 32, v, 32, nullptr, 0, nullptr, 0.0f});
    upwell_batch batch = {};
    batch.num_tokens = 32, batch.slots = slots;
    pass.run(batch);
    pass.keep("k", cache.k);
    pass.keep("v", cache.v);

    Array<int32_t> starts{0, 32}, kv_lens{32}, table{0, 1};
    Rows out(32, 32, true, Kind::kFloats);
    pass.add(UPWELL_ATTENTION, {&cache.cache, q, 32, out, 1, 1.0f, 0, nullptr, 0, nullptr, 0.0f, nullptr, 0});
    batch.num_seqs = 1, batch.max_blocks = 2, batch.q_starts = starts, batch.kv_lens = kv_lens,
    batch.block_table = table;
    pass.run(batch);
    pass.keep(out);
}

}  // namespace
