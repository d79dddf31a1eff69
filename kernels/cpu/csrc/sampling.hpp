// Drawing tokens at random: temperature, top_k, top_p, min_p, as kernels/reference/sampling.py defines them.
//
// Tokens lie side by side, each as wide as its weight: by rising id, or with top_k or top_p from the likeliest down,
// the lower id first on a tie; the one at `uniform` of the whole is taken. All that is cut off is then the row's end.
//
// Nearly always few tokens are left. They are among those that reach the k-th greatest of about a thousand maxima, each
// over its share of the row: k shares have a number as great as that, so k numbers are. Where the end lies further
// down, it is found by halving: the sum of all weights that reach a limit, for as many limits as a float has bits.
#pragma once
#include "rows.hpp"

namespace {

struct DrawParams {
    const double* temperature;
    const int32_t* top_k;
    const double *top_p, *min_p, *uniform;
};

// Those of one row; top_k is at most as many tokens as there are.
struct Draw {
    int64_t top_k;
    double top_p, min_p, uniform;
    float factor;  // from a difference of logits to a binary logarithm
};

struct Candidate {
    float logit;
    int32_t id;
};

constexpr int kMaximaVectors = 64;  // of 16 maxima each
constexpr int kFirstGuess = 256;  // how many tokens are looked at where top_p does not say how many there are
constexpr int64_t kCandidates = 2048;  // at most
constexpr int64_t kChunk = 256;  // numbers that are summed in float32
constexpr double kBelow = 1 - 1e-15;  // so that rounding does not carry a goal beyond a sum that equals it
constexpr float kLeast = 0x1p-125f;  // every weight above 0 is above this
constexpr float kMostFloat = 0x1.fffffep127f;

struct DrawScratch {
    alignas(64) float maxima[kMaximaVectors * kLanes];
    Candidate candidates[kCandidates];
    float weights[kCandidates];
};

// Keys are in the order of their numbers, with none between two neighbours.
INLINE uint32_t key_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
INLINE float number_of(uint32_t key) {
    uint32_t bits = key & 0x80000000u ? key ^ 0x80000000u : ~key;
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

// 1 for the greatest logit; 0 where it would be below 2**-120.
INLINE F weights_of(F logits, F top, F factor) {
    F x = fmul(fsub(logits, top), factor);
    return zero_below(x, fset(-120.0f), exp2_quick(x));
}

// Sums item(i, lanes), 16 numbers from the i-th on of which so many count, over [first, n): in float32 within a chunk.
template <class Item>
INLINE double sum_lanes(int64_t first, int64_t n, const Item& item) {
    double total = 0;
    for (int64_t chunk = first; chunk < n; chunk += kChunk) {
        int64_t end = chunk + kChunk < n ? chunk + kChunk : n, i = chunk;
        F sum = fset(0);
        for (; i + kLanes <= end; i += kLanes) sum = fadd(sum, item(i, kLanes));
        if (i < end) sum = fadd(sum, keep_lanes(item(i, (int)(end - i)), 0, (int)(end - i), fset(0)));
        total += (double)fsum(sum);
    }
    return total;
}

// The sum of all numbers that reach a limit, or how many do.
INLINE double sum_from(const float* x, int64_t n, float limit, bool count) {
    return sum_lanes(0, n, [&](int64_t i, int lanes) {
        F y = fload_n(x + i, lanes);
        return zero_below(y, fset(limit), count ? fset(1) : y);
    });
}

// The greatest of the limits in [lowest, highest) from which on numbers sum to more than `goal`; the lowest if none do.
static float limit_beyond(const float* x, int64_t n, double goal, bool count, float lowest, float highest) {
    uint32_t low = key_of(lowest), high = key_of(highest);
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (sum_from(x, n, number_of(middle), count) > goal) low = middle;
        else high = middle;
    }
    return number_of(low);
}

INLINE float next_above(float x) { return number_of(key_of(x) + 1); }

INLINE bool is_before(Candidate a, Candidate b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

// Lets the candidate at `i` of a heap sink to its place; none comes before the one at 0.
static void sink(Candidate* heap, int64_t i, int64_t count) {
    Candidate moved = heap[i];
    for (int64_t child = 2 * i + 1; child < count; i = child, child = 2 * i + 1) {
        if (child + 1 < count && is_before(heap[child + 1], heap[child])) child++;
        if (!is_before(heap[child], moved)) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

// The greatest number of each of 64 shares by 16 lanes; returns the greatest of all.
static float find_maxima(const float* x, int64_t n, float* maxima) {
    const F never = fset(-__builtin_inff());
    int64_t vectors = (n + kLanes - 1) / kLanes, share = (vectors + kMaximaVectors - 1) / kMaximaVectors;
    F top = never;
    for (int v = 0; v < kMaximaVectors; v++) {
        F most = never;
        int64_t first = v * share * kLanes, end = first + share * kLanes < n ? first + share * kLanes : n, i = first;
        for (; i + kLanes <= end; i += kLanes) most = fmax(most, fload(x + i));
        if (i < end) most = fmax(most, keep_lanes(fload_n(x + i, (int)(end - i)), 0, (int)(end - i), never));
        fstore(maxima + v * kLanes, most);
        top = fmax(top, most);
    }
    return fpeak(top);
}

// Collects the numbers that reach a limit by rising id; returns how many there are, or -1 if too many.
static int64_t collect(const float* x, int64_t n, float limit, Candidate* out) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
        int lanes = lanes_left(n, i);
        uint32_t mask = at_least(fload_n(x + i, lanes), fset(limit)) & ((1u << lanes) - 1);
        for (; mask; mask &= mask - 1) {
            int32_t id = (int32_t)i + __builtin_ctz(mask);
            if (count == kCandidates) return -1;
            out[count++] = {x[id], id};
        }
    }
    return count;
}

// Draws from candidates, of a row whose weights sum to `total`; -1 if they do not reach as far down as top_p wants.
static int32_t draw_likeliest(DrawScratch* s, int64_t count, float top, double total, const Draw& d) {
    Candidate* heap = s->candidates;
    for (int64_t i = count / 2; i-- > 0;) sink(heap, i, count);
    int64_t taken = 0;  // the first is at count - 1, the second at count - 2
    auto weight_at = [&](int64_t i) {
        for (; taken <= i; taken++) {
            int64_t last = count - 1 - taken;
            Candidate first = heap[0];
            heap[0] = heap[last];
            heap[last] = first;
            sink(heap, 0, last);
            s->weights[taken] = lane(weights_of(fset(first.logit), fset(top), fset(d.factor)), 0);
        }
        return (double)s->weights[i];
    };
    int64_t limit = d.top_k && d.top_k < count ? d.top_k : count, n = 0;
    if (d.top_k) {
        total = 0;
        for (int64_t i = 0; i < limit; i++) total += weight_at(i);
    }
    double goal = d.top_p < 1 ? d.top_p * total * kBelow : __builtin_inf(), kept = 0, sum = 0;
    while (n < limit && kept <= goal) {
        double weight = weight_at(n);
        if (n && (weight == 0 || weight < d.min_p)) break;
        kept += weight;
        n++;
    }
    if (!d.top_k && n == limit && kept <= goal) return -1;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)s->weights[i];
        if (sum > d.uniform * kept) return heap[count - 1 - i].id;
    }
    return heap[count - n].id;
}

