// Sixteen lanes as one 512-bit register: AVX-512 with VNNI.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

#define INLINE static inline __attribute__((always_inline))

using F = __m512;   // 16 x f32
using I = __m512i;  // 16 x i32, or 32 x i16, or 64 x u8

constexpr int kTileRows = 6;  // by 2 halves of a panel: 12 integer and 12 float accumulators of 32 registers
constexpr bool kSignedWeights = false;  // dot4 wants unsigned weights

INLINE F fload(const float* p) { return _mm512_loadu_ps(p); }
INLINE void fstore(float* p, F x) { _mm512_storeu_ps(p, x); }
#if !defined(UPWELL_SANITIZED)  // vec_sanitized.hpp has those for sanitizers
INLINE F fload_n(const float* p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE void fstore_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x); }
#endif
INLINE F fset(float x) { return _mm512_set1_ps(x); }
INLINE F fadd(F a, F b) { return _mm512_add_ps(a, b); }
INLINE F fsub(F a, F b) { return _mm512_sub_ps(a, b); }
INLINE F fmul(F a, F b) { return _mm512_mul_ps(a, b); }
INLINE F fdiv(F a, F b) { return _mm512_div_ps(a, b); }
INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F fmax(F a, F b) { return _mm512_max_ps(a, b); }  // b where either is NaN
INLINE F fmin(F a, F b) { return _mm512_min_ps(a, b); }
INLINE F fabs_(F a) { return _mm512_abs_ps(a); }
INLINE F fround(F a) { return _mm512_roundscale_ps(a, 8); }
INLINE F zero_below(F x, F limit, F y) {  // y, but 0 where x < limit
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), _mm512_setzero_ps());
}
INLINE F keep_lanes(F x, int first, int last, F other) {  // x in lanes [first, last), other elsewhere
    __mmask16 m = (__mmask16)(((1u << last) - 1) & ~((1u << first) - 1));
    return _mm512_mask_mov_ps(other, m, x);
}
INLINE uint32_t at_least(F x, F limit) { return _mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ); }  // a bit for each lane
INLINE float lane(F x, int i) { return ((const float*)&x)[i]; }

INLINE F hload(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE void hstore(uint16_t* p, F x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, 8)); }
INLINE F bload(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INLINE F u8load(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
INLINE F s8load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

INLINE I iload(const void* p) { return _mm512_loadu_si512(p); }
INLINE void istore(void* p, I x) { _mm512_storeu_si512(p, x); }
INLINE I izero() { return _mm512_setzero_si512(); }
INLINE I iset(int32_t x) { return _mm512_set1_epi32(x); }
INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
INLINE F to_float(I x) { return _mm512_cvtepi32_ps(x); }
INLINE I to_int(F x) { return _mm512_cvtps_epi32(x); }
INLINE F exponent(F r) {  // 2**r for whole r in [-126, 127]
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(r), _mm512_set1_epi32(127)), 23));
}
INLINE F add_exponent(F y, F n) {  // y * 2**n, where the low bits of n's representation are those of an integer
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
INLINE void store_i8(int8_t* p, I x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(x)); }
INLINE void store_i16(int16_t* p, I x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(x)); }
INLINE I load_i8_pairs(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }

INLINE I low_nibbles(I x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE I high_nibbles(I x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
template <int SHIFT>
INLINE I upper_pair(I x) {  // (byte >> SHIFT & 3) << 4
    I y = SHIFT < 4 ? _mm512_slli_epi16(x, SHIFT < 4 ? 4 - SHIFT : 0) : _mm512_srli_epi16(x, SHIFT < 4 ? 0 : SHIFT - 4);
    return _mm512_and_si512(y, _mm512_set1_epi8(48));
}
INLINE I bits_or(I a, I b) { return _mm512_or_si512(a, b); }

// Four bytes at an address, for every lane. A dot product could read them itself, but each of those that share them
// would do so again: twice the loads, which are what a tile of products then waits for.
using Word __attribute__((may_alias)) = int32_t;
INLINE I spread(const void* p) { return _mm512_set1_epi32(*(const Word*)p); }
// dot4: 16 sums of 4 products, u8 weights by s8 activations. dot2: 16 sums of 2 products of s16.
#if defined(UPWELL_SANITIZED)  // sanitizers do not see what assembler reads
INLINE I dot4(I sum, I weights, I activations) { return _mm512_dpbusd_epi32(sum, weights, activations); }
INLINE I dot2(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
#else
// In assembler, since gcc 12 copies every accumulator around the intrinsics of these: a third of the time.
INLINE I dot4(I sum, I weights, I activations) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(activations));
    return sum;
}
INLINE I dot2(I sum, I a, I b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
#endif
// dot4 for weights that use all eight bits, stored plus 128.
INLINE I dot4_wide(I sum, I weights, I activations) { return dot4(sum, weights, activations); }

// Halves are folded onto each other: 16, 8, 4, 2, 1. Every instruction set sums and compares in this order.
INLINE float fsum(F x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
INLINE float fpeak(F x) {
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
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
