// Drawing tokens at random: temperature, top_k, top_p, min_p, as kernels/reference/sampling.py defines them.
//
// Tokens lie side by side, each as wide as its weight: by rising id, or with top_k or top_p from the likeliest down, the
// lower id first on a tie; the one at `uniform` of the whole is taken. All that is cut off is then the end of the row, so
// nothing has to be sorted: a place in it is found by counting weights into buckets by their leading bits.
#pragma once
#include "rows.hpp"

namespace {

struct DrawParams {
    const double* temperature;
    const int32_t* top_k;
    const double *top_p, *min_p, *uniform;
};

constexpr int kBuckets = 2048;

// A place in the row of numbers from the highest down.
struct Place {
    uint32_t key;    // of the number there
    int64_t equals;  // how many of the same key lie before it
    double before;   // the weight of all before it
};

// Keys sort as their numbers do.
INLINE uint32_t key_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The first place whose own weight ends beyond `goal`. A number weighs itself, or 1 each where `count` is set.
static Place descend(const float* x, int64_t n, double goal, bool count, double* mass) {
    uint32_t prefix = 0, known = 0;
    double before = 0;
    const int shifts[3] = {21, 10, 0};
    for (int shift : shifts) {
        const int bits = shift ? 11 : 10;
        for (int i = 0; i < kBuckets; i++) mass[i] = 0;
        for (int64_t i = 0; i < n; i++) {
            uint32_t key = key_of(x[i]);
            if ((key & known) == prefix) mass[key >> shift & ((1u << bits) - 1)] += count ? 1.0 : (double)x[i];
        }
        int bucket = (1 << bits) - 1, last = -1;
        for (; bucket >= 0; bucket--) {
            if (mass[bucket] > 0) last = bucket;
            if (before + mass[bucket] > goal) break;
            before += mass[bucket];
        }
        if (bucket < 0) {  // rounding carried the goal to the end of the row: its last number
            bucket = last < 0 ? 0 : last;
            before -= mass[bucket];
        }
        prefix |= (uint32_t)bucket << shift;
        known |= ((1u << bits) - 1) << shift;
    }
    Place place = {prefix, 0, before};
    for (int64_t i = 0; i < n; i++) {  // all that are left are equal
        if (key_of(x[i]) != prefix) continue;
        double own = count ? 1.0 : (double)x[i];
        if (place.before + own > goal || own == 0) break;
        place.before += own;
        place.equals++;
    }
    return place;
}

static int32_t id_at(const float* x, int64_t n, const Place& place) {
    int64_t equals = 0;
    int32_t last = 0;
    for (int64_t i = 0; i < n; i++)
        if (key_of(x[i]) == place.key) {
            last = (int32_t)i;
            if (equals++ == place.equals) break;
        }
    return last;
}

// Overwrites the row with weights: 1 for the likeliest token.
static int32_t draw_row(float* x, int64_t n, const DrawParams& p, int64_t row, double* mass) {
    int64_t top_k = p.top_k[row] > 0 && p.top_k[row] < n ? p.top_k[row] : 0;
    double top_p = p.top_p[row], min_p = p.min_p[row], uniform = p.uniform[row];
    if (top_k) {
        Place end = descend(x, n, (double)top_k - 1, true, mass);  // the last that is kept
        int64_t equals = 0;
        for (int64_t i = 0; i < n; i++) {
            uint32_t key = key_of(x[i]);
            if (key < end.key || (key == end.key && equals++ > end.equals)) x[i] = -__builtin_inff();
        }
    }
    F most = fset(-__builtin_inff());
    for (int64_t i = 0; i < n; i += kLanes) most = fmax(most, keep_lanes(fload_n(x + i, lanes_left(n, i)), 0, lanes_left(n, i), most));
    double rate = 1.4426950408889634 / p.temperature[row];
    F top = fset(fpeak(most)), factor = fset(rate < 1e30 ? (float)rate : 1e30f);
    double total = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
        int lanes = lanes_left(n, i);
        F w = exp2_(fmul(fsub(fload_n(x + i, lanes), top), factor));
        fstore_n(x + i, w, lanes);
        total += (double)fsum(keep_lanes(w, 0, lanes, fset(0)));
    }
    if (p.top_k[row] <= 0 && top_p >= 1.0) {  // by rising id
        if (min_p > 0) {
            total = 0;
            for (int64_t i = 0; i < n; i++) total += (double)x[i] >= min_p ? (double)x[i] : 0;
        }
        double goal = uniform * total, sum = 0;
        int32_t last = 0;
        for (int64_t i = 0; i < n; i++) {
            if (x[i] == 0 || (double)x[i] < min_p) continue;
            last = (int32_t)i;
            sum += (double)x[i];
            if (sum > goal) break;
        }
        return last;
    }
    double kept = total;
    if (top_p < 1.0) {
        double goal = top_p * total;
        Place end = descend(x, n, goal * (1 - 1e-15), false, mass);
        float own = x[id_at(x, n, end)];
        kept = end.before + (double)own;
    }
    if (min_p > 0) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += (double)x[i] >= min_p ? (double)x[i] : 0;
        kept = sum < kept ? sum : kept;
    }
    return id_at(x, n, descend(x, n, uniform * kept, false, mass));
}

static void run_draw(const Work& work, float* logits, int64_t ld, int64_t vocab, const DrawParams& params, int32_t* out,
                     int64_t rows) {
    for (Range range = work.next(rows); range.more(); range = work.next(rows))
        for (int64_t r = range.first; r < range.last; r++)
            out[r] = draw_row(logits + r * ld, vocab, params, r, (double*)work.scratch);
}

}  // namespace
