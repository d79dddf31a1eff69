// The paged KV cache as the native kernels lay it out: for each block and head, first the numbers, then (for integers)
// one scale a token.
//
// d is the head size rounded up to 16, s the block size, a multiple of 16.
//   keys, integers    [s/16][d/2][16 tokens][2]: a vector is two dimensions of 16 tokens, ready for dot2
//   values, integers  [s/2][d][2 tokens]: a vector is two tokens of 16 dimensions
//   keys, floats      [s/16][d][16 tokens]
//   values, floats    [s][d]
// Keys are rounded to 14 bits and values to 12 (8 and 8 in the i8 cache), so that no sum over a head of up to 256
// dimensions or a tile of 128 tokens can overflow 32 bits; see attention.hpp.
//
// What is finite stays finite: a half takes what is beyond it as 65504. What is not must not vanish: whoever sees it
// has it in its result, and nobody else.
#pragma once
#include "layout.hpp"
#include "rows.hpp"

namespace {

// A head's row whose max|x| is not above this counts as zeros: the inverse of its scale might be infinite, and that of
// the scale times a weight of attention (kTinyWeight), which may be a millionth and count yet.
constexpr float kTinyHead = 1e-25f;

INLINE float key_range(int kind) { return kind == UPWELL_KV_I8 ? 127.0f : 8191.0f; }
INLINE float value_range(int kind) { return kind == UPWELL_KV_I8 ? 127.0f : 2047.0f; }

// One head of a block; `base` is that of the keys or of the values.
INLINE uint8_t* head_of(const upwell_cache& c, uint8_t* base, int64_t block, int64_t head) {
    return base + (block * c.kv_heads + head) * c.head_bytes;
}

// The scales of a block and head: f32[block_size].
INLINE float* scales_of(const upwell_cache& c, uint8_t* head) {
    return (float*)(head + padded_head(c.head_dim) * c.block_size * cache_item_bytes(c.kind));
}

INLINE int64_t key_index(const upwell_cache& c, int64_t offset, int64_t i) {
    int64_t d = padded_head(c.head_dim);
    if (has_scales(c.kind)) return ((offset / 16 * (d / 2) + i / 2) * 16 + offset % 16) * 2 + i % 2;
    return (offset / 16 * d + i) * 16 + offset % 16;
}

INLINE int64_t value_index(const upwell_cache& c, int64_t offset, int64_t i) {
    int64_t d = padded_head(c.head_dim);
    return has_scales(c.kind) ? (offset / 2 * d + i) * 2 + offset % 2 : offset * d + i;
}

template <int KIND>
struct Integer {
    using Item = int16_t;
};
template <>
struct Integer<UPWELL_KV_I8> {
    using Item = int8_t;
};

// What rounding x gave, or the greatest finite half if it gave an infinity that x is not.
INLINE uint16_t finite_half(uint16_t half, float x) {
    bool overflowed = (half & 0x7fff) == 0x7c00 && __builtin_fabsf(x) < __builtin_inff();
    return (uint16_t)(half - overflowed);
}

// Store one head's row, zeros beyond the head size included. A token's numbers lie apart, beside those of its
// neighbours, which another thread may be storing.
template <int KIND>
static void store_head_as(const upwell_cache& c, uint8_t* head, int64_t offset, const float* x, bool is_value) {
    int64_t d = padded_head(c.head_dim), at = is_value ? value_index(c, offset, 0) : key_index(c, offset, 0);
    if (KIND == UPWELL_KV_F32 || KIND == UPWELL_KV_F16) {
        alignas(64) uint16_t halves[kMaxHead];
        if (KIND == UPWELL_KV_F16)
            for (int64_t i = 0; i < d; i += kLanes) hstore(halves + i, fload(x + i));
        for (int64_t i = 0, step = is_value ? 1 : 16; i < d; i++) {
            if (KIND == UPWELL_KV_F32) ((float*)head)[at + i * step] = one_nan(x[i]);
            else ((uint16_t*)head)[at + i * step] = finite_half(halves[i], x[i]);
        }
        return;
    }
    using Item = typename Integer<KIND>::Item;
    F peak = fset(0), sound = fset(0);  // NaN from then on if a number is NaN or infinite
    for (int64_t i = 0; i < d; i += kLanes)
        peak = fmax(peak, fabs_(fload(x + i))), sound = fma(fload(x + i), fset(0), sound);
    float range = is_value ? value_range(KIND) : key_range(KIND);
    float top = fpeak(peak), inverse = top > kTinyHead ? range / top : 0;
    // A NaN among scores makes a weight NaN, and with it the weights' total. The greatest of the weighted scales of
    // values could lose a NaN, but no infinity, since the weight of what is seen is above 0.
    float spoilt = is_value ? __builtin_inff() : __builtin_nanf("");
    scales_of(c, head)[offset] = fsum(sound) == 0 ? top / range : spoilt;
    alignas(64) Item ints[kMaxHead];
    for (int64_t i = 0; i < d; i += kLanes) {
        I y = to_int(fmul(fload(x + i), fset(inverse)));
        if constexpr (KIND == UPWELL_KV_I8) store_i8(ints + i, y);
        else store_i16(ints + i, y);
    }
    Item* to = (Item*)head + at;
    if (is_value) {
        for (int64_t i = 0; i < d; i++) to[2 * i] = ints[i];
    } else {
        for (int64_t i = 0; i < d; i += 2) __builtin_memcpy(to + 16 * i, ints + i, 2 * sizeof(Item));
    }
}

static void store_head(const upwell_cache& c, uint8_t* head, int64_t offset, const float* x, bool is_value) {
    switch (c.kind) {
        case UPWELL_KV_F32: return store_head_as<UPWELL_KV_F32>(c, head, offset, x, is_value);
        case UPWELL_KV_F16: return store_head_as<UPWELL_KV_F16>(c, head, offset, x, is_value);
        case UPWELL_KV_I16: return store_head_as<UPWELL_KV_I16>(c, head, offset, x, is_value);
        default: return store_head_as<UPWELL_KV_I8>(c, head, offset, x, is_value);
    }
}

// Keys are normalised and rotated on their way if there are a weight and a table.
static void run_write_kv(const Work& work, const upwell_batch& batch, const upwell_cache& c, const float* k,
                         int64_t k_ld, const float* v, int64_t v_ld, const float* norm, float eps,
                         const RopeTable& rope) {
    alignas(64) float row[kMaxHead];
    int64_t d = c.head_dim;
    for (int64_t i = 0; i < kMaxHead; i++) row[i] = 0;
    for (Range range = work.next(batch.num_tokens); range.more(); range = work.next(batch.num_tokens))
        for (int64_t t = range.first; t < range.last; t++) {
            int64_t block = batch.slots[t] / c.block_size, offset = batch.slots[t] % c.block_size;
            for (int64_t h = 0; h < c.kv_heads; h++) {
                prepare_head(k + t * k_ld + h * d, d, norm, eps, rope, batch.positions ? batch.positions[t] : 0, row);
                store_head(c, head_of(c, c.k, block, h), offset, row, false);
                __builtin_memcpy(row, v + t * v_ld + h * d, sizeof(float) * (size_t)d);
                store_head(c, head_of(c, c.v, block, h), offset, row, true);
            }
        }
}

static void read_cache(const upwell_cache& c, int64_t num_blocks, bool is_value, float* out) {
    for (int64_t block = 0; block < num_blocks; block++)
        for (int64_t offset = 0; offset < c.block_size; offset++)
            for (int64_t h = 0; h < c.kv_heads; h++) {
                uint8_t* head = is_value ? head_of(c, c.v, block, h) : head_of(c, c.k, block, h);
                for (int64_t i = 0; i < c.head_dim; i++, out++) {
                    int64_t at = is_value ? value_index(c, offset, i) : key_index(c, offset, i);
                    uint16_t half[16] = {0};
                    switch (c.kind) {
                        case UPWELL_KV_F32: *out = ((float*)head)[at]; break;
                        case UPWELL_KV_F16:
                            half[0] = ((uint16_t*)head)[at];
                            *out = lane(hload(half), 0);
                            break;
                        case UPWELL_KV_I16: *out = (float)((int16_t*)head)[at] * scales_of(c, head)[offset]; break;
                        default: *out = (float)((int8_t*)head)[at] * scales_of(c, head)[offset];
                    }
                }
            }
}

}  // namespace
