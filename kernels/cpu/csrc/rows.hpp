// Operations that treat each row on its own.
#pragma once
#include "activation.hpp"
#include "formats.hpp"
#include "math.hpp"
#include "w8a8.hpp"
#include "work.hpp"

namespace {

INLINE int lanes_left(int64_t n, int64_t at) { return n - at < kLanes ? (int)(n - at) : kLanes; }

// 1 / sqrt(mean(x^2) + eps) of n numbers: four running sums of sixteen lanes, in an order fixed by n.
INLINE float inverse_rms(const float* x, int64_t n, float eps) {
    F s[4] = {fset(0), fset(0), fset(0), fset(0)};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++) {
            F y = fload(x + i + 16 * j);
            s[j] = fma(y, y, s[j]);
        }
    for (int j = 0; i < n; i += kLanes, j++) {
        F y = fload_n(x + i, lanes_left(n, i));
        s[j] = fma(y, y, s[j]);
    }
    float mean = fsum(fadd(fadd(s[0], s[1]), fadd(s[2], s[3]))) / (float)n;
    return 1.0f / __builtin_sqrtf(mean + eps);
}

// out = x * inverse * weight; may be in place.
INLINE void scale_row(const float* x, const float* weight, float inverse, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i += kLanes) {
        int lanes = lanes_left(n, i);
        fstore_n(out + i, fmul(fmul(fload_n(x + i, lanes), fset(inverse)), fload_n(weight + i, lanes)), lanes);
    }
}

// Rotate pairs (x[i], x[i + d/2]); cosines and sines of this position, d/2 each. May be in place.
INLINE void rotate(const float* x, const float* cosine, const float* sine, int64_t d, float* out) {
    int64_t half = d / 2;
    for (int64_t i = 0; i < half; i += kLanes) {
        int lanes = lanes_left(half, i);
        F a = fload_n(x + i, lanes), b = fload_n(x + half + i, lanes);
        F c = fload_n(cosine + i, lanes), s = fload_n(sine + i, lanes);
        fstore_n(out + i, fsub(fmul(a, c), fmul(b, s)), lanes);
        fstore_n(out + half + i, fma(a, s, fmul(b, c)), lanes);
    }
}

struct RopeTable {
    const float* table;  // f32[2, positions, d/2]
    int64_t positions;
    const float* cosine(int64_t p, int64_t d) const { return table + p * (d / 2); }
    const float* sine(int64_t p, int64_t d) const { return table + (positions + p) * (d / 2); }
};

// A head's row on its way to the cache or to attention: normalised if there is a weight, rotated if there is a table.
INLINE void prepare_head(const float* x, int64_t d, const float* norm, float eps, const RopeTable& rope,
                         int64_t position, float* out) {
    if (norm) {
        scale_row(x, norm, inverse_rms(x, d, eps), d, out);
        x = out;
    }
    if (rope.table) rotate(x, rope.cosine(position, d), rope.sine(position, d), d, out);
    else if (x != out) __builtin_memcpy(out, x, sizeof(float) * (size_t)d);
}

// Writes y, a whole row of n numbers, as int8 if the rows have it.
INLINE void finish_row(const upwell_rows& out, int64_t row, const float* y, int64_t n) {
    if (out.tokens) quantise_token(y, n, token_of(out.tokens, row, n));
    if (!out.q) return;
    int64_t blocks = (n + 31) / 32;
    Block* q = row_of(out.q, row, blocks);
    quantise_row(y, n, q, 0, blocks);
    mark_row(q, blocks);
}

// Rows that were quantised piece by piece.
static void run_mark(const Work& work, const upwell_rows& rows, int64_t columns, int64_t count) {
    int64_t blocks = (columns + 31) / 32;
    for (Range range = work.next(count); range.more(); range = work.next(count))
        for (int64_t r = range.first; r < range.last; r++) mark_row(row_of(rows.q, r, blocks), blocks);
}

// sum = x + residual (x alone without one); out = sum * inverse_rms(sum) * weight, for each head of each row.
static void run_norm(const Work& work, const upwell_rows& in, const float* residual, const float* weight, float* sum,
                     const upwell_rows& out, int64_t columns, int64_t heads, float eps, int64_t rows) {
    float* y = (float*)work.scratch;
    for (Range range = work.next(rows); range.more(); range = work.next(rows))
        for (int64_t r = range.first; r < range.last; r++)
            for (int64_t h = 0; h < heads; h++) {
                const float* x = in.x + r * in.ld + h * columns;
                float* to = out.x ? out.x + r * out.ld + h * columns : y;
                if (residual) {
                    float* total = sum + r * columns;
                    for (int64_t i = 0; i < columns; i += kLanes) {
                        int lanes = lanes_left(columns, i);
                        F t = fadd(fload_n(x + i, lanes), fload_n(residual + r * columns + i, lanes));
                        fstore_n(total + i, t, lanes);
                    }
                    x = total;
                }
                scale_row(x, weight, inverse_rms(x, columns, eps), columns, to);
                if (heads == 1) finish_row(out, r, to, columns);
            }
}

static void run_quantise(const Work& work, const upwell_rows& rows, int64_t columns, int64_t count) {
    for (Range range = work.next(count); range.more(); range = work.next(count))
        for (int64_t r = range.first; r < range.last; r++) finish_row(rows, r, rows.x + r * rows.ld, columns);
}

