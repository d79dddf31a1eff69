// Reductions, broadcasts, transposes and ranges of the vector unit. Assumed: a sum is taken in the element's type, in
// the order of the elements.
#include "loops.hpp"

using namespace hivm;

namespace {

enum Reduce { kSum, kMax, kMin, kProduct, kAll1, kAny1, kParity };

template <class T>
T combined(Reduce how, T x, T y) {
    if constexpr (is_number<T>) {
        float a = to_float(x), b = to_float(y);
        switch (how) {
            case kSum: return from_float<T>(a + b);
            case kProduct: return from_float<T>(a * b);
            case kMax: return b > a || b != b ? y : x;
            default: return b < a || b != b ? y : x;
        }
    } else {
        using U = std::make_unsigned_t<T>;
        switch (how) {
            case kSum: return (T)((U)x + (U)y);
            case kProduct: return (T)((U)x * (U)y);
            case kMax: return x > y ? x : y;
            case kMin: return x < y ? x : y;
            case kAll1: return (T)(x & y);
            case kAny1: return (T)(x | y);
            default: return (T)(x ^ y);
        }
    }
}

// Along `axis`, beginning with `initial`.
template <class T>
void reduce(const char* name, Reduce how, int axis, const View& from, const View& to, const View& temp, T initial) {
    Instruction instruction(name, kV);
    for (int i = 0; i < from.rank; i++)
        if (to.size[i] != (i == axis ? 1 : from.size[i])) return instruction.fail("sizes of its operands differ");
    bool good = instruction.reads(from);
    good = instruction.scribbles(temp) && good;
    if (!(instruction.writes(to) && good) || from.count() <= 0) return;
    count_vector(from);
    int64_t n = from.size[axis], step = from.stride[axis];
    int64_t sizes[3] = {1, 1, 1};
    for (int i = 0; i < from.rank; i++) sizes[i] = to.size[i];
    for (int64_t i = 0; i < sizes[0]; i++)
        for (int64_t j = 0; j < sizes[1]; j++)
            for (int64_t k = 0; k < sizes[2]; k++) {
                const T* x = from.at<T>(i, j, k);
                T sum = initial;
                for (int64_t at = 0; at < n; at++) sum = combined(how, sum, x[at * step]);
                *to.at<T>(i, j, k) = sum;
            }
}

template <class T>
void broadcast(const char* name, const View& from, const View& to, const View* temp) {
    map_unary<T, T>(name, from, to, temp, [](T x) { return x; });
}

template <class T>
T number_of(int64_t value) {
    if constexpr (is_number<T>) return from_float<T>((float)value);
    else return (T)value;
}

template <class T>
void fill(const char* name, T value, const View& to) {
    Instruction instruction(name, kV);
    if (!instruction.writes(to) || to.count() <= 0) return;
    count_vector(to);
    for (int64_t i = 0; i < to.size[0]; i++)
        for (int64_t j = 0; j < (to.rank > 1 ? to.size[1] : 1); j++) *to.at<T>(i, j) = value;
}

}  // namespace

