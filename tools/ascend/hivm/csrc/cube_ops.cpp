// The matrix unit: products of L1 tiles into L0C, and the way out of L0C.
//
// Assumed: float products are summed in float32 in the order of k, one after another. The unit writes whole fractals of
// 16 rows and columns; what it leaves beyond m and n means nothing, and is NaN here so that no result can rest on it.
// On the way out, float becomes half or bfloat16 to nearest even, and what is too large becomes the largest half.
#include <algorithm>

#include "core.hpp"

using namespace hivm;

namespace {

constexpr int64_t kRows = 16;
constexpr int64_t kL0Bytes = 65536, kTileBytes = 32;

#ifdef __x86_64__
#define HIVM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define HIVM_CLONES
#endif

// c[m][n] += a[m][k] b[k][n], each element in the order of k.
HIVM_CLONES void multiply(const float* a, const float* b, float* c, int64_t m, int64_t k, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t x = 0; x < k; x++) {
            float factor = a[i * k + x];
            for (int64_t j = 0; j < n; j++) c[i * n + j] += factor * b[x * n + j];
        }
}
HIVM_CLONES void multiply(const int32_t* a, const int32_t* b, int32_t* c, int64_t m, int64_t k, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t x = 0; x < k; x++) {
            uint32_t factor = (uint32_t)a[i * k + x];
            for (int64_t j = 0; j < n; j++)
                c[i * n + j] = (int32_t)((uint32_t)c[i * n + j] + factor * (uint32_t)b[x * n + j]);
        }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Fractals [columns / c0][rows / 16][16][c0] as [columns / c0][rows][c0].
bool fractals(const View& view, int64_t rows, int64_t columns, View& out) {
    int64_t c0 = view.size[3];
    if (view.stride[3] != 1 || view.stride[2] != c0 || (view.size[1] > 1 && view.stride[1] != view.size[2] * c0))
        return false;
    if (rows > view.size[1] * view.size[2] || columns > view.size[0] * c0) return false;
    out = view;
    out.rank = 3;
    out.size[0] = ceil_div(columns, c0), out.size[1] = rows, out.size[2] = c0;
    out.stride[1] = c0, out.stride[2] = 1;
    return true;
}

// To rows, or with `turned` to columns, of a dense matrix of the accumulator's type.
template <class T, class A>
void unpack(const View& view, int64_t rows, int64_t columns, bool turned, std::vector<A>& to) {
    int64_t c0 = view.size[2];
    to.resize((size_t)(rows * columns));
    for (int64_t block = 0; block * c0 < columns; block++) {
        int64_t n = std::min(c0, columns - block * c0);
        for (int64_t r = 0; r < rows; r++) {
            const T* x = view.at<T>(block, r);
            for (int64_t i = 0; i < n; i++) {
                int64_t c = block * c0 + i;
                to[(size_t)(turned ? c * rows + r : r * columns + c)] = (A)to_float(x[i]);
            }
        }
    }
}

struct Tile {
    View a, b, c;
    bool accumulates, a_turned, b_turned;
    int64_t m, k, n;
    int64_t wait_a, wait_b, set_a, set_b;  // events MTE2 -> MTE1 and MTE1 -> MTE2; -1: none
    int64_t turn, back[2];  // which half of L0 comes first; events M -> MTE1; -1: the library's own
    uint8_t unit_flag;
};

template <class A>
A meaningless() {
    return std::numeric_limits<A>::has_quiet_NaN ? std::numeric_limits<A>::quiet_NaN() : std::numeric_limits<A>::min();
}

template <class A>
void accumulate(const View& c, const Tile& tile, const std::vector<A>& a, const std::vector<A>& b) {
    std::vector<A> sums((size_t)(tile.m * tile.n));
    if (tile.accumulates) unpack<A>(c, tile.m, tile.n, false, sums);
    multiply(a.data(), b.data(), sums.data(), tile.m, tile.k, tile.n);
    for (int64_t block = 0; block < c.size[0]; block++)
        for (int64_t r = 0; r < c.size[1]; r++)
            for (int64_t i = 0; i < c.size[2]; i++) {
                int64_t column = block * c.size[2] + i;
                bool real = r < tile.m && column < tile.n;
                c.at<A>(block, r)[i] = real ? sums[(size_t)(r * tile.n + column)] : meaningless<A>();
            }
}

