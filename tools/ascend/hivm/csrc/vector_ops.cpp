// Arithmetic, comparisons and selections of the vector unit. Assumed: float and half round to nearest even after every
// operation, integers wrap, and a maximum or minimum with a NaN is a NaN.
#include "loops.hpp"

using namespace hivm;

namespace {

template <class T>
auto wide(T x) {
    if constexpr (is_number<T>) return to_float(x);
    else return (std::make_unsigned_t<T>)x;
}
template <class T, class W>
T narrow(W x) {
    if constexpr (is_number<T>) return from_float<T>(x);
    else return (T)x;
}

// z = f(x, y) in the type that the unit computes in.
#define HIVM_ARITHMETIC(NAME, EXPRESSION)           \
    struct NAME {                                   \
        template <class T>                          \
        T operator()(T first, T second) const {     \
            auto x = wide(first), y = wide(second); \
            return narrow<T>(EXPRESSION);           \
        }                                           \
    };
HIVM_ARITHMETIC(Add, x + y)
HIVM_ARITHMETIC(Sub, x - y)
HIVM_ARITHMETIC(Mul, x* y)
HIVM_ARITHMETIC(Div, x / y)
#undef HIVM_ARITHMETIC

template <class T>
auto ordered(T x) {
    if constexpr (is_number<T>) return to_float(x);
    else return x;
}
struct Max {
    template <class T>
    T operator()(T first, T second) const {
        auto x = ordered(first), y = ordered(second);
        return x > y || x != x ? first : second;
    }
};
struct Min {
    template <class T>
    T operator()(T first, T second) const {
        auto x = ordered(first), y = ordered(second);
        return x < y || x != x ? first : second;
    }
};
struct And {
    template <class T>
    T operator()(T x, T y) const {
        return (T)(x & y);
    }
};
struct Or {
    template <class T>
    T operator()(T x, T y) const {
        return (T)(x | y);
    }
};
struct Xor {
    template <class T>
    T operator()(T x, T y) const {
        return (T)(x ^ y);
    }
};

struct Not {
    template <class T>
    T operator()(T x) const {
        return (T)~x;
    }
};

#define HIVM_FUNCTION(NAME, EXPRESSION)       \
    struct NAME {                             \
        template <class T>                    \
        T operator()(T value) const {         \
            float x = to_float(value);        \
            return from_float<T>(EXPRESSION); \
        }                                     \
    };
HIVM_FUNCTION(Exp, std::exp(x))
HIVM_FUNCTION(Log, std::log(x))
HIVM_FUNCTION(Sqrt, std::sqrt(x))
HIVM_FUNCTION(Reciprocal, 1 / x)
HIVM_FUNCTION(ReciprocalSqrt, 1 / std::sqrt(x))
HIVM_FUNCTION(Magnitude, std::fabs(x))
HIVM_FUNCTION(Relu, x > 0 || x != x ? x : 0)
#undef HIVM_FUNCTION

template <class Op, class T>
void scalar(const char* name, const View& from, T right, const View& to, const View* temp) {
    map_unary<T, T>(name, from, to, temp, [right](T x) { return Op()(x, right); });
}
template <class Op, class T>
void reversed(const char* name, T left, const View& from, const View& to, const View* temp) {
    map_unary<T, T>(name, from, to, temp, [left](T x) { return Op()(left, x); });
}

enum Compare { kEq, kNe, kLt, kLe, kGt, kGe };
template <class T>
bool holds(Compare compare, T first, T second) {
    auto x = ordered(first), y = ordered(second);
    switch (compare) {
        case kEq: return x == y;
        case kNe: return x != y;
        case kLt: return x < y;
        case kLe: return x <= y;
        case kGt: return x > y;
        default: return x >= y;
    }
}

template <class T>
void compare(const char* name, Compare how, const View& left, const View* right, T scalar, const View& to) {
    Instruction instruction(name, kV);
    bool good = instruction.reads(left);
    if (right) good = instruction.reads(*right) && good;
    if (!(instruction.writes(to) && good)) return;
    if (left.size[0] != to.size[0] || (right && right->size[0] != to.size[0]))
        return instruction.fail("sizes of its operands differ");
    count_vector(left);
    for (int64_t i = 0; i < to.size[0]; i++)
        to.set_bit(i, holds(how, *left.at<T>(i), right ? *right->at<T>(i) : scalar));
}

template <class T>
void select(const char* name, const View& condition, const View* left, T first, const View* right, T second,
            const View& to, const View& temp) {
    Instruction instruction(name, kV);
    bool good = instruction.reads(condition);
    if (left) good = instruction.reads(*left) && good;
    if (right) good = instruction.reads(*right) && good;
    good = instruction.scribbles(temp) && good;
    if (!(instruction.writes(to) && good)) return;
    int64_t n = to.size[0];
    if (condition.size[0] != n || (left && left->size[0] != n) || (right && right->size[0] != n))
        return instruction.fail("sizes of its operands differ");
    count_vector(to);
    for (int64_t i = 0; i < n; i++)
        *to.at<T>(i) = condition.bit(i) ? (left ? *left->at<T>(i) : first) : (right ? *right->at<T>(i) : second);
}

template <class Op>
void logic(const char* name, const View& left, const View& right, const View& to, const View& temp, Op op) {
    Instruction instruction(name, kV);
    bool good = instruction.reads(left);
    good = instruction.reads(right) && good;
    good = instruction.scribbles(temp) && good;
    if (!(instruction.writes(to) && good)) return;
    if (left.size[0] != to.size[0] || right.size[0] != to.size[0])
        return instruction.fail("sizes of its operands differ");
    count_vector(to);
    for (int64_t i = 0; i < to.size[0]; i++) to.set_bit(i, op(left.bit(i), right.bit(i)));
}

}  // namespace