#define HIVM_REDUCE_CALL(CALL, HOW, AXIS, R, T)                                                \
    HIVM_CALL(CALL, (MemRef<T, R> * a, MemRef<T, R> * d, MemRef<T, 1> * t, Scalar<T> initial), \
              reduce<T>(#CALL, HOW, AXIS, a->view(), d->view(), t->view(), received<T>(initial)))
// r: a vector, ar: rows, ra: columns, ra0a1: the first of three axes, ara: the second.
#define HIVM_REDUCE(WORD, HOW, NAME, T)                           \
    HIVM_REDUCE_CALL(reduce_##WORD##_r_##NAME, HOW, 0, 1, T);     \
    HIVM_REDUCE_CALL(reduce_##WORD##_ar_##NAME, HOW, 1, 2, T);    \
    HIVM_REDUCE_CALL(reduce_##WORD##_ra_##NAME, HOW, 0, 2, T);    \
    HIVM_REDUCE_CALL(reduce_##WORD##_ra0a1_##NAME, HOW, 0, 3, T); \
    HIVM_REDUCE_CALL(reduce_##WORD##_ara_##NAME, HOW, 1, 3, T)
#define HIVM_REDUCES(NAME, T)        \
    HIVM_REDUCE(sum, kSum, NAME, T); \
    HIVM_REDUCE(max, kMax, NAME, T); \
    HIVM_REDUCE(min, kMin, NAME, T); \
    HIVM_REDUCE(prod, kProduct, NAME, T)
HIVM_REDUCES(float, float);
HIVM_REDUCES(half, Half);
HIVM_REDUCES(int32_t, int32_t);
HIVM_REDUCES(int16_t, int16_t);
#define HIVM_REDUCE_BITS(NAME, T)      \
    HIVM_REDUCE(andi, kAll1, NAME, T); \
    HIVM_REDUCE(ori, kAny1, NAME, T);  \
    HIVM_REDUCE(xori, kParity, NAME, T)
HIVM_REDUCE_BITS(int32_t, int32_t);
HIVM_REDUCE_BITS(int16_t, int16_t);
#define HIVM_REDUCE_VC(NAME, T)                                     \
    HIVM_REDUCE_CALL(enablevc_reduce_sum_ar_##NAME, kSum, 1, 2, T); \
    HIVM_REDUCE_CALL(enablevc_reduce_sum_r_##NAME, kSum, 0, 1, T);  \
    HIVM_REDUCE_CALL(enablevc_reduce_max_ar_##NAME, kMax, 1, 2, T); \
    HIVM_REDUCE_CALL(enablevc_reduce_max_r_##NAME, kMax, 0, 1, T);  \
    HIVM_REDUCE_CALL(enablevc_reduce_min_ar_##NAME, kMin, 1, 2, T); \
    HIVM_REDUCE_CALL(enablevc_reduce_min_r_##NAME, kMin, 0, 1, T)
HIVM_REDUCE_VC(float, float);
HIVM_REDUCE_VC(half, Half);

#define HIVM_FIRST_AXIS(KIND, NAME, T, R)                                                        \
    HIVM_CALL(broadcast_first_axis_##KIND##_##R##d_##NAME, (MemRef<T, R> * a, MemRef<T, R> * d), \
              broadcast<T>("broadcast_first_axis_" #KIND "_" #R "d_" #NAME, a->view(), d->view(), nullptr))
#define HIVM_LAST_AXIS(KIND, NAME, T)                                                                         \
    HIVM_CALL(broadcast_last_axis_##KIND##_2d_##NAME, (MemRef<T, 2> * a, MemRef<T, 2> * d, MemRef<T, 1> * t), \
              View temp = t->view();                                                                          \
              broadcast<T>("broadcast_last_axis_" #KIND "_2d_" #NAME, a->view(), d->view(), &temp))
#define HIVM_BROADCAST(NAME, T)                                                            \
    HIVM_CALL(broadcast_scalar_##NAME##_to_1d, (Scalar<T> s, MemRef<T, 1> * d),            \
              fill<T>("broadcast_scalar_" #NAME "_to_1d", received<T>(s), d->view()));     \
    HIVM_CALL(broadcast_scalar_##NAME##_to_2d, (Scalar<T> s, MemRef<T, 2> * d),            \
              fill<T>("broadcast_scalar_" #NAME "_to_2d", received<T>(s), d->view()));     \
    HIVM_FIRST_AXIS(align, NAME, T, 2);                                                    \
    HIVM_FIRST_AXIS(align, NAME, T, 3);                                                    \
    HIVM_LAST_AXIS(align, NAME, T);                                                        \
    HIVM_LAST_AXIS(unalign, NAME, T);                                                      \
    HIVM_LAST_AXIS(unknown_align, NAME, T);                                                \
    HIVM_CALL(broadcast_middle_axis_align_3d_##NAME, (MemRef<T, 3> * a, MemRef<T, 3> * d), \
              broadcast<T>("broadcast_middle_axis_align_3d_" #NAME, a->view(), d->view(), nullptr))
HIVM_BROADCAST(float, float);
HIVM_BROADCAST(half, Half);
HIVM_BROADCAST(bfloat16_t, BFloat);
HIVM_BROADCAST(int8_t, int8_t);
HIVM_BROADCAST(int16_t, int16_t);
HIVM_BROADCAST(int32_t, int32_t);
HIVM_BROADCAST(int64_t, int64_t);

#define HIVM_ARANGE(NAME, T)                                                                                          \
    HIVM_CALL(arange_1d_##NAME, (MemRef<T, 1> * d, int64_t first, int64_t step), View to = d->view();                 \
              Instruction instruction("arange_1d_" #NAME, kV); if (!instruction.writes(to)) return; count_vector(to); \
              for (int64_t i = 0; i < to.size[0]; i++) * to.at<T>(i) = number_of<T>(first + i * step))
HIVM_ARANGE(float, float);
HIVM_ARANGE(half, Half);
HIVM_ARANGE(int16_t, int16_t);
HIVM_ARANGE(int32_t, int32_t);

HIVM_CALL(arange_2d_int32_t, (MemRef<int32_t, 2> * d, int64_t first, int64_t outer_step, int64_t step),
          View to = d->view();
          Instruction instruction("arange_2d_int32_t", kV); if (!instruction.writes(to)) return; count_vector(to);
          for (int64_t i = 0; i < to.size[0]; i++) for (int64_t j = 0; j < to.size[1]; j++) *
              to.at<int32_t>(i, j) = (int32_t)(first + i * outer_step + j * step));
