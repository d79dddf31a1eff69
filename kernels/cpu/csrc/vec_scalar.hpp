// Sixteen lanes as plain arrays: what the others are held to, bit for bit, and what runs where none of them does.
#pragma once
#include <cstdint>

namespace {

#define INLINE static inline __attribute__((always_inline))

struct F {  // 16 x f32
    float v[16];
};
struct I {  // 16 x i32, or 32 x i16, or 64 x u8
    union {
        uint32_t v[16];  // sums wrap around
        int16_t s16[32];
        uint8_t u8[64];
        int8_t s8[64];
    };
};

constexpr int kTileRows = 1;  // one after the other: nothing is shared
constexpr bool kSignedWeights = false;  // dot4_wide wants unsigned weights

// A vector whose lane i is the expression X.
#define UPWELL_EACH(V, X)                          \
    {                                              \
        V out;                                     \
        for (int i = 0; i < 16; i++) out.v[i] = X; \
        return out;                                \
    }

template <class To, class From>
INLINE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}

INLINE F fset(float x) UPWELL_EACH(F, x) INLINE F fload(const float* p) UPWELL_EACH(F, p[i]) INLINE F
    fload_n(const float* p, int n) UPWELL_EACH(F, i < n ? p[i] : 0) INLINE void fstore_n(float* p, F x, int n) {
    for (int i = 0; i < n; i++) p[i] = x.v[i];
}
INLINE void fstore(float* p, F x) { fstore_n(p, x, 16); }
INLINE F fadd(F a, F b) UPWELL_EACH(F, a.v[i] + b.v[i]) INLINE F fsub(F a, F b) UPWELL_EACH(F, a.v[i] - b.v[i]) INLINE F
    fmul(F a, F b) UPWELL_EACH(F, a.v[i] * b.v[i]) INLINE F fdiv(F a, F b) UPWELL_EACH(F, a.v[i] / b.v[i]) INLINE F
    fma(F a, F b, F c) UPWELL_EACH(F, __builtin_fmaf(a.v[i], b.v[i], c.v[i])) INLINE float greater(float a, float b) {
    return a > b ? a : b;
}
INLINE F fmax(F a, F b) UPWELL_EACH(F, greater(a.v[i], b.v[i]))  // b where either is NaN
    INLINE F fmin(F a, F b) UPWELL_EACH(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]) INLINE F fabs_(F a)
        UPWELL_EACH(F, __builtin_fabsf(a.v[i])) INLINE F fround(F a) UPWELL_EACH(F, __builtin_rintf(a.v[i])) INLINE F
    zero_below(F x, F limit, F y) UPWELL_EACH(F, x.v[i] < limit.v[i] ? 0 : y.v[i])  // y, but 0 where x < limit
// x in lanes [first, last), other elsewhere
    INLINE F keep_lanes(F x, int first, int last, F other)
        UPWELL_EACH(F, i >= first && i < last ? x.v[i] : other.v[i]) INLINE uint32_t
    at_least(F x, F limit) {  // a bit for each lane
    uint32_t mask = 0;
    for (int i = 0; i < 16; i++) mask |= (uint32_t)(x.v[i] >= limit.v[i]) << i;
    return mask;
}
INLINE float lane(F x, int i) { return x.v[i]; }

INLINE float from_half(uint16_t half) {
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 0) return bits_as<float>(sign | bits_as<uint32_t>((float)fraction * 0x1p-24f));
    if (exponent == 31) return bits_as<float>(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000u : 0));
    return bits_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
