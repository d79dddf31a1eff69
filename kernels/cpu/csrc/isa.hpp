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

// Each is defined by isa_*.cpp; CMakeLists.txt says which of these are compiled.
extern const Isa kAvx512, kAvxVnni, kAvx2, kNeon, kScalar;
