// What this machine can do at most: reading memory, dot products of int8 and of int16, float32 multiply-adds, and
// products of int8 tiles (AMX).
//
//   limits --threads N --weights-bytes B [--large-bytes B] [--rounds R] [--reads B]
//
// prints one JSON object. Each figure is measured for R rounds after a warm-up; "best" is the fastest round (the
// limit), "median" tells how steady the machine was. With --reads, the best rates of reading 32 KiB, 64 KiB and so on
// up to B bytes are listed too. Which instructions are used is found out while it runs.

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#else
#define X86 0
#endif

namespace {

using Clock = std::chrono::steady_clock;

std::atomic<uint64_t> sink;  // what keeps results alive

struct Figure {
    double best = 0;
    double median = 0;
};

// Amount a second over all threads: `work` does its share and returns how much that was.
Figure measure(int threads, int rounds, const std::function<double(int)>& work) {
    std::vector<double> amounts(threads);
    std::vector<double> rates;
    Clock::time_point began;
    std::barrier start(threads, [&]() noexcept { began = Clock::now(); });
    std::barrier finish(threads, [&]() noexcept {
        const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
        double total = 0;
        for (double amount : amounts) total += amount;
        rates.push_back(total / seconds);
    });
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
        pool.emplace_back([&, t] {
            for (int round = 0; round <= rounds; ++round) {
                start.arrive_and_wait();
                amounts[t] = work(t);
                finish.arrive_and_wait();
            }
        });
    }
    for (auto& thread : pool) thread.join();
    rates.erase(rates.begin());  // the warm-up
    std::sort(rates.begin(), rates.end());
    return {rates.back(), rates[rates.size() / 2]};
}

// ---- reading: every byte of a range is loaded once

// `ahead` is how far from what is loaded bytes are fetched into the caches, none if 0. Past the end there is nothing to
// fear: fetching never faults.
void fetch_line(const uint8_t* data, size_t i, size_t ahead) {
    if (ahead) __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(data) + i + ahead), 0, 3);
}

