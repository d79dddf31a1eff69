// Sixteen lanes as two 256-bit registers: AVX2 with FMA and F16C, and AVX-VNNI where it is compiled for it.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

#define INLINE static inline __attribute__((always_inline))

struct F {  // 16 x f32
    __m256 lo, hi;
};
struct I {  // 16 x i32, or 32 x i16, or 64 x u8
    __m256i lo, hi;
};

constexpr int kTileRows = 2;  // by 2 halves of a panel, two registers each
#if defined(__AVXVNNI__)
constexpr bool kSignedWeights = false;  // dot4_wide wants unsigned weights
#else
constexpr bool kSignedWeights = true;  // dot4_wide takes off the 128
#endif

// Loads of eight of these, from the 16th on less n, have their first n lanes set.
alignas(64) const int32_t kLaneMasks[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
INLINE __m256i first_lanes(int n) { return _mm256_loadu_si256((const __m256i*)(kLaneMasks + 16 - n)); }
INLINE __m256i next_lanes(int n) { return _mm256_loadu_si256((const __m256i*)(kLaneMasks + 24 - n)); }

INLINE F fload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void fstore(float* p, F x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
#if !defined(UPWELL_SANITIZED)  // vec_sanitized.hpp has those for sanitizers
INLINE F fload_n(const float* p, int n) {
    return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, next_lanes(n))};
}
INLINE void fstore_n(float* p, F x, int n) {
    _mm256_maskstore_ps(p, first_lanes(n), x.lo);
    _mm256_maskstore_ps(p + 8, next_lanes(n), x.hi);
}
#endif
INLINE F fset(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE F fadd(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
INLINE F fsub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
INLINE F fmul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
INLINE F fdiv(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
INLINE F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
INLINE F fmax(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }  // b where either is NaN
INLINE F fmin(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
INLINE F fabs_(F a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
INLINE F fround(F a) { return {_mm256_round_ps(a.lo, 8), _mm256_round_ps(a.hi, 8)}; }
INLINE F zero_below(F x, F limit, F y) {  // y, but 0 where x < limit
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_LT_OQ), y.lo),
            _mm256_andnot_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_LT_OQ), y.hi)};
}
INLINE F keep_lanes(F x, int first, int last, F other) {  // x in lanes [first, last), other elsewhere
    __m256 lo = _mm256_castsi256_ps(_mm256_andnot_si256(first_lanes(first), first_lanes(last)));
    __m256 hi = _mm256_castsi256_ps(_mm256_andnot_si256(next_lanes(first), next_lanes(last)));
    return {_mm256_blendv_ps(other.lo, x.lo, lo), _mm256_blendv_ps(other.hi, x.hi, hi)};
}
INLINE uint32_t at_least(F x, F limit) {  // a bit for each lane
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_GE_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_GE_OQ)) << 8;
}
INLINE float lane(F x, int i) {
    float lanes[16];
    fstore(lanes, x);
    return lanes[i];
}

