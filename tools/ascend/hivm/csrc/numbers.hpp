// The element types of HIVM on the host: conversions by bits, alike on every host.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace hivm {

template <class To, class From>
inline To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From), "bits of equal size");
    To bits;
    memcpy(&bits, &value, sizeof(To));
    return bits;
}

struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};
struct Bit {};                  // an i1 of a memref: eight to the byte, the lowest first
enum class Flag : uint8_t {};  // an i1 argument, of which the lowest bit alone counts
inline bool on(Flag flag) { return (uint8_t)flag & 1; }

// How a scalar of an element type is passed: not as _Float16 and __bf16, for which hosts have calls of their own.
enum class HalfBits : uint16_t {};
enum class BFloatBits : uint16_t {};
template <class T>
struct Passed {
    using type = T;
};
template <>
struct Passed<Half> {
    using type = HalfBits;
};
template <>
struct Passed<BFloat> {
    using type = BFloatBits;
};
template <class T>
using Scalar = typename Passed<T>::type;
template <class T>
inline T received(Scalar<T> value) {
    return bits_of<T>(value);
}

inline float to_float(Half half) {
    uint32_t magnitude = (uint32_t)(half.bits & 0x7fff) << 13, sign = (uint32_t)(half.bits & 0x8000) << 16;
    // The exponent's bias by a product, which is exact for subnormal numbers too.
    uint32_t number = bits_of<uint32_t>(bits_of<float>(magnitude) * 0x1p112f);
    uint32_t special = magnitude | 0x7f800000u;
    return bits_of<float>(sign | ((half.bits & 0x7c00) == 0x7c00 ? special : number));
}
inline float to_float(BFloat number) { return bits_of<float>((uint32_t)number.bits << 16); }
inline float to_float(float number) { return number; }
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
inline double to_float(T number) {
    return (double)number;
}

enum Round { kNearestEven, kAwayFromZero, kFloor, kCeil, kTruncate, kOdd };

// Whether a magnitude that lies `rest` of `unit` above a representable one, `odd` or not, is rounded up.
inline bool rounds_up(Round mode, bool negative, bool odd, uint32_t rest, uint32_t unit) {
    switch (mode) {
        case kNearestEven: return rest > unit / 2 || (rest == unit / 2 && odd);
        case kAwayFromZero: return rest >= unit / 2;
        case kFloor: return negative && rest;
        case kCeil: return !negative && rest;
        case kOdd: return rest && !odd;
        default: return false;
    }
}

// Finite numbers out of range become the largest number: an assumption, since a device may be set to give infinity.
__attribute__((noinline)) inline Half half_of(float number, Round mode, int64_t* saturated) {
    uint32_t bits = bits_of<uint32_t>(number), magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude >= 0x7f800000) return {(uint16_t)(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00))};
    int shift = magnitude >= 0x38800000 ? 13 : 126 - (int)(magnitude >> 23);
    uint32_t mantissa = magnitude >= 0x38800000 ? magnitude - 0x38000000 : (magnitude & 0x7fffff) | 0x800000;
    if (shift > 25) shift = 25, mantissa = magnitude ? 1 : 0;
    uint32_t unit = 1u << shift, rounded = mantissa >> shift;
    rounded += rounds_up(mode, sign, rounded & 1, mantissa & (unit - 1), unit);
    if (rounded >= 0x7c00) ++*saturated, rounded = 0x7bff;
    return {(uint16_t)(sign | rounded)};
}
__attribute__((noinline)) inline BFloat bfloat_of(float number, Round mode) {
    uint32_t bits = bits_of<uint32_t>(number), magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return {(uint16_t)(sign | 0x7fc0)};
    uint32_t rounded = magnitude >> 16;
    rounded += rounds_up(mode, sign, rounded & 1, magnitude & 0xffff, 0x10000);
    return {(uint16_t)(sign | rounded)};
}

__attribute__((noinline)) inline double rounded(double number, Round mode) {
    switch (mode) {
        case kNearestEven: return std::nearbyint(number);
        case kAwayFromZero: return std::round(number);
        case kFloor: return std::floor(number);
        case kCeil: return std::ceil(number);
        case kOdd: {
            double down = std::floor(number);
            return down == number || std::fmod(down, 2) != 0 ? down : down + 1;
        }
        default: return std::trunc(number);
    }
}

// The nearest half without a branch; what is too large becomes the largest.
inline Half nearest_half(float number) {
    uint32_t bits = bits_of<uint32_t>(number), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t subnormal = bits_of<uint32_t>(bits_of<float>(magnitude) + 0.5f) - 0x3f000000;
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
    half = half > 0x7bff ? 0x7bff : half;
    half = magnitude >= 0x7f800000 ? (magnitude > 0x7f800000 ? 0x7e00u : 0x7c00u) : half;
    return {(uint16_t)(sign | half)};
}

// Any element type from a number, as an arithmetic unit writes it: nearest even.
template <class T>
inline T from_float(float number) {
    if constexpr (std::is_same_v<T, Half>) return nearest_half(number);
    else if constexpr (std::is_same_v<T, BFloat>) return bfloat_of(number, kNearestEven);
    else return (T)number;
}

template <class T>
constexpr bool is_number = std::is_same_v<T, float> || std::is_same_v<T, Half> || std::is_same_v<T, BFloat>;

}  // namespace hivm