// The least float that is not below min_p.
INLINE float least_weight(double min_p) {
    float least = (float)min_p;
    return (double)least < min_p ? next_above(least) : least;
}

// Overwrites logits with weights, 0 for those below `least`; returns their sum.
static double weigh(float* x, int64_t n, float top, float factor, float least) {
    return sum_lanes(0, n, [&](int64_t i, int lanes) {
        F w = weights_of(fload_n(x + i, lanes), fset(top), fset(factor));
        w = zero_below(w, fset(least), w);
        fstore_n(x + i, w, lanes);
        return w;
    });
}

// Draws by rising id, from all but what min_p cuts off.
static int32_t draw_any(float* x, int64_t n, float top, const Draw& d) {
    double goal = d.uniform * weigh(x, n, top, d.factor, least_weight(d.min_p)), sum = 0, before = 0;
    int64_t found = 0;  // the chunk that goes beyond the goal; if rounding carried that too far, the last with weights
    for (int64_t chunk = 0; chunk < n && sum <= goal; chunk += kChunk) {
        int64_t end = chunk + kChunk < n ? chunk + kChunk : n;
        double own = sum_lanes(chunk, end, [&](int64_t i, int lanes) { return fload_n(x + i, lanes); });
        if (own > 0) found = chunk, before = sum;
        sum += own;
    }
    int32_t last = 0;
    for (int64_t i = found; i < n && i < found + kChunk && before <= goal; i++)
        if (x[i] > 0) last = (int32_t)i, before += (double)x[i];
    return last;
}

