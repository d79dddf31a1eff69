// Products of int8 weights, one scale a row of them, with tokens as int8, one scale each: W8A8.
//
// The product of the integers is exact, so it has no order: not in a vector, not in parts of a row, not by how many
// rows share a load of the weights. One int32 takes all of it as long as 127 * 128 * k < 2**31 (MAX_COLUMNS of
// kernels/cpu/abi.py sees to that); on the way there it may wrap around. A result is
// float32(sum) * (token's scale * row's scale), as kernels/reference/w8a8.py has it.
#pragma once
#include "activation.hpp"
#include "formats.hpp"

namespace {

// 768 columns of a panel are 24 KB: they stay in the first cache while many rows go through.
constexpr int64_t kW8A8Part = 768;

// What lies before the codes of a token: its scale, and what sums begin with where weights are stored plus 128.
struct TokenHeader {
    float scale;
    int32_t minus_128, unused[6];
};
static_assert(sizeof(TokenHeader) == UPWELL_TOKEN_HEADER_BYTES);

INLINE int64_t token_columns(int64_t columns) { return (columns + 31) / 32 * 32; }
INLINE int64_t token_bytes(int64_t columns) { return UPWELL_TOKEN_HEADER_BYTES + token_columns(columns); }
INLINE TokenHeader* token_of(void* tokens, int64_t row, int64_t columns) {
    return (TokenHeader*)((uint8_t*)tokens + row * token_bytes(columns));
}

// A token's integers: rint(x * (127 / max|x|)); columns past the end count as 0. A NaN or an infinity must not vanish:
// it makes the scale NaN, and with it all that the token enters.
static void quantise_token(const float* x, int64_t columns, TokenHeader* token) {
    F peaks = fset(0), sound = fset(0);
    for (int64_t i = 0; i < columns; i += kLanes) {
        F y = i + kLanes <= columns ? fload(x + i) : fload_n(x + i, (int)(columns - i));
        peaks = fmax(peaks, fabs_(y));
        sound = fma(y, fset(0), sound);  // NaN from then on if y is NaN or infinite
    }
    const float peak = fpeak(peaks);
    const F inverse = fset(peak > kTiny ? 127.0f / peak : 0.0f);
    int8_t* codes = (int8_t*)(token + 1);
    int32_t minus[4], minus_128 = 0;
    for (int64_t i = 0; i < token_columns(columns); i += kLanes) {
        F y = i + kLanes <= columns ? fload(x + i) : fload_n(x + i, i < columns ? (int)(columns - i) : 0);
        store_i8(codes + i, to_int(fround(fmul(y, inverse))));
        if (i % kBlock == 0) continue;
        code_sums(codes + i - kLanes, minus);
        minus_128 += minus[1];
    }
    token->scale = fsum(sound) == 0 ? peak / 127.0f : __builtin_nanf("");
    token->minus_128 = minus_128;
}

// A panel: for each 4 columns a vector of codes plus 128 of each half, then the scales of both.
INLINE const float* w8a8_scales(const uint8_t* panel, int64_t k) {
    return (const float*)(panel + kPanelRows * token_columns(k));
}

// A part of the columns of a panel, and where sums of R tokens with it begin and end: 32 a token, `ld` apart.
struct W8A8Part {
    const uint8_t* panel;
    int64_t k, k0, k1;
    float* sums;  // holds integers until the last part is added
    int64_t ld;
};

// Adds a part to the sums of R tokens: begins with the first and scales with the last. Where tokens are few, U sums
// take turns, so that one product need not wait for the one before.
template <int R, int U>
INLINE void w8a8_tile(const W8A8Part& part, const uint8_t* tokens, int64_t row) {
    const int64_t stride = token_bytes(part.k), ld = part.ld;
    const uint8_t *panel = part.panel, *first = tokens + row * stride;
    const int8_t* codes = (const int8_t*)first + UPWELL_TOKEN_HEADER_BYTES;
    float* sums = part.sums + row * ld;
#define UPWELL_TOKEN(R_) (*(const TokenHeader*)(first + (R_) * stride))
    I c[U][R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        if (part.k0) c[0][r][0] = iload(sums + ld * r), c[0][r][1] = iload(sums + ld * r + 16);
        else c[0][r][0] = c[0][r][1] = kSignedWeights ? izero() : iset(UPWELL_TOKEN(r).minus_128);
#pragma GCC unroll 8
        for (int u = 1; u < U; u++) c[u][r][0] = c[u][r][1] = izero();
    }
    for (int64_t k = part.k0; k < part.k1; k += 4 * U) {
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) {
            const uint8_t* at = panel + kPanelRows * (k + 4 * u);
            I w0 = iload(at), w1 = iload(at + 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                I y = spread(codes + r * stride + k + 4 * u);
                c[u][r][0] = dot4_wide(c[u][r][0], w0, y);
                c[u][r][1] = dot4_wide(c[u][r][1], w1, y);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int u = 1; u < U; u++)
            c[0][r][0] = iadd(c[0][r][0], c[u][r][0]), c[0][r][1] = iadd(c[0][r][1], c[u][r][1]);
    if (part.k1 < part.k) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) istore(sums + ld * r, c[0][r][0]), istore(sums + ld * r + 16, c[0][r][1]);
        return;
    }
    const float* scales = w8a8_scales(panel, part.k);
    const F scale0 = fload(scales), scale1 = fload(scales + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        F scale = fset(UPWELL_TOKEN(r).scale);
        fstore(sums + ld * r, fmul(to_float(c[0][r][0]), fmul(scale, scale0)));
        fstore(sums + ld * r + 16, fmul(to_float(c[0][r][1]), fmul(scale, scale1)));
    }
#undef UPWELL_TOKEN
}

static void w8a8_tile_of(int num, const W8A8Part& part, const uint8_t* tokens, int64_t row) {
    if (num == 1) return w8a8_tile<1, kTileRows >= 6 ? 4 : 2>(part, tokens, row);
    if constexpr (kTileRows >= 2)
        if (num == 2) return w8a8_tile<2, kTileRows >= 6 ? 4 : 1>(part, tokens, row);
    if constexpr (kTileRows >= 6) {
        if (num == 3) return w8a8_tile<3, 2>(part, tokens, row);
        if (num == 4) return w8a8_tile<4, 2>(part, tokens, row);
        if (num == 5) return w8a8_tile<5, 2>(part, tokens, row);
        return w8a8_tile<6, 2>(part, tokens, row);
    }
}

// Products of so many tokens with a panel: 32 a token, `ld` apart.
static void w8a8_product(const uint8_t* panel, int64_t k, const TokenHeader* tokens, int rows, float* sums,
                         int64_t ld) {
    const int64_t columns = token_columns(k), step = rows <= kTileRows ? columns : kW8A8Part;
    for (int64_t k0 = 0; k0 < columns; k0 += step) {
        W8A8Part part = {panel, k, k0, k0 + step < columns ? k0 + step : columns, sums, ld};
        for (int r = 0; r < rows; r += kTileRows)
            w8a8_tile_of(rows - r < kTileRows ? rows - r : kTileRows, part, (const uint8_t*)tokens, r);
    }
}

// One row of a matrix as float32.
static void w8a8_unpack_row(const uint8_t* panel, int64_t row, int64_t k, float* out) {
    const float scale = w8a8_scales(panel, k)[row];
    for (int64_t i = 0; i < k; i++) out[i] = (float)((int)panel[i / 4 * 128 + 4 * row + i % 4] - 128) * scale;
}

}  // namespace
