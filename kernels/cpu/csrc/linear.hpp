// Products with packed weights.
//
// A row's result is a sum over blocks of 32 columns in order, each block an exact integer sum scaled in float32. It is
// the same sum whether the row travels alone or with a thousand others: the tiles below differ in how many rows share
// a load of the weights, and in nothing that enters a row's arithmetic.
#pragma once
#include "activation.hpp"
#include "formats.hpp"
#include "layout.hpp"
#include "math.hpp"
#include "w8a8.hpp"
#include "work.hpp"

namespace {

constexpr int kBandRows = 256;  // rows that go through a staged panel before the next
constexpr int kUnstagedRows = 3 * kTileRows;  // so few that unpacking a panel for each tile is cheaper than staging it
constexpr int64_t kAheadBytes = 12 << 10;  // from what is multiplied to what is fetched, where rows wait for memory

// Where a product goes: 32 sums a row, those of a panel.
struct Sums {
    float* first;
    int64_t ld;
    float* row(int64_t r) const { return first + r * ld; }
};

// Fetches what a thread will read of a panel, while it multiplies: the processor's own prefetching sees it too late.
// Beyond the last panel there may be nothing, which is why `panel` is a number; fetching never faults.
template <class Format>
INLINE void fetch_block(uintptr_t panel, int64_t b) {
    constexpr int64_t kBlockBytes = 2 * Format::kBytes / (Format::kSpan / kBlock);
    for (int64_t i = 0; i < kBlockBytes; i += 64) __builtin_prefetch((const void*)(panel + b * kBlockBytes + i), 0, 3);
}

// Adds blocks [b0, b1) of R rows and a panel, whose halves are at w0 and w1, to R sums of [2][16], or begins them with
// `begin`. rows[r] is the plane of block b0 of a row, and those of the blocks after it follow; staged halves begin at
// b0. Meanwhile it fetches the same blocks as if a panel lay at `ahead`, unless that is 0.
template <class Format, bool STAGED, int R>
INLINE void int_tile(const void* w0, const void* w1, int64_t b0, int64_t b1, const Block* const* rows,
                     float* const* sums, bool begin, uintptr_t ahead) {
    F f[R][2];
    const Block* a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        f[r][0] = begin ? fset(0) : fload(sums[r]);
        f[r][1] = begin ? fset(0) : fload(sums[r] + 16);
        a[r] = rows[r];
    }
    const StagedBlock *s0 = (const StagedBlock*)w0, *s1 = (const StagedBlock*)w1;
    const uint8_t *p0 = (const uint8_t*)w0, *p1 = (const uint8_t*)w1;
    for (int64_t b = b0; b < b1; b++, s0++, s1++) {
        I c[R][2];
        F t[R][2];
        Scales m0, m1;
        if (ahead) fetch_block<Format>(ahead, b);
        if (!STAGED) Format::scales(p0, b, m0), Format::scales(p1, b, m1);
#define UPWELL_START(SCALE) \
    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) c[r][0] = c[r][1] = Format::start(*a[r], SCALE);
#define UPWELL_QUAD(K)                                                         \
    {                                                                          \
        I x0 = STAGED ? iload(s0->codes[K]) : Format::template quad<K>(p0, b); \
        I x1 = STAGED ? iload(s1->codes[K]) : Format::template quad<K>(p1, b); \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                  \
            I y = spread(a[r]->codes + 4 * K);                                 \
            c[r][0] = Format::dot(c[r][0], x0, y);                             \
            c[r][1] = Format::dot(c[r][1], x1, y);                             \
        }                                                                      \
    }
        UPWELL_START(0)
        UPWELL_QUAD(0)
        UPWELL_QUAD(1)
        UPWELL_QUAD(2)
        UPWELL_QUAD(3)
        if (Format::kScales == 2) {
            F d0 = STAGED ? fload(s0->scale[0]) : m0.scale[0], d1 = STAGED ? fload(s1->scale[0]) : m1.scale[0];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) t[r][0] = fmul(to_float(c[r][0]), d0), t[r][1] = fmul(to_float(c[r][1]), d1);
            UPWELL_START(1)
        }
        UPWELL_QUAD(4)
        UPWELL_QUAD(5)
        UPWELL_QUAD(6)
        UPWELL_QUAD(7)
        constexpr int LAST = Format::kScales - 1;
        F d0 = STAGED ? fload(s0->scale[LAST]) : m0.scale[LAST], d1 = STAGED ? fload(s1->scale[LAST]) : m1.scale[LAST];
        F o0, o1;
        if (Format::kOffset) o0 = STAGED ? fload(s0->offset) : m0.offset, o1 = STAGED ? fload(s1->offset) : m1.offset;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            F scale = fset(a[r]->scale);
            if (Format::kScales == 2) {
                f[r][0] = fma(fma(to_float(c[r][0]), d0, t[r][0]), scale, f[r][0]);
                f[r][1] = fma(fma(to_float(c[r][1]), d1, t[r][1]), scale, f[r][1]);
            } else {
                f[r][0] = fma(to_float(c[r][0]), fmul(d0, scale), f[r][0]);
                f[r][1] = fma(to_float(c[r][1]), fmul(d1, scale), f[r][1]);
            }
            if (Format::kOffset) {
                F sum = fset(a[r]->sum);
                f[r][0] = fma(o0, sum, f[r][0]);
                f[r][1] = fma(o1, sum, f[r][1]);
            }
            a[r]++;
        }
