// Paged attention: softmax(q k^T * scale) v, online over tiles of 128 tokens aligned to absolute positions.
//
// A tile's scores and its weighted sum of values are integer products in the integer caches, so exact; the rest of a
// query's arithmetic (its own scale, maximum, sum, correction) has an order fixed by position. Which queries share the
// load of a tile, and in how many pieces a prompt came, enters nowhere. A token that a query does not see has weight 0.
//
// Ranges, for a head of d <= 64 dimensions: keys 14 bits, queries 13 bits: 64 * 8191 * 4095 < 2**31; queries lose a bit
// at 128 dimensions and another at 256. Weights 14 bits, values 12 bits: 128 * 8191 * 2047 < 2**31.
// Source of the online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
#pragma once
#include "cache.hpp"

namespace {

constexpr int kTile = 128;
constexpr int kTileVectors = kTile / kLanes;
constexpr int kQueryRows = 48;  // queries times heads of a group that share the load of a tile

struct AttentionScratch {
    alignas(64) float out[kQueryRows][kMaxHead];
    alignas(64) float scores[kQueryRows][kTile];
    alignas(64) float query[kQueryRows][kMaxHead];
    alignas(64) int16_t query_ints[kQueryRows][kMaxHead];
    alignas(64) int16_t weights[kQueryRows][kTile];
    alignas(64) float row[kMaxHead];
    float query_scale[kQueryRows], peak[kQueryRows], total[kQueryRows], weight_scale[kQueryRows];
    int64_t position[kQueryRows];
    const uint8_t* keys[kTileVectors];    // of 16 tokens each
    const uint8_t* values[kTileVectors];
    const float* key_scales[kTileVectors];
    const float* value_scales[kTileVectors];
};

template <int KIND>
INLINE I load_pairs(const uint8_t* p, int64_t vector) {
    return KIND == UPWELL_KV_I8 ? load_i8_pairs((const int8_t*)p + 32 * vector) : iload((const int16_t*)p + 32 * vector);
}
template <int KIND>
INLINE F load_floats(const uint8_t* p, int64_t at) {
    return KIND == UPWELL_KV_F16 ? hload((const uint16_t*)p + at) : fload((const float*)p + at);
}

// Scores of R queries with P vectors of 16 keys, not scaled yet.
template <int KIND, int R, int P>
INLINE void score_tile(AttentionScratch* s, int row, int vector, int64_t d) {
    if (KIND == UPWELL_KV_I16 || KIND == UPWELL_KV_I8) {
        I c[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) c[r][p] = izero();
        for (int64_t i = 0; i < d / 2; i++) {
            I k[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) k[p] = load_pairs<KIND>(s->keys[vector + p], i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                I q = in_register(spread(&s->query_ints[row + r][2 * i]));
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) c[r][p] = dot2(c[r][p], k[p], q);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
                fstore(s->scores[row + r] + 16 * (vector + p), fmul(to_float(c[r][p]), fload(s->key_scales[vector + p])));
    } else {
        F c[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) c[r][p] = fset(0);
        for (int64_t i = 0; i < d; i++) {
            F k[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) k[p] = load_floats<KIND>(s->keys[vector + p], 16 * i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                F q = fset(s->query[row + r][i]);
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) c[r][p] = fma(k[p], q, c[r][p]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) fstore(s->scores[row + r] + 16 * (vector + p), c[r][p]);
    }
}

template <int KIND, int P>
INLINE void score_rows(AttentionScratch* s, int rows, int vector, int64_t d) {
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) score_tile<KIND, kTileRows, P>(s, r, vector, d);
    if constexpr (kTileRows > 3)
        for (; r + 3 <= rows; r += 3) score_tile<KIND, 3, P>(s, r, vector, d);
    for (; r < rows; r++) score_tile<KIND, 1, P>(s, r, vector, d);
}

// Lanes of the vector that begins at `at` which lie in [from, to).
struct Lanes {
    int first, last;
    Lanes(int64_t at, int64_t from, int64_t to) : first(within(from - at)), last(within(to - at)) {}
    static int within(int64_t lane) { return lane < 0 ? 0 : lane > kLanes ? kLanes : (int)lane; }
};

// The eight vectors of a tile folded into one, neighbours first.
template <class Fold>
INLINE F over_tile(const F (&x)[kTileVectors], const Fold& fold) {
    F a = fold(fold(x[0], x[1]), fold(x[2], x[3])), b = fold(fold(x[4], x[5]), fold(x[6], x[7]));
    return fold(a, b);
}

// From a row's scores to its weights: updates peak and total, scales what has been summed so far. A query that sees the
// WHOLE tile has the same arithmetic as another, without the masks.
template <int KIND, bool WHOLE>
static void weigh(AttentionScratch* s, int r, int64_t from, int64_t to, int num_vectors, int64_t d) {
    constexpr bool INTEGER = KIND == UPWELL_KV_I16 || KIND == UPWELL_KV_I8;
    const int vectors = WHOLE ? kTileVectors : num_vectors;
    const F never = fset(-__builtin_inff());
    F x[kTileVectors], p[kTileVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; v++) {
        x[v] = v < vectors ? fload(s->scores[r] + 16 * v) : never;
        Lanes seen(16 * v, from, to);
        if (!WHOLE) x[v] = keep_lanes(x[v], seen.first, seen.last, never);
    }
    // The scale is 0 or above, so that it keeps the order of what it scales.
    float before = s->peak[r], greatest = fpeak(over_tile(x, fmax)), scaled = greatest * s->query_scale[r];
    float after = greatest == -__builtin_inff() || scaled < before ? before : scaled;
    float anchor = after == -__builtin_inff() ? 0.0f : after;
    F scale = fset(s->query_scale[r]), minus = fset(-anchor);
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; v++) {
        Lanes seen(16 * v, from, to);
        p[v] = exp2_quick(fma(x[v], scale, minus));
        if (!WHOLE) p[v] = keep_lanes(p[v], seen.first, seen.last, fset(0));
        if (!INTEGER) continue;
        x[v] = v < vectors ? fmul(p[v], fload(s->value_scales[v])) : fset(0);
        if (!WHOLE) x[v] = keep_lanes(x[v], seen.first, seen.last, fset(0));
    }
    float correction = lane(exp2_quick(fset(before - anchor)), 0);
    s->peak[r] = after;
    s->total[r] = s->total[r] * correction + fsum(over_tile(p, fadd));
    if (INTEGER) {
        float largest = fpeak(over_tile(x, fmax));
        F inverse = fset(largest > 0 ? 8191.0f / largest : 0.0f);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) store_i16(s->weights[r] + 16 * v, to_int(fmul(x[v], inverse)));
        s->weight_scale[r] = largest / 8191.0f;
    } else {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) fstore(s->scores[r] + 16 * v, p[v]);
    }
    if (correction != 1.0f)
        for (int64_t i = 0; i < d; i += kLanes) fstore(s->out[r] + i, fmul(fload(s->out[r] + i), fset(correction)));
}

