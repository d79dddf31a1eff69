// Conversions of the vector unit. The modes are those of `vcast_*_with_mode`: R, A, F, C, Z, O. Assumed: what is too
// large for half or for an integer becomes the largest value, a NaN becomes 0 in an integer; casts "with overflow"
// wrap.
#include "loops.hpp"

using namespace hivm;

namespace {

template <class S, class D>
D converted(S value, Round mode, int64_t* saturated) {
    if constexpr (std::is_same_v<D, Half>) return half_of((float)to_float(value), mode, saturated);
    else if constexpr (std::is_same_v<D, BFloat>) return bfloat_of((float)to_float(value), mode);
    else if constexpr (std::is_same_v<D, float> && std::is_same_v<S, float>) return (float)rounded(value, mode);
    else if constexpr (std::is_same_v<D, float>) return (float)to_float(value);
    else {
        double number = rounded((double)to_float(value), mode);
        double low = (double)std::numeric_limits<D>::min(), high = (double)std::numeric_limits<D>::max();
        if (number != number) return 0;
        if (number < low || number > high) ++*saturated;
        return number <= low    ? std::numeric_limits<D>::min()
               : number >= high ? std::numeric_limits<D>::max()
                                : (D)number;
    }
}

template <class S, class D>
void cast(const char* name, const View& from, const View& to, int32_t mode) {
    if (mode < kNearestEven || mode > kOdd) return Instruction(name, kV).fail("an unknown rounding mode");
    int64_t saturated = 0;
    map_unary<S, D>(name, from, to, nullptr, [&](S x) { return converted<S, D>(x, (Round)mode, &saturated); });
    machine->counters.saturated += saturated;
}

template <class D>
void from_bits(const char* name, const View& from, const View& to, const View& temp) {
    Instruction instruction(name, kV);
    bool good = instruction.reads(from);
    good = instruction.scribbles(temp) && good;
    if (!(instruction.writes(to) && good)) return;
    if (from.size[0] != to.size[0]) return instruction.fail("sizes of its operands differ");
    count_vector(to);
    for (int64_t i = 0; i < to.size[0]; i++) *to.at<D>(i) = from_float<D>(from.bit(i) ? 1.0f : 0.0f);
}

}  // namespace

#define HIVM_CAST_RANK(FROM, S, TO, D, R)                                                                    \
    HIVM_CALL(vcast_##FROM##_to_##TO##_##R##d_with_mode, (MemRef<S, R> * a, MemRef<D, R> * d, int32_t mode), \
              cast<S, D>("vcast_" #FROM "_to_" #TO, a->view(), d->view(), mode))
#define HIVM_CAST(FROM, S, TO, D)      \
    HIVM_CAST_RANK(FROM, S, TO, D, 1); \
    HIVM_CAST_RANK(FROM, S, TO, D, 2)
HIVM_CAST(float, float, float, float);
HIVM_CAST(float, float, half, Half);
HIVM_CAST(float, float, bfloat16_t, BFloat);
HIVM_CAST(float, float, int16_t, int16_t);
HIVM_CAST(float, float, int32_t, int32_t);
HIVM_CAST(float, float, int64_t, int64_t);
HIVM_CAST(half, Half, float, float);
HIVM_CAST(half, Half, int8_t, int8_t);
HIVM_CAST(half, Half, int16_t, int16_t);
HIVM_CAST(half, Half, int32_t, int32_t);
HIVM_CAST(bfloat16_t, BFloat, float, float);
HIVM_CAST(bfloat16_t, BFloat, int32_t, int32_t);
HIVM_CAST(int8_t, int8_t, half, Half);
HIVM_CAST(int16_t, int16_t, half, Half);
HIVM_CAST(int16_t, int16_t, float, float);
HIVM_CAST(int32_t, int32_t, float, float);
HIVM_CAST(int32_t, int32_t, int16_t, int16_t);
HIVM_CAST(int32_t, int32_t, int64_t, int64_t);
HIVM_CAST(int64_t, int64_t, float, float);
HIVM_CAST(int64_t, int64_t, int32_t, int32_t);

#define HIVM_WRAP_RANK(FROM, S, TO, D, R)                                                              \
    HIVM_CALL(vcast_##FROM##_to_##TO##_##R##d_with_overflow,                                           \
              (MemRef<S, R> * a, MemRef<D, R> * d, MemRef<S, 1> * t, int32_t), View temp = t->view();  \
              map_unary<S, D>("vcast_" #FROM "_to_" #TO "_with_overflow", a->view(), d->view(), &temp, \
                              [](S x) { return (D)x; }))
#define HIVM_WRAP(FROM, S, TO, D)      \
    HIVM_WRAP_RANK(FROM, S, TO, D, 1); \
    HIVM_WRAP_RANK(FROM, S, TO, D, 2)
HIVM_WRAP(int16_t, int16_t, int8_t, int8_t);
HIVM_WRAP(int32_t, int32_t, int8_t, int8_t);
HIVM_WRAP(int32_t, int32_t, int16_t, int16_t);
HIVM_WRAP(int64_t, int64_t, int32_t, int32_t);

#define HIVM_FROM_BITS(TO, D)                                                                                       \
    HIVM_CALL(vcast_bool_to_##TO##_1d_with_temp, (MemRef<Bit, 1> * a, MemRef<D, 1> * d, MemRef<D, 1> * t, int32_t), \
              from_bits<D>("vcast_bool_to_" #TO, a->view(), d->view(), t->view()))
HIVM_FROM_BITS(half, Half);
HIVM_FROM_BITS(float, float);
HIVM_FROM_BITS(bfloat16_t, BFloat);
HIVM_FROM_BITS(int16_t, int16_t);
HIVM_FROM_BITS(int32_t, int32_t);
