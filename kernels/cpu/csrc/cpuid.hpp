// What an x86-64 processor has, beyond what every compiler's __builtin_cpu_supports knows the name of.
#pragma once
#include <cpuid.h>

namespace {

// With F16C and FMA, and registers that the operating system keeps: __builtin_cpu_supports asks that of AVX2.
[[maybe_unused]] bool has_avx2() {
    unsigned a, b, c, d;
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

[[maybe_unused]] bool has_avxvnni() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

}  // namespace
