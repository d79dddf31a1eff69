// The kernels of one instruction set, as the program runner sees them.
#pragma once
#include "upwell.h"
#include "work.hpp"

struct Isa {
    const char* name;
    bool (*works)();
    void (*run)(const Work&, const upwell_instr&, const upwell_batch&);
    void (*read_cache)(const upwell_cache&, int64_t num_blocks, bool is_value, float* out);
};

extern const Isa kScalar;
#if defined(__x86_64__)
extern const Isa kAvx512, kAvxVnni, kAvx2;
#elif defined(__aarch64__)
extern const Isa kNeon;
#endif
