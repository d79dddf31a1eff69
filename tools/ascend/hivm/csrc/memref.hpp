// Memory descriptors as MLIR passes them, and what a library call makes of them.
#pragma once
#include "numbers.hpp"

namespace hivm {

enum Type : int { kFloat, kHalf, kBFloat, kInt8, kInt16, kInt32, kInt64, kBit, kTypes };

template <class T>
constexpr Type type_of() {
    if constexpr (std::is_same_v<T, float>) return kFloat;
    if constexpr (std::is_same_v<T, Half>) return kHalf;
    if constexpr (std::is_same_v<T, BFloat>) return kBFloat;
    if constexpr (std::is_same_v<T, int8_t>) return kInt8;
    if constexpr (std::is_same_v<T, int16_t>) return kInt16;
    if constexpr (std::is_same_v<T, int32_t>) return kInt32;
    if constexpr (std::is_same_v<T, int64_t>) return kInt64;
    return kBit;
}

// Elements of a memory: `base` tells whose they are, offsets and strides count elements.
struct View {
    char *base, *data;
    int64_t offset;
    int rank;
    int64_t size[4], stride[4];
    int64_t bytes;  // of an element; 0: bits
    Type type;

    int64_t count() const {
        int64_t n = 1;
        for (int i = 0; i < rank; i++) n *= size[i];
        return n;
    }
    int64_t last(const int64_t (&of)[4]) const { return rank ? of[rank - 1] : 1; }
    template <class T>
    T* at(int64_t i = 0, int64_t j = 0, int64_t k = 0) const {
        const int64_t index[3] = {i, j, k};
        int64_t to = offset;
        for (int d = 0; d < rank && d < 3; d++) to += index[d] * stride[d];
        return (T*)(data + to * (int64_t)sizeof(T));
    }
    bool bit(int64_t i) const { return data[(offset + i) >> 3] >> ((offset + i) & 7) & 1; }
    void set_bit(int64_t i, bool value) const {
        char& byte = data[(offset + i) >> 3];
        int at = (int)((offset + i) & 7);
        byte = (char)((byte & ~(1 << at)) | (int)value << at);
    }
};

template <class T, int R>
struct MemRef {
    char *allocated, *aligned;
    int64_t offset, sizes[R], strides[R];

    View view() const {
        constexpr int64_t bytes = std::is_same_v<T, Bit> ? 0 : (int64_t)sizeof(T);
        View view = {allocated, aligned, offset, R, {}, {}, bytes, type_of<T>()};
        for (int i = 0; i < R; i++) view.size[i] = sizes[i], view.stride[i] = strides[i];
        return view;
    }
};

// The byte ranges [low, high) after `base` that a view's elements lie in, as few as its strides allow.
template <class F>
void each_run(const View& view, F f) {
    int64_t size[4], stride[4], at[4] = {}, run = 1;
    int rank = 0;
    for (int i = 0; i < view.rank; i++) {
        if (view.size[i] <= 0) return;
        if (view.size[i] > 1) size[rank] = view.size[i], stride[rank++] = view.stride[i];
    }
    while (rank && stride[rank - 1] == run) run *= size[--rank];
    for (;;) {
        int64_t first = view.offset, begin = view.data - view.base;
        for (int i = 0; i < rank; i++) first += at[i] * stride[i];
        if (view.bytes) f(begin + first * view.bytes, begin + (first + run) * view.bytes);
        else f(begin + (first >> 3), begin + ((first + run + 7) >> 3));
        int i = rank - 1;
        while (i >= 0 && ++at[i] == size[i]) at[i--] = 0;
        if (i < 0) return;
    }
}

}  // namespace hivm
