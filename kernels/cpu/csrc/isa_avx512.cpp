// AVX-512 with VNNI: compiled for it, and run only where the processor has it.
#include "vec_avx512.hpp"
//
#include "kernels.hpp"

static bool works() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

const Isa kAvx512 = {"avx512", works, run, read_cache};