INLINE F hload(const uint16_t* p) {
    const __m128i* q = (const __m128i*)p;
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
INLINE void hstore(uint16_t* p, F x) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.lo, 8));
    _mm_storeu_si128((__m128i*)p + 1, _mm256_cvtps_ph(x.hi, 8));
}
INLINE F bload(const uint16_t* p) {
    const __m128i* q = (const __m128i*)p;
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16))};
}
INLINE F u8load(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
INLINE F s8load(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}

INLINE I iload(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
INLINE void istore(void* p, I x) {
    _mm256_storeu_si256((__m256i*)p, x.lo);
    _mm256_storeu_si256((__m256i*)p + 1, x.hi);
}
INLINE I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE I iset(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
// Four bytes of memory in every lane.
INLINE I spread(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return iset(four);
}
INLINE I iadd(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
INLINE F to_float(I x) { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }
INLINE I to_int(F x) { return {_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi)}; }
INLINE F exponent(F r) {  // 2**r for whole r in [-126, 127]
    I x = iadd(to_int(r), iset(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.lo, 23)), _mm256_castsi256_ps(_mm256_slli_epi32(x.hi, 23))};
}
INLINE __m256 add_exponent(__m256 y, __m256 n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
INLINE F add_exponent(F y, F n) {  // y * 2**n, where the low bits of n's representation are those of an integer
    return {add_exponent(y.lo, n.lo), add_exponent(y.hi, n.hi)};
}
// 16 x i32 as i16 in order: packs works within 128 bits.
INLINE __m256i narrow(I x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8); }
INLINE void store_i16(int16_t* p, I x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
INLINE void store_i8(int8_t* p, I x) {
    __m256i y = narrow(x);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
}
INLINE I load_i8_pairs(const int8_t* p) {
    const __m128i* q = (const __m128i*)p;
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(q)), _mm256_cvtepi8_epi16(_mm_loadu_si128(q + 1))};
}

INLINE I bits_and(I a, I b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
INLINE I bits_or(I a, I b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
INLINE I bytes(int8_t x) { return {_mm256_set1_epi8(x), _mm256_set1_epi8(x)}; }
INLINE I low_nibbles(I x) { return bits_and(x, bytes(15)); }
INLINE I high_nibbles(I x) { return bits_and({_mm256_srli_epi16(x.lo, 4), _mm256_srli_epi16(x.hi, 4)}, bytes(15)); }
template <int SHIFT>
INLINE I upper_pair(I x) {  // (byte >> SHIFT & 3) << 4
    constexpr int LEFT = SHIFT < 4 ? 4 - SHIFT : 0, RIGHT = SHIFT < 4 ? 0 : SHIFT - 4;
    x = {_mm256_slli_epi16(x.lo, LEFT), _mm256_slli_epi16(x.hi, LEFT)};
    return bits_and({_mm256_srli_epi16(x.lo, RIGHT), _mm256_srli_epi16(x.hi, RIGHT)}, bytes(48));
}

#if defined(__AVXVNNI__)
// In assembler, as in vec_avx512.hpp. {vex}, since the assembler's own choice would be AVX-512's.
INLINE __m256i dot4(__m256i sum, __m256i weights, __m256i activations) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(activations));
    return sum;
}
INLINE __m256i dot2(__m256i sum, __m256i a, __m256i b) {
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}
#else
// Exact for weights of up to 7 bits: two products, at most 2 * 127 * 128, stay within 16 bits.
INLINE __m256i dot4(__m256i sum, __m256i weights, __m256i activations) {
    __m256i pairs = _mm256_maddubs_epi16(weights, activations);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE __m256i dot2(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
// Exact for weights of 8 bits, since activations are in [-127, 127]: 2 * 128 * 127 < 2**15.
INLINE __m256i dot4_signed(__m256i sum, __m256i stored, __m256i activations) {
    __m256i weights = _mm256_xor_si256(stored, _mm256_set1_epi8(-128));
    return dot4(sum, _mm256_abs_epi8(weights), _mm256_sign_epi8(activations, weights));
}
#endif

// 16 sums of 4 products: u8 weights by s8 activations.
INLINE I dot4(I sum, I weights, I activations) {
    return {dot4(sum.lo, weights.lo, activations.lo), dot4(sum.hi, weights.hi, activations.hi)};
}
// The same for weights that use all eight bits, stored plus 128.
INLINE I dot4_wide(I sum, I weights, I activations) {
#if defined(__AVXVNNI__)
    return dot4(sum, weights, activations);
#else
    return {dot4_signed(sum.lo, weights.lo, activations.lo), dot4_signed(sum.hi, weights.hi, activations.hi)};
#endif
}
// 16 sums of 2 products of s16.
INLINE I dot2(I sum, I a, I b) { return {dot2(sum.lo, a.lo, b.lo), dot2(sum.hi, a.hi, b.hi)}; }

// Halves are folded onto each other: 16, 8, 4, 2, 1. Every instruction set sums and compares in this order.
INLINE float fsum(F x) {
    __m256 a = _mm256_add_ps(x.lo, x.hi);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
INLINE float fpeak(F x) {
    __m256 a = _mm256_max_ps(x.lo, x.hi);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
// {-8 s, -128 s, -32 s0, -32 s1}, where s0 and s1 are the sums of 16 codes each, and s of all.
INLINE void code_sums(const int8_t* codes, int32_t* to) {
    const __m128i sign = _mm_set1_epi8(-128), zero = _mm_setzero_si128();
    __m128i a = _mm_sad_epu8(_mm_xor_si128(_mm_loadu_si128((const __m128i*)codes), sign), zero);
    __m128i b = _mm_sad_epu8(_mm_xor_si128(_mm_loadu_si128((const __m128i*)codes + 1), sign), zero);
    __m128i halves = _mm_add_epi64(_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));  // s0, 0, s1, 0 with 2048 each
    __m128i all = _mm_add_epi64(halves, _mm_shuffle_epi32(halves, 0x4e));
    __m128i sums = _mm_castps_si128(_mm_shuffle_ps(_mm_castsi128_ps(all), _mm_castsi128_ps(halves), 0x88));
    sums = _mm_sub_epi32(_mm_setr_epi32(4096, 4096, 2048, 2048), sums);
    _mm_storeu_si128((__m128i*)to, _mm_sllv_epi32(sums, _mm_setr_epi32(3, 7, 5, 5)));
}

}  // namespace

#if defined(UPWELL_SANITIZED)
#include "vec_sanitized.hpp"
#endif