// Adds the weighted values of a tile's `tokens` tokens to R rows of the output, P vectors of 16 dimensions.
template <int KIND, int R, int P>
INLINE void value_tile(AttentionScratch* s, int row, int64_t dim, int tokens, int64_t d) {
    if (KIND == UPWELL_KV_I16 || KIND == UPWELL_KV_I8) {
        I c[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) c[r][p] = izero();
        for (int t = 0; t < tokens; t += 2) {
            const uint8_t* values = s->values[t / 16];
            I v[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) v[p] = load_pairs<KIND>(values, t % 16 / 2 * (d / 16) + dim / 16 + p);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                I w = in_register(spread(&s->weights[row + r][t]));
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) c[r][p] = dot2(c[r][p], v[p], w);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                float* out = s->out[row + r] + dim + 16 * p;
                fstore(out, fma(to_float(c[r][p]), fset(s->weight_scale[row + r]), fload(out)));
            }
    } else {
        F c[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) c[r][p] = fload(s->out[row + r] + dim + 16 * p);
        for (int t = 0; t < tokens; t++) {
            const uint8_t* values = s->values[t / 16];
            F v[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) v[p] = load_floats<KIND>(values, t % 16 * d + dim + 16 * p);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                F w = fset(s->scores[row + r][t]);
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) c[r][p] = fma(v[p], w, c[r][p]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) fstore(s->out[row + r] + dim + 16 * p, c[r][p]);
    }
}

