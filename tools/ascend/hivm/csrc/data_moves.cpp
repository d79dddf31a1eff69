// Moves between global memory and the cores' memories, copies within UB, and single elements that the scalar unit
// reads and writes. Loads to UB fill the rest of their last 32 bytes with the padding value, as the hardware does.
#include <algorithm>

#include "core.hpp"

using namespace hivm;

namespace {

constexpr int64_t kBlockBytes = 32;

// The same elements with a last axis of one element where the last axis is not contiguous.
View with_rows(View view, bool contiguous) {
    if (!contiguous) view.size[view.rank] = 1, view.stride[view.rank++] = 1;
    return view;
}

template <class F>
void each_row(const View& shape, F f) {
    int64_t at[4] = {};
    if (shape.count() <= 0) return;
    for (;;) {
        f(at);
        int i = shape.rank - 2;
        while (i >= 0 && ++at[i] == shape.size[i]) at[i--] = 0;
        if (i < 0) return;
    }
}
int64_t place(const View& view, const int64_t (&at)[4]) {
    int64_t to = view.offset;
    for (int i = 0; i + 1 < view.rank; i++) to += at[i] * view.stride[i];
    return to;
}

bool same_shape(const View& from, const View& to) {
    for (int i = 0; i < from.rank; i++)
        if (from.size[i] != to.size[i]) return false;
    return true;
}

enum Padding { kZero, kFirst, kValue };

template <class T>
void load(const char* name, View from, View to, int32_t mode, T value, int64_t left) {
    Instruction instruction(name, kMte2);
    if (from.count() <= 0) return;
    constexpr int64_t block = kBlockBytes / (int64_t)sizeof(T);
    bool rows = from.last(from.stride) == 1 && to.last(to.stride) == 1;
    bool padded = rows || to.last(to.stride) % block == 0;
    if (mode != kZero && mode != kValue) return instruction.fail("this padding mode is not modelled");
    from = with_rows(from, rows), to = with_rows(to, rows);
    int64_t n = from.last(from.size), right = padded ? (block - (n + left) % block) % block : 0;
    View whole = to;
    whole.offset -= left;
    for (int i = 0; i < from.rank; i++) whole.size[i] = from.size[i];
    whole.size[whole.rank - 1] = left + n + right;
    bool good = instruction.reads(from);
    if (!(instruction.writes(whole) && good)) return;
    T pad = mode == kValue ? value : T{};
    each_row(from, [&](const int64_t (&at)[4]) {
        const T* source = (const T*)from.data + place(from, at);
        T* target = (T*)to.data + place(to, at);
        std::fill(target - left, target, pad);
        memcpy((void*)target, source, (size_t)n * sizeof(T));
        std::fill(target + n, target + n + right, pad);
    });
}

template <class T>
void copy(const char* name, int pipe, View from, View to) {
    Instruction instruction(name, pipe);
    if (!same_shape(from, to)) return instruction.fail("sizes of its operands differ");
    bool good = instruction.reads(from);
    if (!(instruction.writes(to) && good)) return;
    if (pipe == kV) machine->counters.operations[to.type]++, machine->counters.elements[to.type] += to.count();
    bool rows = from.last(from.stride) == 1 && to.last(to.stride) == 1;
    from = with_rows(from, rows), to = with_rows(to, rows);
    each_row(from, [&](const int64_t (&at)[4]) {
        memmove((T*)to.data + place(to, at), (const T*)from.data + place(from, at),
                (size_t)from.last(from.size) * sizeof(T));
    });
}

template <class T>
void store(const char* name, const View& from, const View& to, int32_t atomic) {
    if (atomic) return Instruction(name, kMte3).fail("an atomic store is not modelled");
    copy<T>(name, kMte3, from, to);
}

template <class T>
void transpose(const char* name, const View& from, const View& to) {
    View turned = from;
    std::swap(turned.size[0], turned.size[1]), std::swap(turned.stride[0], turned.stride[1]);
    copy<T>(name, kV, turned, to);
}

// Rows of global memory to [columns / c0][rows / 16][16][c0]; the columns that fill the last c0 are zero.
template <class T>
void to_fractals(const char* name, const View& from, const View& to) {
    Instruction instruction(name, kMte2);
    if (from.count() <= 0) return;
    int64_t rows = from.size[0], columns = from.size[1], c0 = kBlockBytes / (int64_t)sizeof(T);
    int64_t outer = (columns + c0 - 1) / c0;
    if (to.stride[2] != c0 || to.stride[3] != 1 || (to.size[1] > 1 && to.stride[1] != 16 * c0) || from.stride[1] != 1)
        return instruction.fail("a layout that is not modelled");
    if (outer > to.size[0] || rows > to.size[1] * to.size[2]) return instruction.fail("its target is too small");
    View blocks = to;
    blocks.rank = 3;
    blocks.size[0] = outer, blocks.size[1] = rows, blocks.size[2] = c0;
    blocks.stride[0] = to.stride[0], blocks.stride[1] = c0, blocks.stride[2] = 1;
    bool good = instruction.reads(from);
    if (!(instruction.writes(blocks) && good)) return;
    for (int64_t b = 0; b < outer; b++) {
        int64_t n = std::min(c0, columns - b * c0);
        for (int64_t r = 0; r < rows; r++) {
            T* target = blocks.at<T>(b, r);
            memcpy((void*)target, from.at<T>(r, b * c0), (size_t)n * sizeof(T));
            std::fill(target + n, target + c0, T{});
        }
    }
}

template <class T>
void fill_l1(const char* name, T value, View to) {
    Instruction instruction(name, kMte2);
    constexpr int64_t block = kBlockBytes / (int64_t)sizeof(T);
    if (to.stride[0] != 1) return instruction.fail("a layout that is not modelled");
    to.size[0] = (to.size[0] + block - 1) / block * block;
    if (!instruction.writes(to) || to.count() <= 0) return;
    std::fill(to.at<T>(), to.at<T>() + to.size[0], value);
}

template <class T>
T scalar_load(const View& from) {
    Instruction instruction("memref.load", kS);
    return instruction.reads(from) ? *(T*)(from.data + from.offset * (int64_t)sizeof(T)) : T{};
}
template <class T>
void scalar_store(T value, const View& to) {
    Instruction instruction("memref.store", kS);
    if (instruction.writes(to)) *(T*)(to.data + to.offset * (int64_t)sizeof(T)) = value;
}

}  // namespace

