// AVX2 with the integer dot products of AVX-VNNI: compiled for them, and run only where the processor has them.
#include "vec_avx2.hpp"
//
#include "cpuid.hpp"
#include "kernels.hpp"

static bool works() { return has_avx2() && has_avxvnni(); }

const Isa kAvxVnni = {"avxvnni", works, run, read_cache};
