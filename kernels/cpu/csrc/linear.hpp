// Products with packed weights.
//
// A row's result is a sum over blocks of 32 columns in order, each block an exact integer sum scaled in float32. It is
// the same sum whether the row travels alone or with a thousand others: the tiles below differ in how many rows share
// a load of the weights, and in nothing that enters a row's arithmetic.
#pragma once
#include "activation.hpp"
#include "formats.hpp"
#include "math.hpp"
#include "work.hpp"

namespace {

constexpr int kStagedRows = 192;  // rows that go through a staged pair of panels before the next pair
constexpr int kStagedBlocks = 24; // 24 blocks of two panels are about 34 KB

struct Activations {
    const int8_t* q;
    const BlockHeader* headers;
    int64_t stride, blocks;  // bytes and headers from row to row
};

// Adds blocks [b0, b1) of R rows and two panels to sums[R][2]; staged panels begin at b0. First the codes of all blocks,
// then the low planes of those that are wide in any of the rows: where a row is not, it adds zeros, which change nothing.
template <class Format, bool STAGED, int R>
INLINE void int_tile(const void* w0, const void* w1, int64_t b0, int64_t b1, const Activations& a, int64_t row,
                     float* sums) {
    F f[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) f[r][0] = fload(sums + 32 * r), f[r][1] = fload(sums + 32 * r + 16);
    const BlockHeader* headers = a.headers + row * a.blocks;
    for (int64_t v = b0; v < b1 + (b1 - b0); v++) {
        const int low = v >= b1;
        const int64_t b = low ? v - (b1 - b0) : v;
        if (low) {
            int32_t wide = 0;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) wide |= headers[r * a.blocks + b].wide;
            if (!wide) continue;
        }
        const int8_t* q = a.q + row * a.stride + 32 * (low * a.blocks + b);
        const Plane* planes = &headers[b].planes[low];
        I c[R][2];
        F t[R][2];
        const StagedBlock* s0 = STAGED ? (const StagedBlock*)w0 + (b - b0) : nullptr;
        const StagedBlock* s1 = STAGED ? (const StagedBlock*)w1 + (b - b0) : nullptr;
        const uint8_t *p0 = (const uint8_t*)w0, *p1 = (const uint8_t*)w1;
        Scales m0, m1;
        if (!STAGED) Format::scales(p0, b, m0), Format::scales(p1, b, m1);
#define UPWELL_PLANE(R_) (*(const Plane*)((const char*)planes + (R_) * a.blocks * (int64_t)sizeof(BlockHeader)))
#define UPWELL_START(HALF)                                                                                   \
    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) c[r][0] = c[r][1] = Format::start(UPWELL_PLANE(r), HALF);
#define UPWELL_QUAD(K)                                                                                       \
    {                                                                                                        \
        I x0 = STAGED ? iload(s0->codes[K]) : Format::template quad<K>(p0, b);                               \
        I x1 = STAGED ? iload(s1->codes[K]) : Format::template quad<K>(p1, b);                               \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                \
            int32_t four;                                                                                    \
            __builtin_memcpy(&four, q + r * a.stride + 4 * K, 4);                                            \
            I y = iset(four);                                                                                \
            c[r][0] = Format::dot(c[r][0], x0, y);                                                           \
            c[r][1] = Format::dot(c[r][1], x1, y);                                                           \
        }                                                                                                    \
    }
        UPWELL_START(0)
        UPWELL_QUAD(0) UPWELL_QUAD(1) UPWELL_QUAD(2) UPWELL_QUAD(3)
        if (Format::kHalves == 2) {
            F d0 = STAGED ? fload(s0->scale[0]) : m0.scale[0], d1 = STAGED ? fload(s1->scale[0]) : m1.scale[0];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) t[r][0] = fmul(to_float(c[r][0]), d0), t[r][1] = fmul(to_float(c[r][1]), d1);
            UPWELL_START(1)
        }
        UPWELL_QUAD(4) UPWELL_QUAD(5) UPWELL_QUAD(6) UPWELL_QUAD(7)
        constexpr int LAST = Format::kHalves - 1;
        F d0 = STAGED ? fload(s0->scale[LAST]) : m0.scale[LAST], d1 = STAGED ? fload(s1->scale[LAST]) : m1.scale[LAST];
        F o0, o1;
        if (Format::kOffset) o0 = STAGED ? fload(s0->offset) : m0.offset, o1 = STAGED ? fload(s1->offset) : m1.offset;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Plane& plane = UPWELL_PLANE(r);
            F scale = fset(plane.scale);
            if (Format::kHalves == 2) {
                f[r][0] = fma(fma(to_float(c[r][0]), d0, t[r][0]), scale, f[r][0]);
                f[r][1] = fma(fma(to_float(c[r][1]), d1, t[r][1]), scale, f[r][1]);
            } else {
                f[r][0] = fma(to_float(c[r][0]), fmul(d0, scale), f[r][0]);
                f[r][1] = fma(to_float(c[r][1]), fmul(d1, scale), f[r][1]);
            }
            if (Format::kOffset) {
                F sum = fset(plane.sum);
                f[r][0] = fma(o0, sum, f[r][0]);
                f[r][1] = fma(o1, sum, f[r][1]);
            }
        }
