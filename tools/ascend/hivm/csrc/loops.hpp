// Loops over the elements of vector operations: operands of size 1 along an axis are broadcast along it.
#pragma once
#include "core.hpp"

namespace hivm {

struct Row {
    int64_t index[2];  // of the outer axes
};

// An operand, seen in the shape of the result.
struct Lanes {
    View view;
    int64_t stride[4] = {};
    Lanes(const View& operand, const View& result) : view(operand) {
        for (int i = 0; i < operand.rank; i++)
            stride[i] = operand.size[i] == 1 && result.size[i] != 1 ? 0 : operand.stride[i];
    }
    bool fits(const View& result) const {
        if (view.rank != result.rank) return false;
        for (int i = 0; i < view.rank; i++)
            if (view.size[i] != 1 && view.size[i] != result.size[i]) return false;
        return true;
    }
    template <class T>
    T* row(const Row& row) const {
        int64_t to = view.offset;
        for (int i = 0; i + 1 < view.rank; i++) to += row.index[i] * stride[i];
        return (T*)(view.data + to * (int64_t)sizeof(T));
    }
    int64_t step() const { return stride[view.rank - 1]; }
};

template <class F>
void each_row(const View& shape, F f) {
    int64_t outer = shape.rank > 2 ? shape.size[0] : 1, inner = shape.rank > 1 ? shape.size[shape.rank - 2] : 1;
    for (int64_t i = 0; i < outer; i++)
        for (int64_t j = 0; j < inner; j++) f(shape.rank > 2 ? Row{{i, j}} : Row{{j, 0}});
}

inline void count_vector(const View& view) {
    machine->counters.operations[view.type]++;
    machine->counters.elements[view.type] += view.count();
}

// Each element of `to` from one of `from`; operands may be the same memory, so lanes go in order.
template <class S, class D, class F>
void map_unary(const char* name, const View& from, const View& to, const View* temp, F f) {
    Instruction instruction(name, kV);
    Lanes a(from, to), d(to, to);
    if (!a.fits(to)) return instruction.fail("sizes of its operands differ");
    bool good = instruction.reads(from);
    if (temp) good = instruction.scribbles(*temp) && good;
    if (!(instruction.writes(to) && good) || to.count() <= 0) return;
    count_vector(to);
    int64_t n = to.size[to.rank - 1], sa = a.step(), sd = d.step();
    each_row(to, [&](const Row& row) {
        const S* x = a.row<S>(row);
        D* y = d.row<D>(row);
        if (sa == 1 && sd == 1)
            for (int64_t i = 0; i < n; i++) y[i] = f(x[i]);
        else
            for (int64_t i = 0; i < n; i++) y[i * sd] = f(x[i * sa]);
    });
}

template <class T, class F>
void map_binary(const char* name, const View& left, const View& right, const View& to, const View* temp, F f) {
    Instruction instruction(name, kV);
    Lanes a(left, to), b(right, to), d(to, to);
    if (!a.fits(to) || !b.fits(to)) return instruction.fail("sizes of its operands differ");
    bool good = instruction.reads(left);
    good = instruction.reads(right) && good;
    if (temp) good = instruction.scribbles(*temp) && good;
    if (!(instruction.writes(to) && good) || to.count() <= 0) return;
    count_vector(to);
    int64_t n = to.size[to.rank - 1], sa = a.step(), sb = b.step(), sd = d.step();
    each_row(to, [&](const Row& row) {
        const T *x = a.row<T>(row), *y = b.row<T>(row);
        T* z = d.row<T>(row);
        if (sa == 1 && sb == 1 && sd == 1)
            for (int64_t i = 0; i < n; i++) z[i] = f(x[i], y[i]);
        else if (sa == 1 && sb == 0 && sd == 1)
            for (int64_t i = 0, s = 1; i < n; i++) z[i] = f(x[i], y[i * (s - 1)]);
        else
            for (int64_t i = 0; i < n; i++) z[i * sd] = f(x[i * sa], y[i * sb]);
    });
}

}  // namespace hivm