#define HIVM_MOVES_RANK(NAME, T, R)                                                                             \
    HIVM_CALL(load_gm_to_ubuf_##R##d_##NAME,                                                                    \
              (MemRef<T, R> * a, MemRef<T, R> * d, int32_t mode, Scalar<T> value, int64_t left),                \
              load<T>("load_gm_to_ubuf_" #R "d_" #NAME, a->view(), d->view(), mode, received<T>(value), left)); \
    HIVM_CALL(store_ubuf_to_gm_##R##d_##NAME, (MemRef<T, R> * a, MemRef<T, R> * d, int32_t atomic),             \
              store<T>("store_ubuf_to_gm_" #R "d_" #NAME, a->view(), d->view(), atomic));                       \
    HIVM_CALL(copy_ubuf_to_ubuf_##R##d_##NAME, (MemRef<T, R> * a, MemRef<T, R> * d, int32_t, Scalar<T>),        \
              copy<T>("copy_ubuf_to_ubuf_" #R "d_" #NAME, kV, a->view(), d->view()));                           \
    extern "C" Scalar<T> _mlir_ciface_hivm_load_##R##d_##NAME(MemRef<T, R>* a) {                                \
        return bits_of<Scalar<T>>(scalar_load<T>(a->view()));                                                   \
    }                                                                                                           \
    HIVM_LIST(hivm_load_##R##d_##NAME);                                                                         \
    HIVM_CALL(hivm_store_##R##d_##NAME, (Scalar<T> value, MemRef<T, R> * d),                                    \
              scalar_store<T>(received<T>(value), d->view()))
#define HIVM_MOVES(NAME, T)                                                              \
    HIVM_MOVES_RANK(NAME, T, 1);                                                         \
    HIVM_MOVES_RANK(NAME, T, 2);                                                         \
    HIVM_MOVES_RANK(NAME, T, 3);                                                         \
    HIVM_CALL(transpose_2d_with_last_axis_##NAME, (MemRef<T, 2> * a, MemRef<T, 2> * d),  \
              transpose<T>("transpose_2d_with_last_axis_" #NAME, a->view(), d->view())); \
    HIVM_CALL(nd2nz_##NAME, (MemRef<T, 2> * a, MemRef<T, 4> * d),                        \
              to_fractals<T>("nd2nz_" #NAME, a->view(), d->view()));                     \
    HIVM_CALL(set_l1_2d_##NAME, (Scalar<T> value, MemRef<T, 1> * d),                     \
              fill_l1<T>("set_l1_2d_" #NAME, received<T>(value), d->view()))
HIVM_MOVES(float, float);
HIVM_MOVES(half, Half);
HIVM_MOVES(bfloat16_t, BFloat);
HIVM_MOVES(int8_t, int8_t);
HIVM_MOVES(int16_t, int16_t);
HIVM_MOVES(int32_t, int32_t);
HIVM_MOVES(int64_t, int64_t);
