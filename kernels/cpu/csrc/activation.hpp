// Rows of activations as int8, in blocks of 32 columns.
//
// x is about scale * q with q = round(x * 127 / max|x|), 8 bits. A few blocks of a row hold its largest numbers, and
// with them most of its rounding error, which grows with the square of a block's maximum. Those blocks are wide: what
// rounding left of them is a second plane of codes, with a scale of 1/128 of the first. Measured on the default model:
// one block in nine is wide, and the divergence from float32 is a quarter of what it is without (docs/accuracy.md).
#pragma once
#include <cstdint>

#include "layout.hpp"

namespace {

// A block is wide if its max|x| squared is more than this many times the mean over the row's blocks.
constexpr double kWide = 2.0;

// A block whose max|x| is not above this counts as zeros: 127 / max|x| might be infinite.
constexpr float kTiny = 1e-36f;

// Blocks go through products in parts: first the codes of a part's blocks, then the low planes of those that are wide.
struct Parts {
    int64_t blocks, count;
    explicit Parts(int64_t of) : blocks(of), count((of + kPartBlocks - 1) / kPartBlocks) {}
    int64_t first(int64_t part) const { return blocks * part / count; }
};

// One plane of a block, a cache line: its scale, the sum of x itself (0 in the low plane: the first has it all), and
// what integer sums begin with: minus the zero point of a format, times the sum of the codes over the block, or over
// one half.
struct Block {
    int32_t minus[4];  // times 8, 128, 32 over the first half, 32 over the second
    float scale, sum;
    float peak;     // max|x|
    uint32_t wide;  // of a part's first block: bit i says that block i of the part is wide
    int8_t codes[32];
};
static_assert(2 * sizeof(Block) == UPWELL_BLOCK_BYTES && kPartBlocks <= 32);

// A row of so many blocks: first the first planes of all of them, then the low planes. Those of blocks that are not
// wide hold nothing of use.
INLINE Block* row_of(void* q, int64_t row, int64_t blocks) { return (Block*)q + row * 2 * blocks; }

INLINE void quantise_block(F x0, F x1, Block* row, int64_t block, int64_t blocks) {
    Block *first = row + block, *low = first + blocks;
    float peak = fpeak(fmax(fabs_(x0), fabs_(x1)));
    float sum = fsum(fadd(x0, x1));
    F inverse = fset(peak > kTiny ? 127.0f / peak : 0.0f), step = fset(128.0f), back = fset(-128.0f);
    F y0 = fmul(x0, inverse), y1 = fmul(x1, inverse), h0 = fround(y0), h1 = fround(y1);
    store_i8(first->codes, to_int(h0));
    store_i8(first->codes + 16, to_int(h1));
    // What is left is at most half a step: 64, which 8 bits hold.
    store_i8(low->codes, to_int(fma(h0, back, fmul(y0, step))));
    store_i8(low->codes + 16, to_int(fma(h1, back, fmul(y1, step))));
    // A NaN or an infinity must not vanish: it makes the scale NaN, and with it all that the block enters. What a
    // processor makes of inf - inf has a sign of its own, and this has none.
    first->scale = sum - sum == 0 ? peak * (1 / 127.0f) : __builtin_nanf("");
    first->sum = sum;
    first->peak = peak;
    first->wide = 0;
    code_sums(first->codes, first->minus);
}

// Decide which blocks of a row are wide, and finish their low planes.
INLINE void mark_row(Block* row, int64_t blocks) {
    double total = 0;
    for (int64_t b = 0; b < blocks; b++) total += (double)row[b].peak * (double)row[b].peak;
    Parts parts(blocks);
    for (int64_t part = 0; part < parts.count; part++) {
        int64_t b0 = parts.first(part), b1 = parts.first(part + 1);
        uint32_t wide = 0;
        for (int64_t b = b0; b < b1; b++) {
            if (!((double)row[b].peak * (double)row[b].peak * (double)blocks > kWide * total)) continue;
            wide |= 1u << (b - b0);
            Block* low = row + blocks + b;
            low->scale = row[b].scale * 0.0078125f;
            low->sum = 0;
            code_sums(low->codes, low->minus);
        }
        row[b0].wide = wide;
    }
}

// Quantise one row; columns past the end count as 0. The row is not marked yet.
INLINE void quantise_row(const float* x, int64_t columns, Block* row, int64_t block, int64_t blocks) {
    int64_t whole = columns / 32;
    for (int64_t b = 0; b < whole; b++)
        quantise_block(fload(x + 32 * b), fload(x + 32 * b + 16), row, block + b, blocks);
    int rest = (int)(columns - 32 * whole);
    if (rest) {
        const float* tail = x + 32 * whole;
        F x0 = fload_n(tail, rest < 16 ? rest : 16), x1 = fload_n(tail + 16, rest > 16 ? rest - 16 : 0);
        quantise_block(x0, x1, row, block + whole, blocks);
    }
}

}  // namespace