static void run_silu_mul(const Work& work, const float* x, int64_t ld, const upwell_rows& out, int64_t columns,
                         int64_t rows) {
    float* scratch = (float*)work.scratch;
    for (Range range = work.next(rows); range.more(); range = work.next(rows))
        for (int64_t r = range.first; r < range.last; r++) {
            float* y = out.x ? out.x + r * out.ld : scratch;
            const float* gate = x + r * ld;
            for (int64_t i = 0; i < columns; i += kLanes) {
                int lanes = lanes_left(columns, i);
                fstore_n(y + i, silu_times(fload_n(gate + i, lanes), fload_n(gate + columns + i, lanes)), lanes);
            }
            finish_row(out, r, y, columns);
        }
}

static void run_rope(const Work& work, const upwell_batch& batch, const float* x, int64_t ld, float* out,
                     int64_t out_ld, int64_t heads, int64_t d, const RopeTable& rope) {
    for (Range range = work.next(batch.num_tokens); range.more(); range = work.next(batch.num_tokens))
        for (int64_t t = range.first; t < range.last; t++)
            for (int64_t h = 0; h < heads; h++)
                rotate(x + t * ld + h * d, rope.cosine(batch.positions[t], d), rope.sine(batch.positions[t], d), d,
                       out + t * out_ld + h * d);
}

static void run_gather(const Work& work, const upwell_batch& batch, const float* x, int64_t ld, const upwell_rows& out,
                       int64_t columns) {
    for (Range range = work.next(batch.num_rows); range.more(); range = work.next(batch.num_rows))
        for (int64_t r = range.first; r < range.last; r++) {
            const float* from = x + batch.logit_rows[r] * ld;
            if (out.x) __builtin_memcpy(out.x + r * out.ld, from, sizeof(float) * (size_t)columns);
            finish_row(out, r, from, columns);
        }
}

// One row of a packed matrix as float32, as the format defines it: scale * code + minimum, or scale * (code - zero).
static void unpack_row(const upwell_matrix& m, int64_t row, float* out);

static void run_embed(const Work& work, const upwell_batch& batch, const upwell_matrix& m, float* out, int64_t ld) {
    for (Range range = work.next(batch.num_tokens); range.more(); range = work.next(batch.num_tokens))
        for (int64_t t = range.first; t < range.last; t++) unpack_row(m, batch.token_ids[t], out + t * ld);
}

INLINE float half_of(const uint8_t* p, int lane_index) {
    uint16_t bits[16] = {0};
    __builtin_memcpy(bits, p + 2 * lane_index, 2);
    return lane(hload(bits), 0);
}

static void unpack_row(const upwell_matrix& m, int64_t row, float* out) {
    int64_t l = row % kLanes, upper = row % kPanelRows / kLanes;
    const uint8_t* panel = m.panels + row / kPanelRows * panel_bytes(m.format, m.k);
    if (m.format == UPWELL_W8A8) return w8a8_unpack_row(panel, row % kPanelRows, m.k, out);
    const uint8_t* half = panel + upper * span_of(m.format).bytes;
    for (int64_t k = 0; k < m.k; k += 32) {
        int64_t b = k / 32, n = m.k - k < 32 ? m.k - k : 32;
        if (m.format == UPWELL_F32 || m.format == UPWELL_F16 || m.format == UPWELL_BF16) {
            for (int64_t i = 0; i < n; i++) {
                if (m.format == UPWELL_F32) {
                    __builtin_memcpy(out + k + i, half + 128 * (k + i) + 4 * l, 4);
                } else if (m.format == UPWELL_F16) {
                    out[k + i] = half_of(half + 64 * (k + i), (int)l);
                } else {
                    uint32_t bits = 0;
                    __builtin_memcpy((uint8_t*)&bits + 2, half + 64 * (k + i) + 2 * l, 2);
                    __builtin_memcpy(out + k + i, &bits, 4);
                }
            }
            continue;
        }
        alignas(64) StagedBlock block;
        float scale, minimum = 0, zero = 0;
        if (m.format == UPWELL_Q4_0) {
            stage<Q4_0>(half, b, &block);
            zero = 8;
        } else if (m.format == UPWELL_Q4_1) {
            stage<Q4_1>(half, b, &block);
            minimum = half_of(half + 2 * b * Q4_1::kBytes + 288, (int)l);
        } else if (m.format == UPWELL_Q8_0) {
            stage<Q8_0>(half, b, &block);
            zero = 128;
        } else if (m.format == UPWELL_Q4_K) {
            stage<Q4_K>(half, b, &block);
            const uint8_t* p = half + 2 * (b >> 3) * Q4_K::kBytes + 2048;
            minimum = -(half_of(p + 288, (int)l) * (float)p[128 + 16 * (b & 7) + l]);
        } else {
            stage<Q6_K>(half, b, &block);
            zero = 32;
        }
        for (int i = 0; i < 32; i++) {
            scale = block.scale[m.format == UPWELL_Q6_K && i >= 16][l];
            float product = ((float)block.codes[i / 4][4 * l + i % 4] - zero) * scale;
            out[k + i] = product + minimum;
        }
    }
}

}  // namespace