// How many parts k is taken in, since a part of both tiles has to fit into half of L0A and L0B.
int64_t num_parts(const Tile& tile, int64_t bytes) {
    int64_t align = std::max(kTileBytes / bytes, kRows), longest = std::max(tile.m, tile.n);
    for (int64_t halves = 2; halves; halves--) {
        int64_t part = kL0Bytes / halves / bytes / (ceil_div(longest, align) * align) / align * align;
        if (part) return ceil_div(tile.k, part);
    }
    return 0;
}

// The events M -> MTE1 by which the library reuses the halves of L0, one half after the other.
class Halves {
  public:
    Halves(const Tile& tile, int64_t parts) : tile_(tile), parts_(parts) {
        for (int i = 0; i < 2; i++)
            if (tile.back[i] < 0) set_flag(kM, kMte1, i);
    }
    void take(int64_t part) const { wait_flag(kM, kMte1, event(part)); }
    void give(int64_t part) const { set_flag(kM, kMte1, event(part)); }
    void end() const {
        for (int i = 0; i < 2; i++)
            if (tile_.back[i] < 0) wait_flag(kM, kMte1, i);
    }

  private:
    const Tile& tile_;
    int64_t parts_;
    int64_t event(int64_t part) const {
        int64_t half = (tile_.turn < 0 ? part : tile_.turn * parts_ + part) % 2;
        return tile_.back[half] < 0 ? half : tile_.back[half];
    }
};

// Both tiles from L1, by MTE1; whether that can be done and may be.
template <class T, class A>
bool fetch(const char* name, const Tile& tile, std::vector<A>& a, std::vector<A>& b) {
    if (tile.wait_a >= 0) wait_flag(kMte2, kMte1, tile.wait_a);
    if (tile.wait_b >= 0) wait_flag(kMte2, kMte1, tile.wait_b);
    Instruction instruction(name, kMte1);
    View left, right;
    bool known = fractals(tile.a, tile.a_turned ? tile.k : tile.m, tile.a_turned ? tile.m : tile.k, left) &&
                 fractals(tile.b, tile.b_turned ? tile.n : tile.k, tile.b_turned ? tile.k : tile.n, right);
    if (!known) instruction.fail("a shape or layout that is not modelled");
    bool good = known && instruction.reads(left);
    good = known && instruction.reads(right) && good;
    if (good) {
        unpack<T>(left, left.size[1], tile.a_turned ? tile.m : tile.k, tile.a_turned, a);
        unpack<T>(right, right.size[1], tile.b_turned ? tile.k : tile.n, tile.b_turned, b);
    }
    if (tile.set_a >= 0) set_flag(kMte1, kMte2, tile.set_a);
    if (tile.set_b >= 0) set_flag(kMte1, kMte2, tile.set_b);
    return good;
}

template <class T, class A>
void mma(const char* name, const Tile& tile) {
    int64_t parts = num_parts(tile, sizeof(T));
    if (!parts) return Instruction(name, kM).fail("a shape that is not modelled");
    Halves halves(tile, parts);
    for (int64_t part = 0; part < parts; part++) {
        halves.take(part);
        if (part + 1 < parts) halves.give(part);
    }
    std::vector<A> a, b;
    bool good = fetch<T>(name, tile, a, b);
    order_pipes(kMte1, kM);
    if (tile.unit_flag) order_pipes(kFix, kM);
    Instruction instruction(name, kM);
    View real, whole;
    if (!fractals(tile.c, tile.m, tile.n, real) ||
        !fractals(tile.c, ceil_div(tile.m, kRows) * kRows, ceil_div(tile.n, kRows) * kRows, whole)) {
        instruction.fail("a shape or layout that is not modelled");
        good = false;
    }
    if (good && tile.accumulates) good = instruction.reads(real);
    if (good && instruction.writes(whole)) accumulate<A>(whole, tile, a, b);
    machine->counters.macs += tile.m * tile.k * tile.n;
    halves.give(parts - 1);
    halves.end();
}

enum Quantise { kKeep = 0, kToHalf = 1, kToBFloat = 16 };

