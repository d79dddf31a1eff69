// NEON with the integer dot products of ARMv8.2: compiled for them, and run only where the processor has them.
#include "vec_neon.hpp"
//
#include <sys/auxv.h>

#include "kernels.hpp"

static bool works() {
    constexpr unsigned long kDotProducts = 1 << 20;  // HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & kDotProducts) != 0;
}

const Isa kNeon = {"neon", works, run, read_cache};