template <int KIND, int P>
INLINE void value_rows(AttentionScratch* s, int rows, int64_t dim, int tokens, int64_t d) {
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) value_tile<KIND, kTileRows, P>(s, r, dim, tokens, d);
    if constexpr (kTileRows > 3)
        for (; r + 3 <= rows; r += 3) value_tile<KIND, 3, P>(s, r, dim, tokens, d);
    for (; r < rows; r++) value_tile<KIND, 1, P>(s, r, dim, tokens, d);
}

struct AttentionCall {
    const upwell_cache* cache;
    const float* q;
    int64_t q_ld;
    upwell_rows out;
    int64_t heads;
    float scale;
    int64_t window;  // 0: none
    RopeTable rope;
    const float* norm;
    float eps;
};

INLINE void fetch(const uint8_t* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

// One tile of keys and values for all rows of the scratch.
template <int KIND>
static void attend_tile(const upwell_cache& c, const int32_t* blocks, int64_t head, int64_t first, int64_t kv_len,
                        int64_t window, int rows, AttentionScratch* s) {
    int64_t d = padded_head(c.head_dim), item = cache_item_bytes(KIND);
    int tokens = kv_len - first < kTile ? (int)(kv_len - first) : kTile, vectors = (tokens + 15) / 16;
    for (int v = 0; v < vectors; v++) {
        int64_t at = first + 16 * v, block = blocks[at / c.block_size], offset = at % c.block_size;
        uint8_t* k = head_of(c, c.k, block, head);
        uint8_t* x = head_of(c, c.v, block, head);
        s->keys[v] = k + offset * d * item;
        s->values[v] = x + offset * d * item;
        if (has_scales(KIND)) s->key_scales[v] = scales_of(c, k) + offset, s->value_scales[v] = scales_of(c, x) + offset;
    }
    // Fetch the values while the scores are computed, and the next tile's keys while the values are summed.
    for (int u = 0; u < vectors; u++) fetch(s->values[u], 16 * d * item);
    int v = 0;
    if (rows < kTileRows || kTileRows >= 6)
        for (; v + 4 <= vectors; v += 4) score_rows<KIND, 4>(s, rows, v, d);
    for (; v + 2 <= vectors; v += 2) score_rows<KIND, 2>(s, rows, v, d);
    for (; v < vectors; v++) score_rows<KIND, 1>(s, rows, v, d);
    for (int r = 0; r < rows; r++) {
        int64_t to = s->position[r] + 1 - first, from = window ? to - window : 0;
        if (from <= 0 && to >= kTile) weigh<KIND, true>(s, r, 0, kTile, kTileVectors, d);
        else weigh<KIND, false>(s, r, from, to, vectors, d);
    }
    for (int64_t at = first + kTile; at < kv_len && at < first + 2 * kTile; at += 16)
        fetch(head_of(c, c.k, blocks[at / c.block_size], head) + at % c.block_size * d * item, 16 * d * item);
    int64_t i = 0;
    for (; i + 64 <= d; i += 64) value_rows<KIND, 4>(s, rows, i, tokens, d);
    for (; i < d; i += 16) value_rows<KIND, 1>(s, rows, i, tokens, d);
}

// Queries [t0, t1) of one sequence, whose first lies at position `position`, for the heads of one key head.
template <int KIND>
static void attend(const AttentionCall& a, const int32_t* blocks, int64_t kv_head, int64_t t0, int64_t t1,
                   int64_t position, AttentionScratch* s) {
    const upwell_cache& c = *a.cache;
    int64_t d = c.head_dim, padded = padded_head(d), group = a.heads / c.kv_heads;
    int rows = (int)((t1 - t0) * group);
    float range = padded <= 64 ? 4095.0f : padded <= 128 ? 2047.0f : 1023.0f;
    if (KIND == UPWELL_KV_I8) range = 8191.0f;
    for (int r = 0; r < rows; r++) {
        int64_t t = t0 + r / group, head = kv_head * group + r % group;
        for (int64_t i = d; i < padded; i++) s->row[i] = 0;
        s->position[r] = position + r / group;
        prepare_head(a.q + t * a.q_ld + head * d, d, a.norm, a.eps, a.rope, s->position[r], s->row);
        F peak = fset(0), sum = fset(0), factor = fset(a.scale * 1.44269504089f);
        for (int64_t i = 0; i < padded; i += kLanes) {
            F x = fmul(fload(s->row + i), factor);
            fstore(s->query[r] + i, x);
            fstore(s->out[r] + i, fset(0));
            peak = fmax(peak, fabs_(x));
            sum = fadd(sum, x);
        }
        float top = fpeak(peak), total = fsum(sum);
        F inverse = fset(top > 0 ? range / top : 0.0f);
        for (int64_t i = 0; i < padded; i += kLanes)
            store_i16(s->query_ints[r] + i, to_int(fmul(fload(s->query[r] + i), inverse)));
        s->query_scale[r] = !has_scales(KIND) ? 1.0f : total - total == 0 ? top / range : total - total;
        s->peak[r] = -__builtin_inff();
        s->total[r] = 0;
    }
    int64_t end = position + (t1 - t0), first = a.window && position - a.window + 1 > 0 ? position - a.window + 1 : 0;
    for (int64_t tile = first / kTile * kTile; tile < end; tile += kTile)
        attend_tile<KIND>(c, blocks, kv_head, tile, end, a.window, rows, s);
    for (int r = 0; r < rows; r++) {
        int64_t t = t0 + r / group, column = (kv_head * group + r % group) * d;
        F divisor = fset(s->total[r]);
        float* y = a.out.x ? a.out.x + t * a.out.ld + column : s->row;
        for (int64_t i = 0; i < d; i += kLanes)
            fstore_n(y + i, fdiv(fload(s->out[r] + i), divisor), lanes_left(d, i));
        if (a.out.q) {
            int64_t of_row = (a.heads * d + 31) / 32;
            quantise_row(y, d, row_of(a.out.q, t, of_row), column / 32, of_row);
        }
    }
}

static void run_attention(const Work& work, const upwell_batch& batch, const AttentionCall& a) {
    AttentionScratch* s = (AttentionScratch*)work.scratch;
    int64_t kv_heads = a.cache->kv_heads, group = a.heads / kv_heads;
    int64_t step = kQueryRows / group > 0 ? kQueryRows / group : 1;  // queries a piece
    // Items: of each sequence all pieces for one key head, then for the next, so that a head's cache stays near.
    auto pieces_of = [&](int64_t b) { return (batch.q_starts[b + 1] - batch.q_starts[b] + step - 1) / step; };
    int64_t items = 0, before = 0, b = 0;
    for (int64_t i = 0; i < batch.num_seqs; i++) items += pieces_of(i) * kv_heads;
    for (Range range = work.next(items); range.more(); range = work.next(items))
        for (int64_t item = range.first; item < range.last; item++) {
            if (item < before) before = b = 0;
            while (item - before >= pieces_of(b) * kv_heads) before += pieces_of(b++) * kv_heads;
            int64_t num = batch.q_starts[b + 1] - batch.q_starts[b], pieces = pieces_of(b);
            int64_t head = (item - before) / pieces, q0 = (item - before) % pieces * step;
            int64_t q1 = q0 + step < num ? q0 + step : num;
            int64_t position = batch.kv_lens[b] - num + q0, t = batch.q_starts[b];
            const int32_t* blocks = batch.block_table + b * batch.max_blocks;
            switch (a.cache->kind) {
                case UPWELL_KV_F32: attend<UPWELL_KV_F32>(a, blocks, head, t + q0, t + q1, position, s); break;
                case UPWELL_KV_F16: attend<UPWELL_KV_F16>(a, blocks, head, t + q0, t + q1, position, s); break;
                case UPWELL_KV_I16: attend<UPWELL_KV_I16>(a, blocks, head, t + q0, t + q1, position, s); break;
                default: attend<UPWELL_KV_I8>(a, blocks, head, t + q0, t + q1, position, s);
            }
        }
}

}  // namespace
