// Exponentials in sixteen lanes, the same to the last bit on every instruction set.
#pragma once

namespace {

// 2**x, to about 1e-7; 0 below -120, and 2**126 above 126. A NaN stays one.
INLINE F exp2_(F x) {
    F bounded = fmin(fset(126.0f), fmax(fset(-126.0f), x));
    F whole = fround(bounded);
    F t = fsub(bounded, whole);
    // Coefficients of the Taylor series of 2**t, with the last two adjusted for [-0.5, 0.5].
    F y = fset(1.5403530394e-4f);
    y = fma(y, t, fset(1.3333558146e-3f));
    y = fma(y, t, fset(9.6181291076e-3f));
    y = fma(y, t, fset(5.5504108665e-2f));
    y = fma(y, t, fset(2.4022650696e-1f));
    y = fma(y, t, fset(6.9314718056e-1f));
    y = fma(y, t, fset(1.0f));
    return zero_below(x, fset(-120.0f), fmul(y, exponent(whole)));
}

// Any NaN as the one that exp2_quick keeps.
INLINE float one_nan(float x) { return __builtin_isnan(x) ? __builtin_nanf("") : x; }

// 2**x for x <= 126: as precise, in half the instructions; never below 2**-125. A NaN whose low nine bits are zeros
// stays one, as what arithmetic makes of numbers is; another may become a number, so keys and queries hold none.
INLINE F exp2_quick(F x) {
    F bounded = fmax(fset(-125.0f), x), shift = fset(12582912.0f);  // 1.5 * 2**23: what is added to it is rounded
    F shifted = fadd(bounded, shift), t = fsub(bounded, fsub(shifted, shift));
    // 1 + t * (a polynomial), whose greatest relative error over [-0.5, 0.5] is least.
    F y = fset(1.3264727089e-3f);
    y = fma(y, t, fset(9.6715128620e-3f));
    y = fma(y, t, fset(5.5507337456e-2f));
    y = fma(y, t, fset(2.4022242082e-1f));
    y = fma(y, t, fset(6.9314697760e-1f));
    y = fma(y, t, fset(1.0f));
    return add_exponent(y, shifted);
}

INLINE F silu_times(F gate, F up) {  // the quotient is NaN where the gate is, whatever NaN that is
    F e = exp2_quick(fmin(fset(126.0f), fmul(gate, fset(-1.44269504089f))));
    return fmul(fdiv(gate, fadd(fset(1.0f), e)), up);
}

}  // namespace
