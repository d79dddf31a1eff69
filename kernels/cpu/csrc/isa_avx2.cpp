// AVX2 with FMA and F16C: compiled for them, and run only where the processor has them.
#include "vec_avx2.hpp"
//
#include "cpuid.hpp"
#include "kernels.hpp"

static bool works() { return has_avx2(); }

const Isa kAvx2 = {"avx2", works, run, read_cache};