#undef UPWELL_START
#undef UPWELL_QUAD
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) fstore(sums[r], f[r][0]), fstore(sums[r] + 16, f[r][1]);
}

template <class Format, bool STAGED>
static void int_tile_of(int num, const void* w0, const void* w1, int64_t b0, int64_t b1, const Block* const* rows,
                        float* const* sums, bool begin, uintptr_t ahead) {
    if (num == 1) return int_tile<Format, STAGED, 1>(w0, w1, b0, b1, rows, sums, begin, ahead);
    if constexpr (kTileRows >= 2)
        if (num == 2) return int_tile<Format, STAGED, 2>(w0, w1, b0, b1, rows, sums, begin, ahead);
    if constexpr (kTileRows >= 6) {
        if (num == 3) return int_tile<Format, STAGED, 3>(w0, w1, b0, b1, rows, sums, begin, ahead);
        if (num == 4) return int_tile<Format, STAGED, 4>(w0, w1, b0, b1, rows, sums, begin, ahead);
        if (num == 5) return int_tile<Format, STAGED, 5>(w0, w1, b0, b1, rows, sums, begin, ahead);
        return int_tile<Format, STAGED, 6>(w0, w1, b0, b1, rows, sums, begin, ahead);
    }
}

// Which rows of a band are wide, for each block of a part.
struct WideRows {
    uint16_t count[kPartBlocks];
    uint8_t rows[kPartBlocks][kBandRows];
};

// What a thread works in while it computes products.
struct LinearScratch {
    alignas(64) StagedBlock staged[2][kPartBlocks];
    alignas(64) float sums[kBandRows][32];
    alignas(64) float up[kBandRows][32];  // beside sums of a gate
    // Of the band at `band`, found once for all panels.
    const Block* band;
    int band_rows;
    WideRows wide[kMaxParts];
};

static void find_wide(const Block* band, int64_t blocks, int rows, LinearScratch* s) {
    if (s->band == band && s->band_rows == rows) return;
    s->band = band;
    s->band_rows = rows;
    Parts parts(blocks);
    for (int64_t part = 0; part < parts.count; part++) {
        WideRows& wide = s->wide[part];
        __builtin_memset(wide.count, 0, sizeof(wide.count));
        for (int r = 0; r < rows; r++)
            for (uint32_t bits = band[2 * blocks * r + parts.first(part)].wide; bits; bits &= bits - 1) {
                int block = __builtin_ctz(bits);
                wide.rows[block][wide.count[block]++] = (uint8_t)r;
            }
    }
}

// Adds one part of every row to the sums: the codes of all blocks, then the low planes of the wide ones.
template <class Format, bool STAGED>
static void add_part(const void* w0, const void* w1, int64_t b0, int64_t b1, const Block* first, int64_t blocks,
                     int rows, const WideRows& of_part, const Sums& sums, uintptr_t ahead) {
    const Block* from[kTileRows];
    float* to[kTileRows];
    for (int r = 0; r < rows; r += kTileRows) {
        int num = rows - r < kTileRows ? rows - r : kTileRows;
        for (int i = 0; i < num; i++) from[i] = first + 2 * blocks * (r + i), to[i] = sums.row(r + i);
        int_tile_of<Format, STAGED>(num, w0, w1, b0, b1, from, to, b0 == 0, r ? 0 : ahead);
    }
    for (int64_t b = b0; b < b1; b++) {
        const uint8_t* wide = of_part.rows[b - b0];
        int count = of_part.count[b - b0];
        const void *x0 = STAGED ? (const StagedBlock*)w0 + (b - b0) : w0,
                   *x1 = STAGED ? (const StagedBlock*)w1 + (b - b0) : w1;
        for (int r = 0; r < count; r += kTileRows) {
            int num = count - r < kTileRows ? count - r : kTileRows;
            for (int i = 0; i < num; i++)
                from[i] = first + 2 * blocks * wide[r + i] + blocks + (b - b0), to[i] = sums.row(wide[r + i]);
            int_tile_of<Format, STAGED>(num, x0, x1, b, b + 1, from, to, false, 0);
        }
    }
}