template <class S, class D>
D leaving(S value, bool relu, int64_t* saturated) {
    if (relu && value < 0) value = 0;
    if constexpr (std::is_same_v<D, Half>) return half_of((float)value, kNearestEven, saturated);
    else return from_float<D>((float)value);
}
template <>
int32_t leaving<int32_t, int32_t>(int32_t value, bool relu, int64_t*) {
    return relu && value < 0 ? 0 : value;
}

template <class S, class D>
void fixpipe(const char* name, const View& from, const View& to, int64_t quantise, int64_t relu, Flag split,
             int8_t unit_flag) {
    if (unit_flag) order_pipes(kM, kFix);
    Instruction instruction(name, kFix);
    int64_t expected = std::is_same_v<S, D> ? kKeep : std::is_same_v<D, Half> ? kToHalf : kToBFloat;
    if (quantise != expected) return instruction.fail("quantisation " + std::to_string(quantise) + " is not modelled");
    View c;
    if (on(split) || to.stride[1] != 1 || !fractals(from, to.size[0], to.size[1], c))
        return instruction.fail("a shape or layout that is not modelled");
    bool good = instruction.reads(c);
    if (!(instruction.writes(to) && good)) return;
    for (int64_t r = 0; r < to.size[0]; r++) {
        D* row = to.at<D>(r);
        for (int64_t x = 0; x < to.size[1]; x++)
            row[x] = leaving<S, D>(c.at<S>(x / kRows, r)[x % kRows], relu, &machine->counters.saturated);
    }
}

}  // namespace

#define HIVM_MMA(SUFFIX, FROM, T, TO, A, TURN_A, TURN_B)                                                        \
    HIVM_CALL(mma_tile_##FROM##_to_##TO##SUFFIX,                                                                \
              (MemRef<T, 4> * a, MemRef<T, 4> * b, Flag init, int64_t m, int64_t k, int64_t n, MemRef<A, 4>* c, \
               int64_t wait_a, int64_t wait_b, int64_t set_a, int64_t set_b, int64_t turn, int64_t back0,       \
               int64_t back1, int8_t unit_flag),                                                                \
              mma<T, A>("mma_tile_" #FROM "_to_" #TO #SUFFIX, {a->view(),                                       \
                                                               b->view(),                                       \
                                                               c->view(),                                       \
                                                               !on(init),                                       \
                                                               TURN_A,                                          \
                                                               TURN_B,                                          \
                                                               m,                                               \
                                                               k,                                               \
                                                               n,                                               \
                                                               wait_a,                                          \
                                                               wait_b,                                          \
                                                               set_a,                                           \
                                                               set_b,                                           \
                                                               turn,                                            \
                                                               {back0, back1},                                  \
                                                               (uint8_t)unit_flag}))
#define HIVM_MMAS(FROM, T, TO, A)               \
    HIVM_MMA(, FROM, T, TO, A, false, false);   \
    HIVM_MMA(_ta, FROM, T, TO, A, true, false); \
    HIVM_MMA(_tb, FROM, T, TO, A, false, true); \
    HIVM_MMA(_ta_tb, FROM, T, TO, A, true, true)
HIVM_MMAS(half, Half, float, float);
HIVM_MMAS(bfloat16_t, BFloat, float, float);
HIVM_MMAS(float, float, float, float);
HIVM_MMAS(int8_t, int8_t, int32_t, int32_t);

#define HIVM_FIXPIPE(FROM, S, TO, D)                                                                        \
    HIVM_CALL(                                                                                              \
        fixpipe_nz2nd_##FROM##_to_##TO##_4d_to_2d,                                                          \
        (MemRef<S, 4> * c, MemRef<D, 2> * d, int64_t quantise, int64_t relu, Flag split, int8_t unit_flag), \
        fixpipe<S, D>("fixpipe_nz2nd_" #FROM "_to_" #TO, c->view(), d->view(), quantise, relu, split, unit_flag))
HIVM_FIXPIPE(float, float, float, float);
HIVM_FIXPIPE(float, float, half, Half);
HIVM_FIXPIPE(float, float, bfloat16_t, BFloat);
HIVM_FIXPIPE(int32_t, int32_t, int32_t, int32_t);