#undef UPWELL_PLANE
#undef UPWELL_START
#undef UPWELL_QUAD
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) fstore(sums + 32 * r, f[r][0]), fstore(sums + 32 * r + 16, f[r][1]);
}

template <class Format, bool STAGED>
static void int_tile_rows(int rows, const void* w0, const void* w1, int64_t b0, int64_t b1, const Activations& a,
                          int64_t row, float* sums) {
    if (rows == 1) return int_tile<Format, STAGED, 1>(w0, w1, b0, b1, a, row, sums);
    if constexpr (kTileRows >= 2)
        if (rows == 2) return int_tile<Format, STAGED, 2>(w0, w1, b0, b1, a, row, sums);
    if constexpr (kTileRows >= 6) {
        if (rows == 3) return int_tile<Format, STAGED, 3>(w0, w1, b0, b1, a, row, sums);
        if (rows == 4) return int_tile<Format, STAGED, 4>(w0, w1, b0, b1, a, row, sums);
        if (rows == 5) return int_tile<Format, STAGED, 5>(w0, w1, b0, b1, a, row, sums);
        return int_tile<Format, STAGED, 6>(w0, w1, b0, b1, a, row, sums);
    }
}

// What a thread works in while it computes products.
struct LinearScratch {
    alignas(64) StagedBlock staged[2][kStagedBlocks];
    alignas(64) float sums[kStagedRows][32];
    alignas(64) float pairs[kStagedRows][32];  // gate times up, until a whole block of it is there
};

// sums[rows][32] of two panels for rows [row, row + rows) of the activations; rows <= kStagedRows.
template <class Format>
static void int_product(const uint8_t* p0, const uint8_t* p1, const Activations& a, int64_t row, int rows,
                        LinearScratch* s) {
    for (int r = 0; r < rows; r++) fstore(s->sums[r], fset(0)), fstore(s->sums[r] + 16, fset(0));
    // Parts of the row, staged or not: a part's low planes are added after its codes, so where parts end is in the sum.
    int64_t parts = (a.blocks + kStagedBlocks - 1) / kStagedBlocks;
    for (int64_t part = 0; part < parts; part++) {
        int64_t b0 = a.blocks * part / parts, b1 = a.blocks * (part + 1) / parts;
        if (rows <= kTileRows) {
            int_tile_rows<Format, false>(rows, p0, p1, b0, b1, a, row, s->sums[0]);
            continue;
        }
        for (int64_t b = b0; b < b1; b++) {
            stage<Format>(p0, b, &s->staged[0][b - b0]);
            stage<Format>(p1, b, &s->staged[1][b - b0]);
        }
        for (int r = 0; r < rows; r += kTileRows)
            int_tile_rows<Format, true>(rows - r < kTileRows ? rows - r : kTileRows, s->staged[0], s->staged[1], b0, b1,
                                        a, row + r, s->sums[r]);
    }
}

