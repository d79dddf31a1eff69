// Sixteen lanes as four 128-bit registers: NEON with the dot product of ARMv8.2.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace {

#define INLINE static inline __attribute__((always_inline))

struct F {  // 16 x f32
    float32x4_t v[4];
};
struct I {  // 16 x i32, or 32 x i16, or 64 x u8
    int32x4_t v[4];
};

constexpr int kTileRows = 2;  // by 2 halves of a panel, four registers each
constexpr bool kSignedWeights = true;  // dot4_wide takes off the 128

// A vector whose register j is the expression X.
#define UPWELL_EACH(V, X)                         \
    {                                             \
        V out;                                    \
        for (int j = 0; j < 4; j++) out.v[j] = X; \
        return out;                               \
    }

INLINE F fset(float x) UPWELL_EACH(F, vdupq_n_f32(x)) INLINE F fload(const float* p)
    UPWELL_EACH(F, vld1q_f32(p + 4 * j)) INLINE void fstore(float* p, F x) {
    for (int j = 0; j < 4; j++) vst1q_f32(p + 4 * j, x.v[j]);
}
INLINE F fload_n(const float* p, int n) {
    if (n == 16) return fload(p);
    float lanes[16] = {0};
    for (int i = 0; i < n; i++) lanes[i] = p[i];
    return fload(lanes);
}
INLINE void fstore_n(float* p, F x, int n) {
    if (n == 16) return fstore(p, x);
    float lanes[16];
    fstore(lanes, x);
    for (int i = 0; i < n; i++) p[i] = lanes[i];
}
INLINE F fadd(F a, F b) UPWELL_EACH(F, vaddq_f32(a.v[j], b.v[j])) INLINE F fsub(F a, F b)
    UPWELL_EACH(F, vsubq_f32(a.v[j], b.v[j])) INLINE F fmul(F a, F b) UPWELL_EACH(F, vmulq_f32(a.v[j], b.v[j])) INLINE F
    fdiv(F a, F b) UPWELL_EACH(F, vdivq_f32(a.v[j], b.v[j])) INLINE F fma(F a, F b, F c)
        UPWELL_EACH(F, vfmaq_f32(c.v[j], a.v[j], b.v[j])) INLINE float32x4_t greater(float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
INLINE F fmax(F a, F b) UPWELL_EACH(F, greater(a.v[j], b.v[j]))  // b where either is NaN: not what vmaxq_f32 gives
    INLINE F fmin(F a, F b) UPWELL_EACH(F, vbslq_f32(vcltq_f32(a.v[j], b.v[j]), a.v[j], b.v[j])) INLINE F fabs_(F a)
        UPWELL_EACH(F, vabsq_f32(a.v[j])) INLINE F fround(F a) UPWELL_EACH(F, vrndnq_f32(a.v[j]))
    // y, but 0 where x < limit
    INLINE F zero_below(F x, F limit, F y)
        UPWELL_EACH(F, vbslq_f32(vcltq_f32(x.v[j], limit.v[j]), vdupq_n_f32(0), y.v[j])) INLINE uint32x4_t
    lanes_below(int n, int j) {  // those of register j
    const int32_t number[4] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(number), vdupq_n_s32(n - 4 * j));
}
// x in lanes [first, last), other elsewhere
INLINE F keep_lanes(F x, int first, int last, F other)
    UPWELL_EACH(F, vbslq_f32(vbicq_u32(lanes_below(last, j), lanes_below(first, j)), x.v[j],
                             other.v[j])) INLINE uint32_t at_least(F x, F limit) {  // a bit for each lane
    const uint32_t bits[4] = {1, 2, 4, 8};
    uint32_t mask = 0;
    for (int j = 0; j < 4; j++) mask |= vaddvq_u32(vandq_u32(vcgeq_f32(x.v[j], limit.v[j]), vld1q_u32(bits))) << 4 * j;
    return mask;
}
INLINE float lane(F x, int i) {
    float lanes[16];
    fstore(lanes, x);
    return lanes[i];
}

INLINE F hload(const uint16_t* p) UPWELL_EACH(F, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * j)))) INLINE
    void hstore(uint16_t* p, F x) {
    for (int j = 0; j < 4; j++) vst1_u16(p + 4 * j, vreinterpret_u16_f16(vcvt_f16_f32(x.v[j])));
}
INLINE F bload(const uint16_t* p) UPWELL_EACH(F, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * j), 16))) INLINE F
    u8load(const uint8_t* p) {
    uint8x16_t x = vld1q_u8(p);
    uint16x8_t lo = vmovl_u8(vget_low_u8(x)), hi = vmovl_high_u8(x);
    return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_high_u16(lo)),
             vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_high_u16(hi))}};
}
INLINE F s8load(const int8_t* p) {
    int8x16_t x = vld1q_s8(p);
    int16x8_t lo = vmovl_s8(vget_low_s8(x)), hi = vmovl_high_s8(x);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_high_s16(hi))}};
}

