// Paged attention: softmax(q k^T * scale) v, online over tiles of 128 tokens aligned to absolute positions.
//
// Tiles are summed in segments of 512 tokens, and segments in order: a few long sequences keep many threads busy.
//
// A tile's scores and its weighted sum of values are integer products in the integer caches, so exact; the rest of a
// query's arithmetic (its own scale, maximum, sum, correction) has an order fixed by position. Which queries share the
// load of a tile, and in how many pieces a prompt came, enters nowhere. A token that a query does not see has weight 0
// in the integer caches and no weight in the others, where 0 times what is infinite would be NaN.
//
// Ranges, for a head of d <= 64 dimensions: keys 14 bits, queries 13 bits: 64 * 8191 * 4095 < 2**31; queries lose a bit
// at 128 dimensions and another at 256. Weights 14 bits, values 12 bits: 128 * 8191 * 2047 < 2**31.
// Source of the online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
#pragma once
#include "cache.hpp"

namespace {

constexpr int kTile = 128;
constexpr int kTileVectors = kTile / kLanes;

// Weights of a tile count as zeros if none, times its value's scale, is above this: 8191 / it might be infinite. Scales
// are above kTinyHead / 2047, so weights that matter are too.
constexpr float kTinyWeight = 1e-34f;

// What rows have summed up of their softmax: the greatest score, the weights' total, the weighted values.
struct Softmax {
    float *peak, *total, *out;
    int64_t ld;  // of out
};

struct AttentionScratch {
    alignas(64) float out[kQueryRows][kMaxHead];  // of a segment, with peak and total
    alignas(64) float whole_out[kQueryRows][kMaxHead];
    alignas(64) float scores[kQueryRows][kTile];
    alignas(64) float query[kQueryRows][kMaxHead];
    alignas(64) int16_t query_ints[kQueryRows][kMaxHead];
    alignas(64) int16_t weights[kQueryRows][kTile];
    alignas(64) float row[kMaxHead];
    float query_scale[kQueryRows], peak[kQueryRows], total[kQueryRows], weight_scale[kQueryRows];
    float whole_peak[kQueryRows], whole_total[kQueryRows];
    int64_t position[kQueryRows];
    int from[kQueryRows], to[kQueryRows];  // tokens of the tile that a row sees
    const uint8_t* keys[kTileVectors];  // of 16 tokens each
    const uint8_t* values[kTileVectors];
    const float* key_scales[kTileVectors];
    const float* value_scales[kTileVectors];
    const uint8_t* ahead[kTileVectors];  // keys of the tile that comes next
    int num_ahead;
    Softmax segment() { return {peak, total, out[0], kMaxHead}; }
    Softmax whole() { return {whole_peak, whole_total, whole_out[0], kMaxHead}; }
};

template <int KIND>
INLINE I load_pairs(const uint8_t* p, int64_t vector) {
    return KIND == UPWELL_KV_I8 ? load_i8_pairs((const int8_t*)p + 32 * vector)
                                : iload((const int16_t*)p + 32 * vector);
}
template <int KIND>
INLINE F load_floats(const uint8_t* p, int64_t at) {
    return KIND == UPWELL_KV_F16 ? hload((const uint16_t*)p + at) : fload((const float*)p + at);
}

// Scores of R queries with P vectors of 16 keys, not scaled yet. The first rows' fetch the values of the same tokens
// meanwhile, line by line.
template <int KIND, int R, int P>
INLINE void score_tile(AttentionScratch* s, int row, int vector, int64_t d) {
    const int64_t line = row ? 0 : 16 * cache_item_bytes(KIND) * (has_scales(KIND) ? 2 : 1);
#define UPWELL_FETCH(I) \
    if (line)           \
        _Pragma("GCC unroll 8") for (int p = 0; p < P; p++) __builtin_prefetch(s->values[vector + p] + (I) * line);
    if (KIND == UPWELL_KV_I16 || KIND == UPWELL_KV_I8) {
        I c[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) c[r][p] = izero();
        for (int64_t i = 0; i < d / 2; i++) {
            UPWELL_FETCH(i)
            I k[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) k[p] = load_pairs<KIND>(s->keys[vector + p], i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                I q = spread(&s->query_ints[row + r][2 * i]);
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) c[r][p] = dot2(c[r][p], k[p], q);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
                fstore(s->scores[row + r] + 16 * (vector + p),
                       fmul(to_float(c[r][p]), fload(s->key_scales[vector + p])));
    } else {
        F c[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) c[r][p] = fset(0);
        for (int64_t i = 0; i < d; i++) {
            UPWELL_FETCH(i)
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
#undef UPWELL_FETCH
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
        F inverse = fset(largest > kTinyWeight ? 8191.0f / largest : 0.0f);
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

// Adds one token's weighted values to those of R rows that see it, or to ALL.
template <int KIND, int R, int P, bool ALL>
INLINE void add_value(const AttentionScratch* s, int row, int64_t dim, int t, int64_t d, F (&c)[R][P]) {
    const uint8_t* values = s->values[t / 16];
    F v[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) v[p] = load_floats<KIND>(values, t % 16 * d + dim + 16 * p);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        if (!ALL && (t < s->from[row + r] || t >= s->to[row + r])) continue;
        F w = fset(s->scores[row + r][t]);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) c[r][p] = fma(v[p], w, c[r][p]);
    }
}

// Fetches two tokens' share of the keys that come next.
template <int KIND>
INLINE void fetch_ahead(const AttentionScratch* s, int t, int64_t d) {
    const int64_t bytes = 2 * d * cache_item_bytes(KIND);
    const uint8_t* from = s->ahead[t / 16] + t % 16 / 2 * bytes;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

// Adds the weighted values of a tile's `tokens` tokens to R rows of the output, P vectors of 16 dimensions. The first
// of all fetch what comes next.
template <int KIND, int R, int P>
INLINE void value_tile(AttentionScratch* s, int row, int64_t dim, int tokens, int64_t d) {
    const int fetched = row || dim ? 0 : 16 * s->num_ahead;  // tokens
    if (KIND == UPWELL_KV_I16 || KIND == UPWELL_KV_I8) {
        I c[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) c[r][p] = izero();
        for (int t = 0; t < tokens; t += 2) {
            if (t < fetched) fetch_ahead<KIND>(s, t, d);
            const uint8_t* values = s->values[t / 16];
            I v[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) v[p] = load_pairs<KIND>(values, t % 16 / 2 * (d / 16) + dim / 16 + p);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                I w = spread(&s->weights[row + r][t]);
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
        int from = 0, to = tokens, t = 0;  // tokens that all rows see
        for (int r = 0; r < R; r++) {
            if (s->from[row + r] > from) from = s->from[row + r];
            if (s->to[row + r] < to) to = s->to[row + r];
        }
        for (; t < from; t++) add_value<KIND, R, P, false>(s, row, dim, t, d, c);
        for (; t < to; t++) {
            if (t < fetched && t % 2 == 0) fetch_ahead<KIND>(s, t, d);
            add_value<KIND, R, P, true>(s, row, dim, t, d, c);
        }
        for (; t < tokens; t++) add_value<KIND, R, P, false>(s, row, dim, t, d, c);
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
    uint8_t* partial;  // memory for segments that several threads compute, all zeros
    int64_t partial_bytes;
};

// Some queries of one sequence, for the heads of one key head.
struct Piece {
    const int32_t* blocks;
    int64_t head, t0, t1, position;  // rows of the batch, and where the first lies in its sequence
    int64_t end() const { return position + t1 - t0; }
    int64_t first_tile(int64_t window) const {
        return window && position - window + 1 > 0 ? (position - window + 1) / kTile * kTile : 0;
    }
    int64_t first_segment(int64_t window) const { return first_tile(window) / kSegment; }
    int64_t num_segments(int64_t window) const { return (end() - 1) / kSegment + 1 - first_segment(window); }
};

INLINE int tokens_of_tile(const Piece& piece, int64_t first) {
    return piece.end() - first < kTile ? (int)(piece.end() - first) : kTile;
}

// Notes where the keys of a tile lie that comes next, and fetches their scales, which are read all at once.
template <int KIND>
static void look_ahead(const upwell_cache& c, const Piece& piece, int64_t first, AttentionScratch* s) {
    int64_t d = padded_head(c.head_dim);
    s->num_ahead = (tokens_of_tile(piece, first) + 15) / 16;
    for (int v = 0; v < s->num_ahead; v++) {
        int64_t at = first + 16 * v, offset = at % c.block_size;
        uint8_t* keys = head_of(c, c.k, piece.blocks[at / c.block_size], piece.head);
        s->ahead[v] = keys + offset * d * cache_item_bytes(KIND);
        if (has_scales(KIND)) __builtin_prefetch(scales_of(c, keys) + offset);
    }
}

// One tile of keys and values of a piece, for all its rows. `next` is the piece that the thread comes to after this
// one, or null. Values are fetched while scores are computed, the next keys while values are summed: a thread that
// waits for one before it computes the other is as slow as both.
template <int KIND>
static void attend_tile(const upwell_cache& c, const Piece& piece, const Piece* next, int64_t first, int64_t window,
                        int rows, AttentionScratch* s) {
    const int32_t* blocks = piece.blocks;
    int64_t d = padded_head(c.head_dim), item = cache_item_bytes(KIND), head = piece.head;
    int tokens = tokens_of_tile(piece, first), vectors = (tokens + 15) / 16;
    for (int v = 0; v < vectors; v++) {
        int64_t at = first + 16 * v, block = blocks[at / c.block_size], offset = at % c.block_size;
        uint8_t* k = head_of(c, c.k, block, head);
        uint8_t* x = head_of(c, c.v, block, head);
        s->keys[v] = k + offset * d * item;
        s->values[v] = x + offset * d * item;
        if (!has_scales(KIND)) continue;
        s->key_scales[v] = scales_of(c, k) + offset, s->value_scales[v] = scales_of(c, x) + offset;
        __builtin_prefetch(s->value_scales[v]);
    }
    int v = 0;
    if (rows < kTileRows || kTileRows >= 6)
        for (; v + 4 <= vectors; v += 4) score_rows<KIND, 4>(s, rows, v, d);
    for (; v + 2 <= vectors; v += 2) score_rows<KIND, 2>(s, rows, v, d);
    for (; v < vectors; v++) score_rows<KIND, 1>(s, rows, v, d);
    for (int r = 0; r < rows; r++) {
        int64_t to = s->position[r] + 1 - first, from = window ? to - window : 0;
        s->from[r] = (int)(from < 0 ? 0 : from < tokens ? from : tokens);
        s->to[r] = (int)(to < 0 ? 0 : to < tokens ? to : tokens);
        if (from <= 0 && to >= kTile) weigh<KIND, true>(s, r, 0, kTile, kTileVectors, d);
        else weigh<KIND, false>(s, r, from, to, vectors, d);
    }
    s->num_ahead = 0;
    if (first + kTile < piece.end()) look_ahead<KIND>(c, piece, first + kTile, s);
    else if (next) look_ahead<KIND>(c, *next, next->first_tile(window), s);
    int64_t i = 0;
    for (; i + 64 <= d; i += 64) value_rows<KIND, 4>(s, rows, i, tokens, d);
    for (; i < d; i += 16) value_rows<KIND, 1>(s, rows, i, tokens, d);
    for (int t = tokens / 2 * 2; t < 16 * s->num_ahead; t += 2) fetch_ahead<KIND>(s, t, d);
}

INLINE void clear(const Softmax& sums, int rows, int64_t d) {
    for (int r = 0; r < rows; r++) {
        sums.peak[r] = -__builtin_inff();
        sums.total[r] = 0;
        for (int64_t i = 0; i < d; i += kLanes) fstore(sums.out + r * sums.ld + i, fset(0));
    }
}

// Adds the next segment to a sum. To one that was cleared it is added to the last bit.
static void join(const Softmax& whole, const Softmax& part, int rows, int64_t d) {
    for (int r = 0; r < rows; r++) {
        float peak = part.peak[r] > whole.peak[r] ? part.peak[r] : whole.peak[r];
        float anchor = peak == -__builtin_inff() ? 0.0f : peak;
        F by_whole = exp2_quick(fset(whole.peak[r] - anchor)), by_part = exp2_quick(fset(part.peak[r] - anchor));
        whole.peak[r] = peak;
        whole.total[r] = whole.total[r] * lane(by_whole, 0) + part.total[r] * lane(by_part, 0);
        for (int64_t i = 0; i < d; i += kLanes) {
            float* to = whole.out + r * whole.ld + i;
            fstore(to, fma(fload(part.out + r * part.ld + i), by_part, fmul(fload(to), by_whole)));
        }
    }
}

template <int KIND>
static void prepare_queries(const AttentionCall& a, const Piece& piece, AttentionScratch* s) {
    int64_t d = a.cache->head_dim, padded = padded_head(d), group = a.heads / a.cache->kv_heads;
    float range = padded <= 64 ? 4095.0f : padded <= 128 ? 2047.0f : 1023.0f;
    if (KIND == UPWELL_KV_I8) range = 8191.0f;
    for (int64_t r = 0; r < (piece.t1 - piece.t0) * group; r++) {
        int64_t t = piece.t0 + r / group, head = piece.head * group + r % group;
        for (int64_t i = d; i < padded; i++) s->row[i] = 0;
        s->position[r] = piece.position + r / group;
        prepare_head(a.q + t * a.q_ld + head * d, d, a.norm, a.eps, a.rope, s->position[r], s->row);
        F peak = fset(0), sound = fset(0), factor = fset(a.scale * 1.44269504089f);
        for (int64_t i = 0; i < padded; i += kLanes) {
            F x = fmul(fload(s->row + i), factor);
            fstore(s->query[r] + i, x);
            peak = fmax(peak, fabs_(x));
            sound = fma(x, fset(0), sound);
        }
        const bool is_sound = fsum(sound) == 0;
        if (!is_sound)
            for (int64_t i = 0; i < d; i++) s->query[r][i] = one_nan(s->query[r][i]);
        float top = fpeak(peak);
        F inverse = fset(top > kTinyHead ? range / top : 0.0f);
        for (int64_t i = 0; i < padded; i += kLanes)
            store_i16(s->query_ints[r] + i, to_int(fmul(fload(s->query[r] + i), inverse)));
        s->query_scale[r] = !has_scales(KIND) ? 1.0f : is_sound ? top / range : __builtin_nanf("");
    }
}

template <int KIND>
static void attend_segment(const AttentionCall& a, const Piece& piece, const Piece* next, int64_t segment, int rows,
                           AttentionScratch* s) {
    int64_t first = piece.first_tile(a.window), end = piece.end();
    clear(s->segment(), rows, padded_head(a.cache->head_dim));
    int64_t tile = segment * kSegment > first ? segment * kSegment : first;
    for (; tile < end && tile < (segment + 1) * kSegment; tile += kTile)
        attend_tile<KIND>(*a.cache, piece, next, tile, a.window, rows, s);
}

static void finish_queries(const AttentionCall& a, const Piece& piece, AttentionScratch* s) {
    int64_t d = a.cache->head_dim, group = a.heads / a.cache->kv_heads;
    for (int64_t r = 0; r < (piece.t1 - piece.t0) * group; r++) {
        int64_t t = piece.t0 + r / group, column = (piece.head * group + r % group) * d;
        F divisor = fset(s->whole_total[r]);
        float* y = a.out.x ? a.out.x + t * a.out.ld + column : s->row;
        for (int64_t i = 0; i < d; i += kLanes)
            fstore_n(y + i, fdiv(fload(s->whole_out[r] + i), divisor), lanes_left(d, i));
        if (a.out.q) {
            int64_t of_row = (a.heads * d + 31) / 32;
            quantise_row(y, d, row_of(a.out.q, t, of_row), column / 32, of_row);
        }
    }
}

template <int KIND>
static void attend(const AttentionCall& a, const Piece& piece, const Piece* next, AttentionScratch* s) {
    int rows = (int)((piece.t1 - piece.t0) * (a.heads / a.cache->kv_heads));
    int64_t d = padded_head(a.cache->head_dim), first = piece.first_segment(a.window);
    prepare_queries<KIND>(a, piece, s);
    clear(s->whole(), rows, d);
    for (int64_t i = 0; i < piece.num_segments(a.window); i++) {
        attend_segment<KIND>(a, piece, next, first + i, rows, s);
        join(s->whole(), s->segment(), rows, d);
    }
    finish_queries(a, piece, s);
}

// Where a thread leaves a segment for whoever computes the last of its piece. The counters have a place of their own,
// whatever the step: each is 0 between two calls.
struct Partial {
    std::atomic<int64_t>* done;  // of each piece: segments that are there
    float* slots;
    int64_t group, d, slot;
    explicit Partial(const AttentionCall& a)
        : done((std::atomic<int64_t>*)a.partial), slots((float*)(a.partial + 8 * kMaxPieces)),
          group(a.heads / a.cache->kv_heads), d(padded_head(a.cache->head_dim)), slot(partial_floats(group, d)) {}
    int64_t bytes(int64_t segments) const { return (uint8_t*)(slots + segments * slot) - (uint8_t*)done; }
    Softmax at(int64_t segment) const {
        float* first = slots + segment * slot;
        return {first + group * d, first + group * (d + 1), first, d};
    }
};

// One segment of a piece whose segments are `first` and those after it, and the whole of it if it is the last to come.
template <int KIND>
static void attend_part(const AttentionCall& a, const Piece& piece, const Partial& partial, int64_t of_piece,
                        int64_t first, int64_t index, AttentionScratch* s) {
    int rows = (int)partial.group;
    prepare_queries<KIND>(a, piece, s);
    attend_segment<KIND>(a, piece, nullptr, piece.first_segment(a.window) + index, rows, s);
    clear(partial.at(first + index), rows, partial.d);
    join(partial.at(first + index), s->segment(), rows, partial.d);
    int64_t num = piece.num_segments(a.window);
    if (partial.done[of_piece].fetch_add(1, std::memory_order_acq_rel) + 1 < num) return;
    partial.done[of_piece].store(0, std::memory_order_relaxed);  // for the next call
    clear(s->whole(), rows, partial.d);
    for (int64_t i = 0; i < num; i++) join(s->whole(), partial.at(first + i), rows, partial.d);
    finish_queries(a, piece, s);
}

// A step of one token for each of so few sequences that threads would have nothing to do: segments are the items.
// Returns false if it is not such a step, which all threads find alike.
template <int KIND>
static bool attend_in_parts(const Work& work, const upwell_batch& batch, const AttentionCall& a) {
    int64_t kv_heads = a.cache->kv_heads, pieces = batch.num_seqs * kv_heads, items = 0;
    if (work.threads == 1 || batch.num_tokens != batch.num_seqs || pieces >= kPiecesOfThread * work.threads)
        return false;
    auto piece_of = [&](int64_t b, int64_t head) {
        return Piece{batch.block_table + b * batch.max_blocks, head, b, b + 1, (int64_t)batch.kv_lens[b] - 1};
    };
    auto num_of = [&](int64_t b) { return piece_of(b, 0).num_segments(a.window); };
    for (int64_t b = 0; b < batch.num_seqs; b++) {
        if (batch.q_starts[b] != b) return false;  // a sequence has none, another one more
        items += kv_heads * num_of(b);
    }
    Partial partial(a);
    if (items == pieces || partial.bytes(items) > a.partial_bytes) return false;
    int64_t before = 0, b = 0;
    for (Range range = work.next(items); range.more(); range = work.next(items))
        for (int64_t item = range.first; item < range.last; item++) {
            if (item < before) before = b = 0;
            while (item - before >= kv_heads * num_of(b)) before += kv_heads * num_of(b++);
            int64_t num = num_of(b), head = (item - before) / num, index = (item - before) % num;
            attend_part<KIND>(a, piece_of(b, head), partial, b * kv_heads + head, before + head * num, index,
                              (AttentionScratch*)work.scratch);
        }
    return true;
}

template <int KIND>
static void attend_all(const Work& work, const upwell_batch& batch, const AttentionCall& a) {
    if (attend_in_parts<KIND>(work, batch, a)) return;
    int64_t kv_heads = a.cache->kv_heads, group = a.heads / kv_heads;
    int64_t step = kQueryRows / group > 0 ? kQueryRows / group : 1;  // queries a piece
    // Items: of each sequence all pieces for one key head, then for the next, so that a head's cache stays near.
    auto pieces_of = [&](int64_t b) { return (batch.q_starts[b + 1] - batch.q_starts[b] + step - 1) / step; };
    int64_t items = 0, before = 0, b = 0;
    for (int64_t i = 0; i < batch.num_seqs; i++) items += pieces_of(i) * kv_heads;
    auto piece_of = [&](int64_t item) {
        if (item < before) before = b = 0;
        while (item - before >= pieces_of(b) * kv_heads) before += pieces_of(b++) * kv_heads;
        int64_t t0 = batch.q_starts[b], t1 = batch.q_starts[b + 1], pieces = pieces_of(b);
        int64_t head = (item - before) / pieces, q0 = t0 + (item - before) % pieces * step;
        return Piece{batch.block_table + b * batch.max_blocks, head, q0, q0 + step < t1 ? q0 + step : t1,
                     batch.kv_lens[b] - (t1 - q0)};
    };
    for (Range range = work.next(items); range.more(); range = work.next(items)) {
        Piece piece = piece_of(range.first);
        for (int64_t item = range.first; item < range.last; item++) {
            bool more = item + 1 < range.last;
            Piece next = more ? piece_of(item + 1) : piece;
            attend<KIND>(a, piece, more ? &next : nullptr, (AttentionScratch*)work.scratch);
            piece = next;
        }
    }
}

static void run_attention(const Work& work, const upwell_batch& batch, const AttentionCall& a) {
    switch (a.cache->kind) {
        case UPWELL_KV_F32: return attend_all<UPWELL_KV_F32>(work, batch, a);
        case UPWELL_KV_F16: return attend_all<UPWELL_KV_F16>(work, batch, a);
        case UPWELL_KV_I16: return attend_all<UPWELL_KV_I16>(work, batch, a);
        default: return attend_all<UPWELL_KV_I8>(work, batch, a);
    }
}

}  // namespace
