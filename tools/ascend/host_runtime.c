// What lowered kernels call on a host: MLIR's copy between strided arrays, and a conversion that Debian's libgcc lacks.
#include <stdint.h>
#include <string.h>

struct memref {
    char* allocated;
    char* data;
    int64_t offset;
    int64_t sizes_then_strides[];
};

struct unranked_memref {
    int64_t rank;
    struct memref* memref;
};

static void copy(int64_t dim, int64_t rank, int64_t element, const struct memref* from, const char* source,
                 const struct memref* to, char* target) {
    if (dim == rank) {
        memcpy(target, source, (size_t)element);
        return;
    }
    const int64_t size = from->sizes_then_strides[dim];
    const int64_t source_step = from->sizes_then_strides[rank + dim] * element;
    const int64_t target_step = to->sizes_then_strides[rank + dim] * element;
    if (dim + 1 == rank && source_step == element && target_step == element) {
        memcpy(target, source, (size_t)(size * element));
        return;
    }
    for (int64_t i = 0; i < size; i++) {
        copy(dim + 1, rank, element, from, source + i * source_step, to, target + i * target_step);
    }
}

void memrefCopy(int64_t element, const struct unranked_memref* from, const struct unranked_memref* to) {
    const struct memref* source = from->memref;
    const struct memref* target = to->memref;
    copy(0, from->rank, element, source, source->data + source->offset * element, target,
         target->data + target->offset * element);
}

// float -> bfloat16, to nearest, ties to even. A bfloat16 is returned as the lower half of a float is on x86-64; as the
// type itself clang would make of the body a call of this very function.
float __truncsfbf2(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}