template <class Format, int R>
INLINE void float_tile(const uint8_t* p0, const uint8_t* p1, int64_t columns, const float* x, int64_t ld, float* sums) {
    F f[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) f[r][0] = f[r][1] = fset(0);
    for (int64_t k = 0; k < columns; k++) {
        F w0 = Format::load(p0, k), w1 = Format::load(p1, k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            F y = fset(x[r * ld + k]);
            f[r][0] = fma(w0, y, f[r][0]);
            f[r][1] = fma(w1, y, f[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) fstore(sums + 32 * r, f[r][0]), fstore(sums + 32 * r + 16, f[r][1]);
}

template <class Format>
static void float_product(const uint8_t* p0, const uint8_t* p1, int64_t columns, const float* x, int64_t ld, int rows,
                          LinearScratch* s) {
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows)
        float_tile<Format, kTileRows>(p0, p1, columns, x + r * ld, ld, s->sums[r]);
    if constexpr (kTileRows > 3)
        for (; r + 3 <= rows; r += 3) float_tile<Format, 3>(p0, p1, columns, x + r * ld, ld, s->sums[r]);
    if constexpr (kTileRows > 2)
        for (; r + 2 <= rows; r += 2) float_tile<Format, 2>(p0, p1, columns, x + r * ld, ld, s->sums[r]);
    for (; r < rows; r++) float_tile<Format, 1>(p0, p1, columns, x + r * ld, ld, s->sums[r]);
}

// s->sums[rows][32]: products of rows [row, row + rows) with panels p0 and p1.
static void product(const upwell_matrix& m, int64_t p0, int64_t p1, const upwell_rows& in, int64_t row, int rows,
                    LinearScratch* s) {
    int64_t bytes = matrix_panel_bytes(m.format, m.k), blocks = (m.k + 31) / 32;
    int64_t last = (m.n + kLanes - 1) / kLanes - 1;
    const uint8_t* w0 = m.panels + p0 * bytes;
    const uint8_t* w1 = m.panels + (p1 < last ? p1 : last) * bytes;  // beside the last panel: it again, unused
    Activations a = {in.q, (const BlockHeader*)in.headers, code_bytes(blocks), blocks};
    const float* x = in.x + row * in.ld;
    switch (m.format) {
        case UPWELL_F32: return float_product<F32Weights>(w0, w1, m.k, x, in.ld, rows, s);
        case UPWELL_F16: return float_product<F16Weights>(w0, w1, m.k, x, in.ld, rows, s);
        case UPWELL_BF16: return float_product<BF16Weights>(w0, w1, m.k, x, in.ld, rows, s);
        case UPWELL_Q8_0: return int_product<Q8_0>(w0, w1, a, row, rows, s);
        case UPWELL_Q4_0: return int_product<Q4_0>(w0, w1, a, row, rows, s);
        case UPWELL_Q4_1: return int_product<Q4_1>(w0, w1, a, row, rows, s);
        case UPWELL_Q4_K: return int_product<Q4_K>(w0, w1, a, row, rows, s);
        default: return int_product<Q6_K>(w0, w1, a, row, rows, s);
    }
}

INLINE int lanes_of(int64_t n, int64_t panel) {
    int64_t left = n - panel * kLanes;
    return left < 0 ? 0 : left < kLanes ? (int)left : kLanes;
}

// The work of a product falls into items: a pair of panels (or of 32 outputs) by a band of rows.
INLINE int64_t bands_of(int64_t rows) { return (rows + kStagedRows - 1) / kStagedRows; }
INLINE int64_t linear_items(const upwell_matrix& m, int64_t rows) { return bands_of(rows) * ((m.n + 31) / 32); }
INLINE int64_t silu_linear_items(const upwell_matrix& m, int64_t rows) { return bands_of(rows) * ((m.n / 2 + 31) / 32); }

// out[rows, n] = in W^T + bias: one item of it.
static void linear_item(const upwell_rows& in, const upwell_matrix& m, float* out, int64_t ld, int64_t rows, int64_t item,
                        LinearScratch* s) {
    int64_t pairs = (m.n + 31) / 32, bands = bands_of(rows), band = item / pairs, p = item % pairs * 2;
    int64_t r0 = rows * band / bands, r1 = rows * (band + 1) / bands;
    product(m, p, p + 1, in, r0, (int)(r1 - r0), s);
    for (int half = 0; half < 2; half++) {
        int lanes = lanes_of(m.n, p + half);
        if (!lanes) continue;
        int64_t column = (p + half) * kLanes;
        F bias = m.bias ? fload_n(m.bias + column, lanes) : fset(0);
        for (int64_t r = r0; r < r1; r++) {
            F y = fload(s->sums[r - r0] + 16 * half);
            fstore_n(out + r * ld + column, m.bias ? fadd(y, bias) : y, lanes);
        }
    }
}

static void run_linear(const Work& work, const upwell_rows& in, const upwell_matrix& m, float* out, int64_t ld,
                       int64_t rows) {
    int64_t items = linear_items(m, rows);
    for (Range range = work.next(items); range.more(); range = work.next(items))
        for (int64_t item = range.first; item < range.last; item++)
            linear_item(in, m, out, ld, rows, item, (LinearScratch*)work.scratch);
}

// out[rows, f] = silu(gate) * up, where gate and up are the halves of in W^T + bias, f a multiple of 16: one item.
static void silu_linear_item(const upwell_rows& in, const upwell_matrix& m, const upwell_rows& out, int64_t rows,
                             int64_t item, LinearScratch* s) {
    int64_t half = m.n / 2 / kLanes, blocks = (half + 1) / 2, bands = bands_of(rows);
    int64_t band = item / blocks, block = item % blocks;
    int64_t r0 = rows * band / bands, r1 = rows * (band + 1) / bands;
    for (int part = 0; part < 2; part++) {
        int64_t p = 2 * block + part;
        if (p >= half) {
            for (int64_t r = r0; r < r1; r++) fstore(s->pairs[r - r0] + 16, fset(0));
            break;
        }
        product(m, p, p + half, in, r0, (int)(r1 - r0), s);
        F gate_bias = m.bias ? fload(m.bias + p * kLanes) : fset(0);
        F up_bias = m.bias ? fload(m.bias + (p + half) * kLanes) : fset(0);
        for (int64_t r = r0; r < r1; r++) {
            F gate = fadd(fload(s->sums[r - r0]), gate_bias), up = fadd(fload(s->sums[r - r0] + 16), up_bias);
            fstore(s->pairs[r - r0] + 16 * part, silu_times(gate, up));
        }
    }
    for (int64_t r = r0; r < r1; r++) {
        F y0 = fload(s->pairs[r - r0]), y1 = fload(s->pairs[r - r0] + 16);
        if (out.q)
            quantise_block(y0, y1, out.q + r * code_bytes(blocks), block, blocks,
                           (BlockHeader*)out.headers + r * blocks + block);
        if (out.x) {
            fstore(out.x + r * out.ld + block * 32, y0);
            if (2 * block + 1 < half) fstore(out.x + r * out.ld + block * 32 + 16, y1);
        }
    }
}

static void run_silu_linear(const Work& work, const upwell_rows& in, const upwell_matrix& m, const upwell_rows& out,
                            int64_t rows) {
    int64_t items = silu_linear_items(m, rows);
    for (Range range = work.next(items); range.more(); range = work.next(items))
        for (int64_t item = range.first; item < range.last; item++)
            silu_linear_item(in, m, out, rows, item, (LinearScratch*)work.scratch);
}

// The rows from `first` on, of so many columns.
INLINE upwell_rows rows_from(const upwell_rows& rows, int64_t first, int64_t columns) {
    int64_t blocks = (columns + 31) / 32;
    return {rows.x ? rows.x + first * rows.ld : nullptr, rows.ld, rows.q ? rows.q + first * code_bytes(blocks) : nullptr,
            rows.headers ? (BlockHeader*)rows.headers + first * blocks : nullptr};
}

}  // namespace