// Products of a band of so many rows with a panel. Parts are added in order, staged or not: where they end is in the
// sum. Few rows wait for memory, and fetch a little ahead; many have the time of a tile to fetch the next panel.
template <class Format>
static void int_product(const uint8_t* panel, const Block* band, int64_t blocks, int rows, const Sums& sums,
                        LinearScratch* s) {
    const uint8_t *p0 = panel, *p1 = panel + Format::kBytes;
    const uintptr_t here = (uintptr_t)panel,
                    next = here + (blocks * kBlock + Format::kSpan - 1) / Format::kSpan * 2 * Format::kBytes;
    find_wide(band, blocks, rows, s);
    Parts parts(blocks);
    for (int64_t part = 0; part < parts.count; part++) {
        int64_t b0 = parts.first(part), b1 = parts.first(part + 1);
        if (rows <= kUnstagedRows) {
            add_part<Format, false>(p0, p1, b0, b1, band + b0, blocks, rows, s->wide[part], sums, here + kAheadBytes);
            continue;
        }
        for (int64_t b = b0; b < b1; b++) {
            stage<Format>(p0, b, &s->staged[0][b - b0]);
            stage<Format>(p1, b, &s->staged[1][b - b0]);
        }
        add_part<Format, true>(s->staged[0], s->staged[1], b0, b1, band + b0, blocks, rows, s->wide[part], sums, next);
    }
}