uint64_t read_plain(const uint8_t* data, size_t bytes, size_t ahead) {
    uint64_t sum[8] = {};
    for (size_t i = 0; i + 64 <= bytes; i += 64) {
        uint64_t words[8];
        fetch_line(data, i, ahead);
        std::memcpy(words, data + i, 64);
        for (int k = 0; k < 8; ++k) sum[k] ^= words[k];
    }
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

constexpr int64_t kSteps = 300'000'000;  // instructions each thread issues in a round of a compute test

template <class T>
double dot_plain() {
    constexpr int kElements = 1024;
    static thread_local T a[kElements], b[kElements];
    for (int i = 0; i < kElements; ++i) a[i] = T(i), b[i] = T(3 * i);
    const int64_t passes = kSteps / 1000;
    int32_t total = 0;
    for (int64_t p = 0; p < passes; ++p) {
        int32_t sum = 0;
        for (int i = 0; i < kElements; ++i) sum += int32_t(a[i]) * int32_t(b[i]);
        total ^= sum;
        asm volatile("" : : "r"(a), "r"(b) : "memory");
    }
    sink += uint32_t(total);
    return 2.0 * kElements * double(passes);
}

double fma_plain() {
    constexpr int kLanes = 64;
    float acc[kLanes];
    for (int i = 0; i < kLanes; ++i) acc[i] = float(i);
    const int64_t passes = kSteps / 4;
    for (int64_t p = 0; p < passes; ++p) {
        for (int i = 0; i < kLanes; ++i) acc[i] = acc[i] * 0.999f + 0.001f;
        asm volatile("" : : "r"(acc) : "memory");
    }
    sink += uint64_t(acc[0]);
    return 2.0 * kLanes * double(passes);
}

#if X86

__attribute__((target("avx2"))) uint64_t read_avx2(const uint8_t* data, size_t bytes, size_t ahead) {
    __m256i sum[4] = {};
    for (size_t i = 0; i + 128 <= bytes; i += 128) {
        fetch_line(data, i, ahead), fetch_line(data, i + 64, ahead);
        for (int k = 0; k < 4; ++k)
            sum[k] = _mm256_xor_si256(sum[k], _mm256_loadu_si256((const __m256i*)(data + i + 32 * k)));
    }
    const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    return uint64_t(_mm256_extract_epi64(all, 0));
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const uint8_t* data, size_t bytes, size_t ahead) {
    __m512i sum[4] = {};
    for (size_t i = 0; i + 256 <= bytes; i += 256)
        for (int k = 0; k < 4; ++k) {
            fetch_line(data, i + 64 * k, ahead);
            sum[k] = _mm512_xor_si512(sum[k], _mm512_loadu_si512(data + i + 64 * k));
        }
    const __m512i all = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
    return uint64_t(_mm512_reduce_add_epi64(all));
}

// Twelve accumulators hide the latency of two units; the asm keeps the compiler from folding anything, and they are
// variables of their own, since an array would live in memory.
#define TWELVE(OP) OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11)

// vpdpbusd adds four products of int8 to each of 16 lanes, vpdpwssd two of int16.
#define DOT_AVX512(NAME, INSTRUCTION, SET, OPERATIONS)                     \
    __attribute__((target("avx512f,avx512bw,avx512vnni"))) double NAME() { \
        TWELVE(ACC_512)                                                    \
        const __m512i a = SET(3), b = SET(-2);                             \
        const int64_t passes = kSteps / 12;                                \
        for (int64_t p = 0; p < passes; ++p) {                             \
            TWELVE(INSTRUCTION)                                            \
        }                                                                  \
        TWELVE(KEEP_512)                                                   \
        return 12.0 * OPERATIONS * double(passes);                         \
    }
#define ACC_512(k) __m512i acc##k = {};
#define KEEP_512(k) sink += uint64_t(_mm512_reduce_add_epi32(acc##k));
#define DOT4_512(k) asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc##k) : "v"(a), "v"(b));
#define DOT2_512(k) asm volatile("vpdpwssd %2, %1, %0" : "+v"(acc##k) : "v"(a), "v"(b));
DOT_AVX512(int8_vnni, DOT4_512, _mm512_set1_epi8, 128)
DOT_AVX512(i16_vnni, DOT2_512, _mm512_set1_epi16, 64)

#define DOT_AVX_VNNI(NAME, INSTRUCTION, SET, OPERATIONS) \
    __attribute__((target("avx2"))) double NAME() {      \
        TWELVE(ACC_256)                                  \
        const __m256i a = SET(3), b = SET(-2);           \
        const int64_t passes = kSteps / 12;              \
        for (int64_t p = 0; p < passes; ++p) {           \
            TWELVE(INSTRUCTION)                          \
        }                                                \
        TWELVE(KEEP_256)                                 \
        return 12.0 * OPERATIONS * double(passes);       \
    }
#define ACC_256(k) __m256i acc##k = {};
#define KEEP_256(k) sink += uint64_t(_mm256_extract_epi32(acc##k, 0));
#define DOT4_256(k) asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc##k) : "x"(a), "x"(b));
#define DOT2_256(k) asm volatile("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc##k) : "x"(a), "x"(b));
DOT_AVX_VNNI(int8_avx_vnni, DOT4_256, _mm256_set1_epi8, 64)
DOT_AVX_VNNI(i16_avx_vnni, DOT2_256, _mm256_set1_epi16, 32)

__attribute__((target("avx2"))) double int8_avx2() {
    __m256i acc[6] = {};
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
    const __m256i ones = _mm256_set1_epi16(1);
    const int64_t passes = kSteps / 12;
    for (int64_t p = 0; p < passes; ++p)
        for (auto& one : acc) {
            asm volatile("" : "+x"(a), "+x"(b));
            one = _mm256_add_epi32(one, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    for (auto& one : acc) sink += uint64_t(_mm256_extract_epi32(one, 0));
    return 6.0 * 64 * double(passes);
}

__attribute__((target("avx2"))) double i16_avx2() {
    __m256i acc[6] = {};
    __m256i a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(-2);
    const int64_t passes = kSteps / 12;
    for (int64_t p = 0; p < passes; ++p)
        for (auto& one : acc) {
            asm volatile("" : "+x"(a), "+x"(b));
            one = _mm256_add_epi32(one, _mm256_madd_epi16(a, b));
        }
    for (auto& one : acc) sink += uint64_t(_mm256_extract_epi32(one, 0));
    return 6.0 * 32 * double(passes);
}

__attribute__((target("avx512f"))) double fma_avx512() {
#define ACC(k) __m512 acc##k = {};
    TWELVE(ACC)
#undef ACC
    const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
    const int64_t passes = kSteps / 12;
    for (int64_t p = 0; p < passes; ++p) {
#define FMA(k) asm volatile("vfmadd231ps %2, %1, %0" : "+v"(acc##k) : "v"(a), "v"(b));
        TWELVE(FMA)
#undef FMA
    }
#define KEEP(k) sink += uint64_t(_mm512_reduce_add_ps(acc##k));
    TWELVE(KEEP)
#undef KEEP
    return 12.0 * 32 * double(passes);
}

__attribute__((target("avx2,fma"))) double fma_avx2() {
#define ACC(k) __m256 acc##k = {};
    TWELVE(ACC)
#undef ACC
    const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
    const int64_t passes = kSteps / 12;
    for (int64_t p = 0; p < passes; ++p) {
#define FMA(k) asm volatile("vfmadd231ps %2, %1, %0" : "+x"(acc##k) : "x"(a), "x"(b));
        TWELVE(FMA)
#undef FMA
    }
#define KEEP(k) sink += uint64_t(_mm256_cvtss_f32(acc##k));
    TWELVE(KEEP)
#undef KEEP
    return 12.0 * 16 * double(passes);
}

// Four products of 16 by 64 by 16, into sums of their own.
__attribute__((target("amx-tile,amx-int8"))) double tiles_amx() {
    struct alignas(64) Shapes {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } shapes;
    for (int t = 0; t < 8; ++t) shapes.row_bytes[t] = 64, shapes.rows[t] = 16;
    asm volatile("ldtilecfg %0" : : "m"(shapes));
    const int64_t passes = kSteps / 64;
    for (int64_t p = 0; p < passes; ++p) {
        asm volatile("tdpbssd %tmm6, %tmm4, %tmm0");
        asm volatile("tdpbssd %tmm6, %tmm4, %tmm1");
        asm volatile("tdpbssd %tmm6, %tmm4, %tmm2");
        asm volatile("tdpbssd %tmm6, %tmm4, %tmm3");
    }
    asm volatile("tilerelease");
    return 4.0 * 2 * 16 * 64 * 16 * double(passes);
}

bool has_amx_int8() {
    unsigned a = 7, b = 0, c = 0, d = 0;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (!(d >> 24 & 1) || !(d >> 25 & 1)) return false;
#if defined(__linux__)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) == 0;
#else
    return false;
#endif
}

#endif

struct Kernels {
    uint64_t (*read)(const uint8_t*, size_t, size_t) = read_plain;
    double (*int8)() = dot_plain<int8_t>;
    double (*i16)() = dot_plain<int16_t>;
    double (*fma)() = fma_plain;
    double (*tiles)() = nullptr;
    std::string read_name = "plain", int8_name = "plain", i16_name = "plain", fma_name = "plain";
};

Kernels choose() {
    Kernels chosen;
#if X86
    if (__builtin_cpu_supports("avx2")) {
        chosen.read = read_avx2, chosen.read_name = "avx2";
        chosen.int8 = int8_avx2, chosen.int8_name = "avx2 vpmaddubsw";
        chosen.i16 = i16_avx2, chosen.i16_name = "avx2 vpmaddwd";
        if (__builtin_cpu_supports("fma")) chosen.fma = fma_avx2, chosen.fma_name = "avx2 vfmadd231ps";
        unsigned a = 0, b = 0, c = 0, d = 0;
        asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
        if (a & (1u << 4)) {
            chosen.int8 = int8_avx_vnni, chosen.int8_name = "avx-vnni vpdpbusd ymm";
            chosen.i16 = i16_avx_vnni, chosen.i16_name = "avx-vnni vpdpwssd ymm";
        }
    }
    if (__builtin_cpu_supports("avx512f")) {
        chosen.read = read_avx512, chosen.read_name = "avx512";
        chosen.fma = fma_avx512, chosen.fma_name = "avx512 vfmadd231ps";
        if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")) {
            chosen.int8 = int8_vnni, chosen.int8_name = "avx512 vpdpbusd zmm";
            chosen.i16 = i16_vnni, chosen.i16_name = "avx512 vpdpwssd zmm";
        }
    }
    if (has_amx_int8()) chosen.tiles = tiles_amx;
#endif
    return chosen;
}

constexpr size_t kAheads[] = {0, 2 << 10, 4 << 10, 12 << 10};

// Bytes a second with each thread reading its part of a buffer, `passes` times a round: by itself or fetching ahead,
// whichever is fastest.
Figure read_rate(const Kernels& kernels, const uint8_t* buffer, size_t bytes, int threads, int rounds) {
    const size_t share = bytes / threads / 256 * 256;
    const int passes = int(std::max<size_t>(1, (size_t(512) << 20) / bytes));
    Figure fastest;
    for (size_t ahead : kAheads) {
        const Figure figure = measure(threads, rounds, [&](int t) {
            uint64_t sum = 0;
            for (int p = 0; p < passes; ++p) sum ^= kernels.read(buffer + share * t, share, ahead);
            sink += sum;
            return double(share) * passes;
        });
        if (figure.best > fastest.best) fastest = figure;
    }
    return fastest;
}

// Memory in huge pages if there are any, every page written to.
std::unique_ptr<uint8_t, void (*)(void*)> filled(size_t bytes) {
    constexpr size_t kHugePage = size_t(2) << 20;
    auto* data = static_cast<uint8_t*>(std::aligned_alloc(kHugePage, (bytes + kHugePage - 1) / kHugePage * kHugePage));
    if (!data) std::abort();
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    for (size_t i = 0; i < bytes; ++i) data[i] = uint8_t(i >> 6);
    return {data, std::free};
}

void print(const char* name, Figure figure, double unit, const char* end) {
    std::printf("  \"%s\": {\"best\": %.3f, \"median\": %.3f}%s\n", name, figure.best / unit, figure.median / unit,
                end);
}

// The same for buffers of 32 KiB, 64 KiB and so on, up to `most` bytes: what each cache gives, and memory.
void print_reads(const Kernels& kernels, const uint8_t* buffer, size_t most, int threads, int rounds) {
    std::printf("  \"reads\": [");
    for (size_t bytes = size_t(32) << 10; bytes <= most; bytes *= 2) {
        const Figure one = read_rate(kernels, buffer, bytes, 1, rounds);
        const Figure all = read_rate(kernels, buffer, bytes, threads, rounds);
        std::printf("%s{\"bytes\": %zu, \"1_gbs\": %.3f, \"n_gbs\": %.3f}", bytes > size_t(32) << 10 ? ", " : "", bytes,
                    one.best / 1e9, all.best / 1e9);
    }
    std::printf("],\n");
}

size_t option(int argc, char** argv, const char* name, size_t fallback) {
    for (int i = 1; i + 1 < argc; ++i)
        if (!std::strcmp(argv[i], name)) return std::strtoull(argv[i + 1], nullptr, 10);
    return fallback;
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = int(std::max<size_t>(1, option(argc, argv, "--threads", std::thread::hardware_concurrency())));
    const int rounds = int(option(argc, argv, "--rounds", 7));
    const size_t weights = option(argc, argv, "--weights-bytes", 96'600'000);
    const size_t reads = option(argc, argv, "--reads", 0);
    const size_t large = std::max({weights, reads, option(argc, argv, "--large-bytes", size_t(1) << 30)});
    const Kernels kernels = choose();
    const auto owner = filled(large);
    const uint8_t* buffer = owner.get();
    std::printf("{\n  \"threads\": %d, \"rounds\": %d, \"weights_bytes\": %zu, \"large_bytes\": %zu,\n", threads,
                rounds, weights, large);
    std::printf("  \"read\": \"%s\", \"int8\": \"%s\", ", kernels.read_name.c_str(), kernels.int8_name.c_str());
    std::printf("\"i16\": \"%s\", \"fma\": \"%s\",\n", kernels.i16_name.c_str(), kernels.fma_name.c_str());
    if (reads) print_reads(kernels, buffer, reads, threads, rounds);
    print("read_large_1_gbs", read_rate(kernels, buffer, large, 1, rounds), 1e9, ",");
    print("read_large_n_gbs", read_rate(kernels, buffer, large, threads, rounds), 1e9, ",");
    print("read_weights_1_gbs", read_rate(kernels, buffer, weights, 1, rounds), 1e9, ",");
    print("read_weights_n_gbs", read_rate(kernels, buffer, weights, threads, rounds), 1e9, ",");
    print("int8_1_gops", measure(1, rounds, [&](int) { return kernels.int8(); }), 1e9, ",");
    print("int8_n_gops", measure(threads, rounds, [&](int) { return kernels.int8(); }), 1e9, ",");
    print("i16_1_gops", measure(1, rounds, [&](int) { return kernels.i16(); }), 1e9, ",");
    print("i16_n_gops", measure(threads, rounds, [&](int) { return kernels.i16(); }), 1e9, ",");
    if (kernels.tiles) {
        print("tiles_1_gops", measure(1, rounds, [&](int) { return kernels.tiles(); }), 1e9, ",");
        print("tiles_n_gops", measure(threads, rounds, [&](int) { return kernels.tiles(); }), 1e9, ",");
    }
    print("fma_1_gflops", measure(1, rounds, [&](int) { return kernels.fma(); }), 1e9, ",");
    print("fma_n_gflops", measure(threads, rounds, [&](int) { return kernels.fma(); }), 1e9, "");
    std::printf("}\n");
    return 0;
}