#define HIVM_BINARY(OP, FUNCTION, NAME, T, R)                                                               \
    HIVM_CALL(OP##_##R##d_##NAME, (MemRef<T, R> * a, MemRef<T, R> * b, MemRef<T, R> * d, MemRef<T, 1> * t), \
              View temp = t->view();                                                                        \
              map_binary<T>(#OP "_" #R "d_" #NAME, a->view(), b->view(), d->view(), &temp, FUNCTION()))
#define HIVM_SCALAR(OP, FUNCTION, NAME, T, R)                                                             \
    HIVM_CALL(OP##_vs_##R##d_##NAME, (MemRef<T, R> * a, Scalar<T> s, MemRef<T, R> * d, MemRef<T, 1> * t), \
              View temp = t->view();                                                                      \
              scalar<FUNCTION, T>(#OP "_vs_" #R "d_" #NAME, a->view(), received<T>(s), d->view(), &temp))
#define HIVM_REVERSED(OP, FUNCTION, NAME, T, R)                                                           \
    HIVM_CALL(OP##_sv_##R##d_##NAME, (Scalar<T> s, MemRef<T, R> * a, MemRef<T, R> * d, MemRef<T, 1> * t), \
              View temp = t->view();                                                                      \
              reversed<FUNCTION, T>(#OP "_sv_" #R "d_" #NAME, received<T>(s), a->view(), d->view(), &temp))
#define HIVM_UNARY(OP, FUNCTION, NAME, T, R)                                                                     \
    HIVM_CALL(OP##_##R##d_##NAME, (MemRef<T, R> * a, MemRef<T, R> * d, MemRef<T, 1> * t), View temp = t->view(); \
              map_unary<T, T>(#OP "_" #R "d_" #NAME, a->view(), d->view(), &temp, FUNCTION()))

#define HIVM_RANKS(MACRO, ...) \
    MACRO(__VA_ARGS__, 1);     \
    MACRO(__VA_ARGS__, 2);     \
    MACRO(__VA_ARGS__, 3)
#define HIVM_ARITHMETIC(NAME, T)                  \
    HIVM_RANKS(HIVM_BINARY, vadd, Add, NAME, T);  \
    HIVM_RANKS(HIVM_SCALAR, vadds, Add, NAME, T); \
    HIVM_RANKS(HIVM_BINARY, vsub, Sub, NAME, T);  \
    HIVM_RANKS(HIVM_SCALAR, vsub, Sub, NAME, T);  \
    HIVM_RANKS(HIVM_BINARY, vmul, Mul, NAME, T);  \
    HIVM_RANKS(HIVM_SCALAR, vmuls, Mul, NAME, T); \
    HIVM_RANKS(HIVM_BINARY, vmax, Max, NAME, T);  \
    HIVM_RANKS(HIVM_SCALAR, vmaxs, Max, NAME, T); \
    HIVM_RANKS(HIVM_BINARY, vmin, Min, NAME, T);  \
    HIVM_RANKS(HIVM_SCALAR, vmins, Min, NAME, T); \
    HIVM_RANKS(HIVM_REVERSED, vsub, Sub, NAME, T)
HIVM_ARITHMETIC(float, float);
HIVM_ARITHMETIC(half, Half);
HIVM_ARITHMETIC(int32_t, int32_t);
HIVM_ARITHMETIC(int16_t, int16_t);

#define HIVM_FUNCTIONS(NAME, T)                              \
    HIVM_RANKS(HIVM_BINARY, vdiv, Div, NAME, T);             \
    HIVM_RANKS(HIVM_SCALAR, vdiv, Div, NAME, T);             \
    HIVM_RANKS(HIVM_REVERSED, vdiv, Div, NAME, T);           \
    HIVM_RANKS(HIVM_UNARY, vexp, Exp, NAME, T);              \
    HIVM_RANKS(HIVM_UNARY, vln, Log, NAME, T);               \
    HIVM_RANKS(HIVM_UNARY, vsqrt, Sqrt, NAME, T);            \
    HIVM_RANKS(HIVM_UNARY, vrec, Reciprocal, NAME, T);       \
    HIVM_RANKS(HIVM_UNARY, vrsqrt, ReciprocalSqrt, NAME, T); \
    HIVM_RANKS(HIVM_UNARY, vabs, Magnitude, NAME, T);        \
    HIVM_RANKS(HIVM_UNARY, vrelu, Relu, NAME, T)
HIVM_FUNCTIONS(float, float);
HIVM_FUNCTIONS(half, Half);

#define HIVM_BITS(NAME, T)              \
    HIVM_BINARY(vand, And, NAME, T, 1); \
    HIVM_BINARY(vand, And, NAME, T, 2); \
    HIVM_BINARY(vor, Or, NAME, T, 1);   \
    HIVM_BINARY(vor, Or, NAME, T, 2);   \
    HIVM_BINARY(vxor, Xor, NAME, T, 1); \
    HIVM_BINARY(vxor, Xor, NAME, T, 2); \
    HIVM_UNARY(vnot, Not, NAME, T, 1);  \
    HIVM_UNARY(vnot, Not, NAME, T, 2)
HIVM_BITS(int8_t, int8_t);
HIVM_BITS(int16_t, int16_t);
HIVM_BITS(int32_t, int32_t);

#define HIVM_SHIFTS(NAME, T)                                                       \
    HIVM_CALL(vshls_vs_1d_##NAME, (MemRef<T, 1> * a, T s, MemRef<T, 1> * d),       \
              map_unary<T, T>("vshls_vs_1d_" #NAME, a->view(), d->view(), nullptr, \
                              [s](T x) { return (T)((uint64_t)x << (s & 63)); })); \
    HIVM_CALL(vshrs_vs_1d_##NAME, (MemRef<T, 1> * a, T s, MemRef<T, 1> * d),       \
              map_unary<T, T>("vshrs_vs_1d_" #NAME, a->view(), d->view(), nullptr, \
                              [s](T x) { return (T)((int64_t)x >> (s & 63)); }))
HIVM_SHIFTS(int16_t, int16_t);
HIVM_SHIFTS(int32_t, int32_t);

#define HIVM_COMPARE(WORD, HOW, NAME, T)                                                         \
    HIVM_CALL(vcmp_##WORD##_1d_##NAME, (MemRef<T, 1> * a, MemRef<T, 1> * b, MemRef<Bit, 1> * d), \
              View right = b->view();                                                            \
              compare<T>("vcmp_" #WORD "_1d_" #NAME, HOW, a->view(), &right, T(), d->view()));   \
    HIVM_CALL(vcmps_##WORD##_1d_##NAME, (MemRef<T, 1> * a, Scalar<T> s, MemRef<Bit, 1> * d),     \
              compare<T>("vcmps_" #WORD "_1d_" #NAME, HOW, a->view(), nullptr, received<T>(s), d->view()))
#define HIVM_COMPARES(NAME, T)      \
    HIVM_COMPARE(eq, kEq, NAME, T); \
    HIVM_COMPARE(ne, kNe, NAME, T); \
    HIVM_COMPARE(lt, kLt, NAME, T); \
    HIVM_COMPARE(le, kLe, NAME, T); \
    HIVM_COMPARE(gt, kGt, NAME, T); \
    HIVM_COMPARE(ge, kGe, NAME, T)
HIVM_COMPARES(float, float);
HIVM_COMPARES(half, Half);
HIVM_COMPARES(int32_t, int32_t);

#define HIVM_SELECT(NAME, T)                                                                                          \
    HIVM_CALL(vsel_vv_1d_bool_##NAME,                                                                                 \
              (MemRef<Bit, 1> * c, MemRef<T, 1> * a, MemRef<T, 1> * b, MemRef<T, 1> * d, MemRef<T, 1> * t),           \
              View left = a->view();                                                                                  \
              View right = b->view();                                                                                 \
              select<T>("vsel_vv_1d_bool_" #NAME, c->view(), &left, T(), &right, T(), d->view(), t->view()));         \
    HIVM_CALL(vsel_vs_1d_##NAME,                                                                                      \
              (MemRef<Bit, 1> * c, MemRef<T, 1> * a, Scalar<T> s, MemRef<T, 1> * d, MemRef<T, 1> * t),                \
              View left = a->view();                                                                                  \
              select<T>("vsel_vs_1d_" #NAME, c->view(), &left, T(), nullptr, received<T>(s), d->view(), t->view()));  \
    HIVM_CALL(vsel_sv_1d_##NAME,                                                                                      \
              (MemRef<Bit, 1> * c, Scalar<T> s, MemRef<T, 1> * b, MemRef<T, 1> * d, MemRef<T, 1> * t),                \
              View right = b->view();                                                                                 \
              select<T>("vsel_sv_1d_" #NAME, c->view(), nullptr, received<T>(s), &right, T(), d->view(), t->view())); \
    HIVM_CALL(vsel_ss_1d_##NAME, (MemRef<Bit, 1> * c, Scalar<T> s, Scalar<T> r, MemRef<T, 1> * d, MemRef<T, 1> * t),  \
              select<T>("vsel_ss_1d_" #NAME, c->view(), nullptr, received<T>(s), nullptr, received<T>(r), d->view(),  \
                        t->view()))
HIVM_SELECT(float, float);
HIVM_SELECT(half, Half);
HIVM_SELECT(bfloat16_t, BFloat);
HIVM_SELECT(int32_t, int32_t);
HIVM_SELECT(int16_t, int16_t);

HIVM_CALL(vnot_1d_bool, (MemRef<Bit, 1> * a, MemRef<Bit, 1>* d, MemRef<Bit, 1>* t),
          logic("vnot_1d_bool", a->view(), a->view(), d->view(), t->view(), [](bool x, bool) { return !x; }));
#define HIVM_LOGIC(OP, EXPRESSION)                                                                      \
    HIVM_CALL(                                                                                          \
        OP##_1d_bool, (MemRef<Bit, 1> * a, MemRef<Bit, 1> * b, MemRef<Bit, 1> * d, MemRef<Bit, 1> * t), \
        logic(#OP "_1d_bool", a->view(), b->view(), d->view(), t->view(), [](bool x, bool y) { return EXPRESSION; }))
HIVM_LOGIC(vand, x&& y);
HIVM_LOGIC(vor, x || y);
HIVM_LOGIC(vxor, x != y);