// From the likeliest down, the first weight whose end lies beyond `goal`: its id, and the sum with it.
static int32_t place_beyond(const float* x, int64_t n, double goal, double* reached) {
    float limit = limit_beyond(x, n, goal, false, kLeast, next_above(1));
    double sum = sum_from(x, n, next_above(limit), false);
    int32_t last = 0;
    for (int64_t i = 0; i < n && sum <= goal; i++)
        if (x[i] == limit) last = (int32_t)i, sum += (double)limit;
    *reached = sum;
    return last;
}

// Draws from the likeliest down, however far down the end is.
static int32_t draw_far(float* x, int64_t n, float top, const Draw& d) {
    if (d.top_k && d.top_k < n) {
        float limit = limit_beyond(x, n, (double)d.top_k - 1, true, -kMostFloat, next_above(top));
        int64_t equals = d.top_k - (int64_t)sum_from(x, n, next_above(limit), true);
        for (int64_t i = 0; i < n; i++)
            if (x[i] < limit || (x[i] == limit && equals-- <= 0)) x[i] = -__builtin_inff();
    }
    double kept = weigh(x, n, top, d.factor, 0), reached;
    if (d.top_p < 1) {
        place_beyond(x, n, d.top_p * kept * kBelow, &reached);
        kept = reached < kept ? reached : kept;
    }
    if (d.min_p > 0) {
        reached = sum_from(x, n, least_weight(d.min_p), false);
        kept = reached < kept ? reached : kept;
    }
    double uniform = d.uniform < kBelow ? d.uniform : kBelow;
    return place_beyond(x, n, uniform * kept, &reached);
}

// Overwrites the row.
static int32_t draw_row(float* x, int64_t n, const DrawParams& p, int64_t row, DrawScratch* s) {
    double rate = 1.4426950408889634 / p.temperature[row];
    Draw d = {p.top_k[row] < n ? p.top_k[row] : n, p.top_p[row], p.min_p[row], p.uniform[row],
              rate < 1e30 ? (float)rate : 1e30f};
    float top = find_maxima(x, n, s->maxima);
    if (d.top_k <= 0 && d.top_p >= 1) return draw_any(x, n, top, d);
    double others = (double)(d.top_k ? d.top_k : kFirstGuess) - 1;
    float limit = limit_beyond(s->maxima, kMaximaVectors * kLanes, others, true, -kMostFloat, next_above(top));
    int64_t count = collect(x, n, limit, s->candidates);
    if (count > 0) {
        F tops = fset(top), factor = fset(d.factor);
        double total = 0;
        if (!d.top_k)
            total = sum_lanes(0, n, [&](int64_t i, int k) { return weights_of(fload_n(x + i, k), tops, factor); });
        int32_t id = draw_likeliest(s, count, top, total, d);
        if (id >= 0) return id;
    }
    return draw_far(x, n, top, d);
}

static void run_draw(const Work& work, float* logits, int64_t ld, int64_t vocab, const DrawParams& params, int32_t* out,
                     int64_t rows) {
    for (Range range = work.next(rows); range.more(); range = work.next(rows))
        for (int64_t r = range.first; r < range.last; r++)
            out[r] = draw_row(logits + r * ld, vocab, params, r, (DrawScratch*)work.scratch);
}

}  // namespace
