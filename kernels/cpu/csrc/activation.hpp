// Rows of activations as int8: blocks of 32 columns, each with a header.
#pragma once
#include <cstdint>

namespace {

// q is round(x * 127 / max|x|), so that x is about scale * q. The sum is that of x itself. The rest are starting values
// for integer sums: minus the format's zero point, times the sum of q over the block or over one half of it.
struct BlockHeader {
    float scale, sum;
    int32_t minus_8, minus_128, minus_32[2];
};

INLINE void quantise_block(F x0, F x1, int8_t* q, BlockHeader* header) {
    float peak = fpeak(fmax(fabs_(x0), fabs_(x1)));
    float sum = fsum(fadd(x0, x1));
    F inverse = fset(peak > 0 ? 127.0f / peak : 0.0f);
    I q0 = to_int(fmul(x0, inverse)), q1 = to_int(fmul(x1, inverse));
    store_i8(q, q0);
    store_i8(q + 16, q1);
    int32_t s0 = isum(q0), s1 = isum(q1);
    // A NaN or an infinity must not vanish: it makes the scale NaN, and with it all that the block enters.
    float scale = peak / 127.0f;
    *header = {sum - sum == 0 ? scale : sum - sum, sum, -8 * (s0 + s1), -128 * (s0 + s1), {-32 * s0, -32 * s1}};
}

// Quantise one row; columns past the end count as 0.
INLINE void quantise_row(const float* x, int64_t columns, int8_t* q, BlockHeader* headers) {
    int64_t whole = columns / 32;
    for (int64_t b = 0; b < whole; b++) quantise_block(fload(x + 32 * b), fload(x + 32 * b + 16), q + 32 * b, headers + b);
    int rest = (int)(columns - 32 * whole);
    if (rest) {
        const float* tail = x + 32 * whole;
        F x0 = fload_n(tail, rest < 16 ? rest : 16), x1 = fload_n(tail + 16, rest > 16 ? rest - 16 : 0);
        quantise_block(x0, x1, q + 32 * whole, headers + whole);
    }
}

}  // namespace