INLINE uint16_t to_half(float x) {  // to the nearest, ties to even
    uint32_t bits = bits_as<uint32_t>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t half;
    if (size > 0x7f800000) half = 0x7e00 | (size >> 13 & 0x3ff);  // NaN
    else if (size >= 0x477ff000) half = 0x7c00;                   // rounds to 2**16, or is infinite
    else if (size < 0x38800000) half = bits_as<uint32_t>(bits_as<float>(size) + 0.5f) - 0x3f000000;  // subnormal
    else half = (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
    return (uint16_t)(sign | half);
}
INLINE F hload(const uint16_t* p) UPWELL_EACH(F, from_half(p[i])) INLINE void hstore(uint16_t* p, F x) {
    for (int i = 0; i < 16; i++) p[i] = to_half(x.v[i]);
}
INLINE F bload(const uint16_t* p) UPWELL_EACH(F, bits_as<float>((uint32_t)p[i] << 16)) INLINE F u8load(const uint8_t* p)
    UPWELL_EACH(F, p[i]) INLINE F s8load(const int8_t* p) UPWELL_EACH(F, p[i])

        INLINE I iload(const void* p) {
    I r;
    __builtin_memcpy(r.u8, p, 64);
    return r;
}
INLINE void istore(void* p, I x) { __builtin_memcpy(p, x.u8, 64); }
INLINE I iset(int32_t x) UPWELL_EACH(I, (uint32_t)x)
    // Four bytes of memory in every lane.
    INLINE I spread(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return iset(four);
}
INLINE I izero() { return iset(0); }
INLINE I iadd(I a, I b) UPWELL_EACH(I, a.v[i] + b.v[i]) INLINE F to_float(I x) UPWELL_EACH(F, (float)(int32_t)x.v[i])
    // To the nearest, ties to even; the least integer where x is NaN or does not fit, as x86 has it.
    INLINE int32_t nearest(float x) {
    return x >= -0x1p31f && x < 0x1p31f ? (int32_t)__builtin_rintf(x) : INT32_MIN;
}
INLINE I to_int(F x) UPWELL_EACH(I, (uint32_t)nearest(x.v[i]))
    // 2**r for whole r in [-126, 127]
    INLINE F exponent(F r) UPWELL_EACH(F, bits_as<float>(((uint32_t)nearest(r.v[i]) + 127) << 23))
    // y * 2**n, where the low bits of n's representation are those of an integer
    INLINE F add_exponent(F y, F n)
        UPWELL_EACH(F, bits_as<float>(bits_as<uint32_t>(y.v[i]) + (bits_as<uint32_t>(n.v[i]) << 23))) INLINE int32_t
    bounded(uint32_t x, int32_t limit) {
    int32_t y = (int32_t)x;
    return y > limit ? limit : y < -limit - 1 ? -limit - 1 : y;
}
INLINE void store_i8(int8_t* p, I x) {
    for (int i = 0; i < 16; i++) p[i] = (int8_t)bounded(x.v[i], 127);
}
INLINE void store_i16(int16_t* p, I x) {
    for (int i = 0; i < 16; i++) p[i] = (int16_t)bounded(x.v[i], 32767);
}
INLINE I load_i8_pairs(const int8_t* p) {
    I r;
    for (int i = 0; i < 32; i++) r.s16[i] = p[i];
    return r;
}

INLINE I low_nibbles(I x) UPWELL_EACH(I, x.v[i] & 0x0f0f0f0f) INLINE I high_nibbles(I x)
    UPWELL_EACH(I, x.v[i] >> 4 & 0x0f0f0f0f) template <int SHIFT>
    INLINE I upper_pair(I x) UPWELL_EACH(I, (x.v[i] >> SHIFT & 0x03030303) << 4)  // (byte >> SHIFT & 3) << 4
    INLINE I bits_or(I a, I b) UPWELL_EACH(I, a.v[i] | b.v[i])

    // 16 sums of 4 products: u8 weights by s8 activations.
    INLINE I dot4(I sum, I weights, I activations) {
    for (int i = 0; i < 64; i++) sum.v[i / 4] += (uint32_t)(weights.u8[i] * activations.s8[i]);
    return sum;
}
// The same for weights that use all eight bits, stored plus 128.
INLINE I dot4_wide(I sum, I weights, I activations) { return dot4(sum, weights, activations); }
// 16 sums of 2 products of s16.
INLINE I dot2(I sum, I a, I b) {
    for (int i = 0; i < 32; i++) sum.v[i / 2] += (uint32_t)(a.s16[i] * b.s16[i]);
    return sum;
}

// Halves are folded onto each other: 16, 8, 4, 2, 1. Every instruction set sums and compares in this order.
INLINE float fsum(F x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x.v[i] += x.v[i + half];
    return x.v[0];
}
INLINE float fpeak(F x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x.v[i] = greater(x.v[i], x.v[i + half]);
    return x.v[0];
}
// {-8 s, -128 s, -32 s0, -32 s1}, where s0 and s1 are the sums of 16 codes each, and s of all.
INLINE void code_sums(const int8_t* codes, int32_t* to) {
    int32_t s0 = 0, s1 = 0;
    for (int i = 0; i < 16; i++) s0 += codes[i], s1 += codes[16 + i];
    to[0] = -8 * (s0 + s1);
    to[1] = -128 * (s0 + s1);
    to[2] = -32 * s0;
    to[3] = -32 * s1;
}

#undef UPWELL_EACH

}  // namespace