INLINE I iload(const void* p) UPWELL_EACH(I, vreinterpretq_s32_u8(vld1q_u8((const uint8_t*)p + 16 * j))) INLINE
    void istore(void* p, I x) {
    for (int j = 0; j < 4; j++) vst1q_u8((uint8_t*)p + 16 * j, vreinterpretq_u8_s32(x.v[j]));
}
INLINE I izero() UPWELL_EACH(I, (void(j), vdupq_n_s32(0))) INLINE I iset(int32_t x) UPWELL_EACH(I, vdupq_n_s32(x))
    // Four bytes of memory in every lane.
    INLINE I spread(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return iset(four);
}
INLINE I iadd(I a, I b) UPWELL_EACH(I, vaddq_s32(a.v[j], b.v[j])) INLINE F to_float(I x)
    UPWELL_EACH(F, vcvtq_f32_s32(x.v[j]))
    // To the nearest, ties to even; the least integer where x is NaN or too great, as x86 has it.
    INLINE int32x4_t nearest(float32x4_t x) {
    return vbslq_s32(vcltq_f32(x, vdupq_n_f32(2147483648.0f)), vcvtnq_s32_f32(x), vdupq_n_s32(INT32_MIN));
}
INLINE I to_int(F x) UPWELL_EACH(I, nearest(x.v[j])) INLINE F exponent(F r)  // 2**r for whole r in [-126, 127]
    UPWELL_EACH(F, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(nearest(r.v[j]), vdupq_n_s32(127)), 23))) INLINE F
    add_exponent(F y, F n)  // y * 2**n, where the low bits of n's representation are those of an integer
    UPWELL_EACH(F, vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(y.v[j]),
                                                   vshlq_n_s32(vreinterpretq_s32_f32(n.v[j]), 23)))) INLINE int16x8_t
    narrow(I x, int j) {
    return vqmovn_high_s32(vqmovn_s32(x.v[j]), x.v[j + 1]);
}
INLINE void store_i16(int16_t* p, I x) {
    vst1q_s16(p, narrow(x, 0));
    vst1q_s16(p + 8, narrow(x, 2));
}
INLINE void store_i8(int8_t* p, I x) { vst1q_s8(p, vqmovn_high_s16(vqmovn_s16(narrow(x, 0)), narrow(x, 2))); }
INLINE I load_i8_pairs(const int8_t* p) UPWELL_EACH(I, vreinterpretq_s32_s16(vmovl_s8(vld1_s8(p + 8 * j))))

    INLINE uint8x16_t as_bytes(int32x4_t x) {
    return vreinterpretq_u8_s32(x);
}
INLINE int32x4_t from_bytes(uint8x16_t x) { return vreinterpretq_s32_u8(x); }
INLINE I low_nibbles(I x) UPWELL_EACH(I, from_bytes(vandq_u8(as_bytes(x.v[j]), vdupq_n_u8(15)))) INLINE I
    high_nibbles(I x) UPWELL_EACH(I, from_bytes(vshrq_n_u8(as_bytes(x.v[j]), 4))) template <int SHIFT>
    INLINE uint8x16_t shifted(uint8x16_t x) {  // byte >> SHIFT << 4
    if constexpr (SHIFT < 4) return vshlq_n_u8(x, 4 - SHIFT);
    else if constexpr (SHIFT > 4) return vshrq_n_u8(x, SHIFT - 4);
    else return x;
}
template <int SHIFT>
INLINE I upper_pair(I x)  // (byte >> SHIFT & 3) << 4
    UPWELL_EACH(I, from_bytes(vandq_u8(shifted<SHIFT>(as_bytes(x.v[j])), vdupq_n_u8(48)))) INLINE I bits_or(I a, I b)
        UPWELL_EACH(I, vorrq_s32(a.v[j], b.v[j]))

            INLINE int8x16_t as_s8(int32x4_t x) {
    return vreinterpretq_s8_s32(x);
}
// 16 sums of 4 products: weights of up to 7 bits by s8 activations.
INLINE I dot4(I sum, I weights, I activations)
    UPWELL_EACH(I, vdotq_s32(sum.v[j], as_s8(weights.v[j]), as_s8(activations.v[j])))
    // The same for weights that use all eight bits, stored plus 128.
    INLINE I dot4_wide(I sum, I stored, I activations)
        UPWELL_EACH(I, vdotq_s32(sum.v[j], veorq_s8(as_s8(stored.v[j]), vdupq_n_s8(-128)),
                                 as_s8(activations.v[j]))) INLINE int32x4_t
    dot2(int32x4_t sum, int16x8_t a, int16x8_t b) {
    int32x4_t lo = vmull_s16(vget_low_s16(a), vget_low_s16(b)), hi = vmull_high_s16(a, b);
    return vaddq_s32(sum, vpaddq_s32(lo, hi));
}
// 16 sums of 2 products of s16.
INLINE I dot2(I sum, I a, I b)
    UPWELL_EACH(I, dot2(sum.v[j], vreinterpretq_s16_s32(a.v[j]), vreinterpretq_s16_s32(b.v[j])))

    // Halves are folded onto each other: 16, 8, 4, 2, 1. Every instruction set sums and compares in this order.
    INLINE float fsum(F x) {
    float32x4_t a = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}
INLINE float fpeak(F x) {
    float32x4_t a = greater(greater(x.v[0], x.v[2]), greater(x.v[1], x.v[3]));
    a = greater(a, vextq_f32(a, a, 2));
    return vgetq_lane_f32(greater(a, vextq_f32(a, a, 1)), 0);
}
// {-8 s, -128 s, -32 s0, -32 s1}, where s0 and s1 are the sums of 16 codes each, and s of all.
INLINE void code_sums(const int8_t* codes, int32_t* to) {
    int32_t s0 = vaddlvq_s8(vld1q_s8(codes)), s1 = vaddlvq_s8(vld1q_s8(codes + 16));
    to[0] = -8 * (s0 + s1);
    to[1] = -128 * (s0 + s1);
    to[2] = -32 * s0;
    to[3] = -32 * s1;
}

#undef UPWELL_EACH

}  // namespace
