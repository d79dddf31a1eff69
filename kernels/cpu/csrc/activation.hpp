// Rows of activations as int8: blocks of 32 columns, each with a header.
//
// x is about scale * q with q = round(x * 127 / max|x|), 8 bits. A few blocks of a row hold its largest numbers, and with
// them most of its rounding error, which grows with the square of a block's maximum. Those blocks are wide: what rounding
// left of them is a second plane of codes, with a scale of 1/128 of the first. Measured on the default model: one block in
// nine is wide, and the divergence from float32 is a quarter of what it is without (docs/accuracy.md). In a tile of six
// rows, one block in five to two in five are wide in some row, and the tile computes those twice.
#pragma once
#include <cstdint>

#include "upwell.h"

namespace {

// A block is wide if its max|x| squared is more than this many times the mean over the row's blocks.
constexpr double kWide = 2.0;

// A block whose max|x| is not above this counts as zeros: 127 / max|x| might be infinite.
constexpr float kTiny = 1e-36f;

// One plane of a block: its scale, the sum of x itself (0 in the low plane: the first has it all), and what integer sums
// begin with: minus the zero point of a format, times the sum of the codes over the block, or over one half of it.
struct Plane {
    float scale, sum;
    int32_t minus_8, minus_128, minus_32[2];
};
struct BlockHeader {
    Plane planes[2];
    int32_t wide;  // 0 or 1; the bits of max|x| until the row is marked
    int32_t reserved;
};
static_assert(sizeof(BlockHeader) == UPWELL_HEADER_BYTES);

INLINE Plane plane_of(float scale, float sum, I q0, I q1) {
    uint32_t s0 = (uint32_t)isum(q0), s1 = (uint32_t)isum(q1);  // may wrap around where x is not finite
    return {scale, sum, (int32_t)(-8 * (s0 + s1)), (int32_t)(-128 * (s0 + s1)), {(int32_t)(-32 * s0), (int32_t)(-32 * s1)}};
}

// A row of so many blocks: first the codes of all of them, then the low planes of all of them.
INLINE int64_t code_bytes(int64_t blocks) { return UPWELL_CODE_BYTES * blocks; }

INLINE void quantise_block(F x0, F x1, int8_t* row, int64_t block, int64_t blocks, BlockHeader* header) {
    float peak = fpeak(fmax(fabs_(x0), fabs_(x1)));
    float sum = fsum(fadd(x0, x1));
    F inverse = fset(peak > kTiny ? 127.0f / peak : 0.0f), step = fset(128.0f), back = fset(-128.0f);
    F y0 = fmul(x0, inverse), y1 = fmul(x1, inverse), h0 = fround(y0), h1 = fround(y1);
    // What is left is at most half a step: 64, which 8 bits hold.
    I low0 = to_int(fma(h0, back, fmul(y0, step))), low1 = to_int(fma(h1, back, fmul(y1, step)));
    I q0 = to_int(h0), q1 = to_int(h1);
    store_i8(row + 32 * block, q0);
    store_i8(row + 32 * block + 16, q1);
    store_i8(row + 32 * (blocks + block), low0);
    store_i8(row + 32 * (blocks + block) + 16, low1);
    // A NaN or an infinity must not vanish: it makes the scale NaN, and with it all that the block enters.
    float scale = sum - sum == 0 ? peak / 127.0f : sum - sum;
    *header = {{plane_of(scale, sum, q0, q1), plane_of(scale * 0.0078125f, 0, low0, low1)}, 0, 0};
    __builtin_memcpy(&header->wide, &peak, 4);
}

INLINE double peak_squared(const BlockHeader& header) {
    float peak;
    __builtin_memcpy(&peak, &header.wide, 4);
    return (double)peak * (double)peak;
}

// Decide which blocks of a row are wide, and clear the low planes of the others: a tile of several rows adds all of them
// where one row is wide, and a row must not notice.
INLINE void mark_row(int8_t* row, BlockHeader* headers, int64_t blocks) {
    double total = 0;
    for (int64_t b = 0; b < blocks; b++) total += peak_squared(headers[b]);
    for (int64_t b = 0; b < blocks; b++) {
        headers[b].wide = peak_squared(headers[b]) * (double)blocks > kWide * total;
        if (headers[b].wide) continue;
        __builtin_memset(row + 32 * (blocks + b), 0, 32);
        headers[b].planes[1] = {0, 0, 0, 0, {0, 0}};
    }
}

// Quantise one row; columns past the end count as 0. The row is not marked yet.
INLINE void quantise_row(const float* x, int64_t columns, int8_t* row, int64_t block, int64_t blocks,
                         BlockHeader* headers) {
    int64_t whole = columns / 32;
    for (int64_t b = 0; b < whole; b++)
        quantise_block(fload(x + 32 * b), fload(x + 32 * b + 16), row, block + b, blocks, headers + block + b);
    int rest = (int)(columns - 32 * whole);
    if (rest) {
        const float* tail = x + 32 * whole;
        F x0 = fload_n(tail, rest < 16 ? rest : 16), x1 = fload_n(tail + 16, rest > 16 ? rest - 16 : 0);
        quantise_block(x0, x1, row, block + whole, blocks, headers + block + whole);
    }
}

}  // namespace