template <class Format, int R>
INLINE void float_tile(const uint8_t* panel, int64_t columns, const float* x, int64_t ld, const Sums& sums, int row) {
    F f[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) f[r][0] = f[r][1] = fset(0);
    for (int64_t k = 0; k < columns; k++) {
        F w0 = Format::load(panel, k), w1 = Format::load(panel + Format::kBytes, k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            F y = fset(x[r * ld + k]);
            f[r][0] = fma(w0, y, f[r][0]);
            f[r][1] = fma(w1, y, f[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) fstore(sums.row(row + r), f[r][0]), fstore(sums.row(row + r) + 16, f[r][1]);
}

template <class Format>
static void float_product(const uint8_t* panel, int64_t columns, const float* x, int64_t ld, int rows,
                          const Sums& sums) {
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows)
        float_tile<Format, kTileRows>(panel, columns, x + r * ld, ld, sums, r);
    if constexpr (kTileRows > 3)
        for (; r + 3 <= rows; r += 3) float_tile<Format, 3>(panel, columns, x + r * ld, ld, sums, r);
    if constexpr (kTileRows > 2)
        for (; r + 2 <= rows; r += 2) float_tile<Format, 2>(panel, columns, x + r * ld, ld, sums, r);
    for (; r < rows; r++) float_tile<Format, 1>(panel, columns, x + r * ld, ld, sums, r);
}

// Products of rows [row, row + rows) with a panel.
static void product(const upwell_matrix& m, int64_t panel, const upwell_rows& in, int64_t row, int rows,
                    const Sums& sums, LinearScratch* s) {
    const uint8_t* w = m.panels + panel * panel_bytes(m.format, m.k);
    int64_t blocks = (m.k + 31) / 32;
    const Block* a = row_of(in.q, row, blocks);
    const float* x = in.x + row * in.ld;
    switch (m.format) {
        case UPWELL_F32: return float_product<F32Weights>(w, m.k, x, in.ld, rows, sums);
        case UPWELL_F16: return float_product<F16Weights>(w, m.k, x, in.ld, rows, sums);
        case UPWELL_BF16: return float_product<BF16Weights>(w, m.k, x, in.ld, rows, sums);
        case UPWELL_Q8_0: return int_product<Q8_0>(w, a, blocks, rows, sums, s);
        case UPWELL_Q4_0: return int_product<Q4_0>(w, a, blocks, rows, sums, s);
        case UPWELL_Q4_1: return int_product<Q4_1>(w, a, blocks, rows, sums, s);
        case UPWELL_Q4_K: return int_product<Q4_K>(w, a, blocks, rows, sums, s);
        case UPWELL_W8A8: return w8a8_product(w, m.k, token_of(in.tokens, row, m.k), rows, sums.first, sums.ld);
        default: return int_product<Q6_K>(w, a, blocks, rows, sums, s);
    }
}

// The work of a product falls into items: a panel, or one of the gate and one beside it, by a band of rows.
INLINE int64_t bands_of(int64_t rows) { return (rows + kBandRows - 1) / kBandRows; }
INLINE int64_t panels_of(int64_t n) { return (n + kPanelRows - 1) / kPanelRows; }
INLINE int64_t linear_items(const upwell_matrix& m, int64_t rows) { return bands_of(rows) * panels_of(m.n); }
INLINE int64_t silu_linear_items(const upwell_matrix& m, int64_t rows) { return bands_of(rows) * panels_of(m.n / 2); }

// Another operation may have written what the band consists of.
INLINE void forget_band(const Work& work) { ((LinearScratch*)work.scratch)->band = nullptr; }

// out[rows, n] = in W^T + bias: one item of it.
static void linear_item(const upwell_rows& in, const upwell_matrix& m, float* out, int64_t ld, int64_t rows,
                        int64_t item, LinearScratch* s) {
    int64_t panels = panels_of(m.n), bands = bands_of(rows), band = item / panels, first = item % panels * kPanelRows;
    int64_t r0 = rows * band / bands, r1 = rows * (band + 1) / bands;
    bool whole = first + kPanelRows <= m.n;
    Sums sums = whole ? Sums{out + r0 * ld + first, ld} : Sums{s->sums[0], 32};
    product(m, first / kPanelRows, in, r0, (int)(r1 - r0), sums, s);
    if (whole && !m.bias) return;
    for (int64_t column = first; column < m.n && column < first + kPanelRows; column += kLanes) {
        int lanes = m.n - column < kLanes ? (int)(m.n - column) : kLanes;
        F bias = m.bias ? fload_n(m.bias + column, lanes) : fset(0);
        for (int64_t r = r0; r < r1; r++) {
            F y = fload(sums.row(r - r0) + (column - first));
            fstore_n(out + r * ld + column, m.bias ? fadd(y, bias) : y, lanes);
        }
    }
}

static void run_linear(const Work& work, const upwell_rows& in, const upwell_matrix& m, float* out, int64_t ld,
                       int64_t rows) {
    forget_band(work);
    int64_t items = linear_items(m, rows);
    for (Range range = work.next(items); range.more(); range = work.next(items))
        for (int64_t item = range.first; item < range.last; item++)
            linear_item(in, m, out, ld, rows, item, (LinearScratch*)work.scratch);
}

// out[rows, f] = silu(gate) * up, where gate and up are the halves of in W^T + bias, f a multiple of 32: one item.
static void silu_linear_item(const upwell_rows& in, const upwell_matrix& m, const upwell_rows& out, int64_t rows,
                             int64_t item, LinearScratch* s) {
    int64_t blocks = panels_of(m.n / 2), bands = bands_of(rows), band = item / blocks, block = item % blocks;
    int64_t r0 = rows * band / bands, r1 = rows * (band + 1) / bands, column = block * kPanelRows;
    product(m, block, in, r0, (int)(r1 - r0), {s->sums[0], 32}, s);
    product(m, blocks + block, in, r0, (int)(r1 - r0), {s->up[0], 32}, s);
    for (int64_t r = r0; r < r1; r++) {
        F y[2];
        for (int half = 0; half < 2; half++) {
            F gate = fload(s->sums[r - r0] + 16 * half), up = fload(s->up[r - r0] + 16 * half);
            if (m.bias) {
                gate = fadd(gate, fload(m.bias + column + 16 * half));
                up = fadd(up, fload(m.bias + m.n / 2 + column + 16 * half));
            }
            y[half] = silu_times(gate, up);
        }
        if (out.q) quantise_block(y[0], y[1], row_of(out.q, r, blocks), block, blocks);
        if (out.x) fstore(out.x + r * out.ld + column, y[0]), fstore(out.x + r * out.ld + column + 16, y[1]);
    }
}

static void run_silu_linear(const Work& work, const upwell_rows& in, const upwell_matrix& m, const upwell_rows& out,
                            int64_t rows) {
    forget_band(work);
    int64_t items = silu_linear_items(m, rows);
    for (Range range = work.next(items); range.more(); range = work.next(items))
        for (int64_t item = range.first; item < range.last; item++)
            silu_linear_item(in, m, out, rows, item, (LinearScratch*)work.scratch);
}

// The rows from `first` on, of so many columns.
INLINE upwell_rows rows_from(const upwell_rows& rows, int64_t first, int64_t columns) {
    int64_t blocks = (columns + 31) / 32;
    return {rows.x ? rows.x + first * rows.ld : nullptr, rows.ld, rows.q ? row_of(rows.q, first, blocks) : nullptr,
            rows.tokens ? token_of(rows.tokens, first, columns) : nullptr};
}

}  // namespace
