// Packed weights: panels of 32 output rows, two halves of 16 lanes, and how a block of 32 columns comes out of a half.
//
// A vector of 64 bytes holds 4 consecutive columns of each lane, so that one dot4 with 4 broadcast activations adds 4
// products to each lane's sum. A block of 32 columns is 8 such vectors. The halves take turns, span by span: a thread
// reads its share of a matrix from end to end as one stream, which is what a processor fetches ahead best. Bytes of
// GGUF blocks keep their meaning; only their order changes, in units of 4 bytes. Source of the blocks: the ggml
// specification, ggml-common.h.
//
// With w = scale * (code - zero) + offset, a block adds  a.scale * sum(scale * (code - zero) * q) + offset * a.sum,
// where q are the activations' integers and a.sum the sum of the activations themselves.
#pragma once
#include <cstring>

#include "layout.hpp"
#include "upwell.h"

namespace {

constexpr int kBlock = 32;

struct Scales {
    F scale[2];  // of the block, or of its first and its last 16 columns
    F offset;
};

INLINE F f16_at(const uint8_t* p) { return hload((const uint16_t*)p); }

// Each format: kScales scales a block, whether there is an offset, the bytes of `kSpan` columns of a half, `quad<k>`
// the k-th vector of a block, `scales` of a block, `start` the value that the integer sum of a scale begins with. They
// take the address of a half: its spans are 2 kBytes apart.
struct Q4_0 {
    static constexpr int kSpan = 32, kBytes = 256 + 32, kScales = 1;
    static constexpr bool kOffset = false;
    template <int K>
    INLINE I quad(const uint8_t* half, int64_t b) {
        I x = iload(half + 2 * b * kBytes + 64 * (K & 3));
        return K < 4 ? low_nibbles(x) : high_nibbles(x);
    }
    INLINE void scales(const uint8_t* half, int64_t b, Scales& s) { s.scale[0] = f16_at(half + 2 * b * kBytes + 256); }
    INLINE I dot(I sum, I w, I a) { return dot4(sum, w, a); }
    INLINE I start(const Block& a, int) { return iset(a.minus[0]); }
};

struct Q4_1 {
    static constexpr int kSpan = 32, kBytes = 256 + 64, kScales = 1;
    static constexpr bool kOffset = true;
    template <int K>
    INLINE I quad(const uint8_t* half, int64_t b) {
        I x = iload(half + 2 * b * kBytes + 64 * (K & 3));
        return K < 4 ? low_nibbles(x) : high_nibbles(x);
    }
    INLINE void scales(const uint8_t* half, int64_t b, Scales& s) {
        s.scale[0] = f16_at(half + 2 * b * kBytes + 256);
        s.offset = fma(fset(8.0f), s.scale[0], f16_at(half + 2 * b * kBytes + 288));
    }
    INLINE I dot(I sum, I w, I a) { return dot4(sum, w, a); }
    INLINE I start(const Block& a, int) { return iset(a.minus[0]); }
};

struct Q8_0 {
    static constexpr int kSpan = 32, kBytes = 512 + 32, kScales = 1;
    static constexpr bool kOffset = false;
    template <int K>
    INLINE I quad(const uint8_t* half, int64_t b) {
        return iload(half + 2 * b * kBytes + 64 * K);
    }
    INLINE void scales(const uint8_t* half, int64_t b, Scales& s) { s.scale[0] = f16_at(half + 2 * b * kBytes + 512); }
    INLINE I dot(I sum, I w, I a) { return dot4_wide(sum, w, a); }
    INLINE I start(const Block& a, int) { return kSignedWeights ? izero() : iset(a.minus[1]); }
};

// 256 columns: four pairs of blocks (low nibbles, high nibbles), 8 scales and 8 minima of 6 bits as bytes, and the
// scale of each.
struct Q4_K {
    static constexpr int kSpan = 256, kBytes = 2048 + 128 + 128 + 64, kScales = 1;
    static constexpr bool kOffset = true;
    template <int K>
    INLINE I quad(const uint8_t* half, int64_t b) {
        I x = iload(half + 2 * (b >> 3) * kBytes + ((b & 7) >> 1) * 512 + 64 * K);
        return b & 1 ? high_nibbles(x) : low_nibbles(x);
    }
    INLINE void scales(const uint8_t* half, int64_t b, Scales& s) {
        const uint8_t* p = half + 2 * (b >> 3) * kBytes + 2048;
        s.scale[0] = fmul(f16_at(p + 256), u8load(p + 16 * (b & 7)));
        F minimum = fmul(f16_at(p + 288), u8load(p + 128 + 16 * (b & 7)));
        s.offset = fsub(fmul(fset(8.0f), s.scale[0]), minimum);
    }
    INLINE I dot(I sum, I w, I a) { return dot4(sum, w, a); }
    INLINE I start(const Block& a, int) { return iset(a.minus[0]); }
};

// 256 columns: twice 16 vectors of nibbles, twice 8 vectors of bit pairs, 16 signed scales, their scale. Each of the
// two is for 128 columns.
struct Q6_K {
    static constexpr int kSpan = 256, kBytes = 2048 + 1024 + 256 + 32, kScales = 2;
    static constexpr bool kOffset = false;
    template <int K>
    INLINE I quad(const uint8_t* half, int64_t b) {
        const uint8_t* p = half + 2 * (b >> 3) * kBytes;
        int64_t upper_columns = (b >> 2) & 1, run = b & 3;
        I x = iload(p + upper_columns * 1024 + (run & 1) * 512 + 64 * K);
        I nibbles = run < 2 ? low_nibbles(x) : high_nibbles(x);
        I y = iload(p + 2048 + upper_columns * 512 + 64 * K);
        I upper = run == 0   ? upper_pair<0>(y)
                  : run == 1 ? upper_pair<2>(y)
                  : run == 2 ? upper_pair<4>(y)
                             : upper_pair<6>(y);
        return bits_or(nibbles, upper);
    }
    INLINE void scales(const uint8_t* half, int64_t b, Scales& s) {
        const uint8_t* p = half + 2 * (b >> 3) * kBytes + 3072;
        F whole = f16_at(p + 256);
        s.scale[0] = fmul(whole, s8load((const int8_t*)p + 32 * (b & 7)));
        s.scale[1] = fmul(whole, s8load((const int8_t*)p + 32 * (b & 7) + 16));
    }
    INLINE I dot(I sum, I w, I a) { return dot4(sum, w, a); }
    INLINE I start(const Block& a, int scale) { return iset(a.minus[2 + scale]); }
};

// Formats of single numbers: [k][32] in each panel.
struct F32Weights {
    static constexpr int kBytes = 64;
    INLINE F load(const uint8_t* half, int64_t k) { return fload((const float*)(half + 2 * kBytes * k)); }
};
struct F16Weights {
    static constexpr int kBytes = 32;
    INLINE F load(const uint8_t* half, int64_t k) { return hload((const uint16_t*)(half + 2 * kBytes * k)); }
};
struct BF16Weights {
    static constexpr int kBytes = 32;
    INLINE F load(const uint8_t* half, int64_t k) { return bload((const uint16_t*)(half + 2 * kBytes * k)); }
};

struct Span {
    int64_t columns, bytes;  // of a half
};

template <class Format>
INLINE Span span() {
    return {Format::kSpan, Format::kBytes};
}

INLINE Span span_of(int format) {
    switch (format) {
        case UPWELL_F32: return {1, F32Weights::kBytes};
        case UPWELL_F16: return {1, F16Weights::kBytes};
        case UPWELL_BF16: return {1, BF16Weights::kBytes};
        case UPWELL_Q8_0: return span<Q8_0>();
        case UPWELL_Q4_0: return span<Q4_0>();
        case UPWELL_Q4_1: return span<Q4_1>();
        case UPWELL_Q4_K: return span<Q4_K>();
        default: return span<Q6_K>();
    }
}

INLINE int64_t panel_bytes(int format, int64_t k) {
    if (format == UPWELL_W8A8) return kPanelRows * ((k + 31) / 32 * 32) + 4 * kPanelRows;
    Span span = span_of(format);
    return (k + span.columns - 1) / span.columns * 2 * span.bytes;
}

// One block as int8 codes and float scales, the same for every format: what staged panels consist of.
struct StagedBlock {
    alignas(64) uint8_t codes[8][64];
    alignas(64) float scale[2][16], offset[16];
};

template <class Format>
INLINE void stage(const uint8_t* half, int64_t b, StagedBlock* out) {
    istore(out->codes[0], Format::template quad<0>(half, b));
    istore(out->codes[1], Format::template quad<1>(half, b));
    istore(out->codes[2], Format::template quad<2>(half, b));
    istore(out->codes[3], Format::template quad<3>(half, b));
    istore(out->codes[4], Format::template quad<4>(half, b));
    istore(out->codes[5], Format::template quad<5>(half, b));
    istore(out->codes[6], Format::template quad<6>(half, b));
    istore(out->codes[7], Format::template quad<7>(half, b));
    Scales s;
    Format::scales(half, b, s);
    fstore(out->scale[0], s.scale[0]);
    if (Format::kScales == 2) fstore(out->scale[1], s.scale[1]);
    if (Format::kOffset) fstore(out->offset, s.offset);
}

}  // namespace
