// What test_isas.cpp builds operations from: random numbers, memory, operands, programs, and what they wrote.
#pragma once
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "upwell.h"

struct Random {
    uint64_t state;
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (uint32_t)(state >> 32);
    }
    int below(int n) { return (int)(next() % (uint32_t)n); }
    float between(float low, float high) { return low + (high - low) * (float)(next() >> 8) * 0x1p-24f; }
    // Mostly within 1, sometimes far greater: such blocks of activations are wide.
    float number() { return between(-1, 1) * (below(50) ? 1.0f : 20.0f); }
    // An ordinary one: neither subnormal nor infinite.
    uint16_t half() {
        return (uint16_t)((uint32_t)below(2) << 15 | (uint32_t)(4 + below(10)) << 10 | (uint32_t)below(1024));
    }
};

// Zeroed memory of exactly that size, so that AddressSanitizer sees an access past its end.
template <class T>
class Array {
  public:
    explicit Array(int64_t count) : count_(count) {
        if (posix_memalign((void**)&data_, 64, bytes())) abort();
        memset((void*)data_, 0, bytes());
    }
    Array(int64_t count, Random& random) : Array(count) {
        for (int64_t i = 0; i < count; i++) data_[i] = (T)random.number();
    }
    Array(std::initializer_list<T> values) : Array((int64_t)values.size()) {
        int64_t i = 0;
        for (T value : values) data_[i++] = value;
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() { free(data_); }
    operator T*() const { return data_; }
    int64_t count() const { return count_; }
    size_t bytes() const { return sizeof(T) * (size_t)count_; }

  private:
    T* data_ = nullptr;
    int64_t count_;
};

// ---- Operands

constexpr int kFormats = UPWELL_W8A8 + 1, kCacheKinds = UPWELL_KV_I8 + 1;
const char* const kFormatNames[kFormats] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k", "w8a8"};
const char* const kCacheNames[kCacheKinds] = {"f32", "f16", "i16", "i8"};

// How activations meet a weight.
enum class Kind { kFloats, kBlocks, kTokens };
inline Kind kind_of(int format) {
    return format <= UPWELL_BF16 ? Kind::kFloats : format == UPWELL_W8A8 ? Kind::kTokens : Kind::kBlocks;
}
inline bool is_float(int format) { return kind_of(format) == Kind::kFloats; }

struct Rows {
    Array<float> x;
    Array<uint8_t> q, tokens;
    upwell_rows rows;
    Rows(int64_t count, int64_t columns, bool floats, Kind kind)
        : x(floats ? count * columns : 0),
          q(kind == Kind::kBlocks ? count * ((columns + 31) / 32) * UPWELL_BLOCK_BYTES : 0),
          tokens(kind == Kind::kTokens ? count * ((columns + 31) / 32 * 32 + UPWELL_TOKEN_HEADER_BYTES) : 0),
          rows{floats ? (float*)x : nullptr, columns, kind == Kind::kBlocks ? (void*)(uint8_t*)q : nullptr,
               kind == Kind::kTokens ? (void*)(uint8_t*)tokens : nullptr} {}
};

// Columns of a stored block, bytes of it, and where in it there are scales that must be ordinary numbers.
struct Stored {
    int64_t columns, bytes;
    int scales[2];
};
constexpr Stored kStored[kFormats] = {{1, 4, {-1, -1}},   {1, 2, {-1, -1}},      {1, 2, {-1, -1}},
                                      {32, 34, {0, -1}},  {32, 18, {0, -1}},     {32, 20, {0, 2}},
                                      {256, 144, {0, 2}}, {256, 210, {208, -1}}, {1, 1, {-1, -1}}};

inline void fill_block(int format, uint8_t* block, Random& random) {
    float number = random.between(-1, 1);
    uint16_t half = random.half();
    for (int64_t j = 0; j < kStored[format].bytes; j++) block[j] = (uint8_t)random.next();
    if (format == UPWELL_F32) memcpy(block, &number, 4);
    if (format == UPWELL_F16) memcpy(block, &half, 2);
    if (format == UPWELL_BF16) memcpy(block, (uint8_t*)&number + 2, 2);
    for (int at : kStored[format].scales)
        if (at >= 0) {
            half = random.half();
            memcpy(block + at, &half, 2);
        }
}

struct Matrix {
    Array<uint8_t> panels;
    Array<float> bias;
    upwell_matrix matrix;
    Matrix(int format, int n, int k, bool biased, Random& random)
        : panels(upwell_packed_bytes(format, n, k)), bias(n, random),
          matrix{format, n, k, 0, panels, biased ? (float*)bias : nullptr} {
        const Stored& of = kStored[format];
        int64_t head = format == UPWELL_W8A8 ? 4 : 0, row = head + k / of.columns * of.bytes, half = n / 2;
        Array<uint8_t> stored(n * row);
        for (int64_t at = 0; at < stored.count(); at += of.bytes) fill_block(format, stored + at, random);
        for (int64_t r = 0; r < n && head; r++) {
            float scale = random.between(0.001f, 0.1f);
            memcpy(stored + r * row, &scale, 4);
        }
        upwell_pack(format, half, k, stored, row, panels, 0);
        upwell_pack(format, n - half, k, stored + half * row, row, panels, half);
    }
};

// Confines this thread, and those that it starts meanwhile, to one processor.
class OneProcessor {
  public:
    OneProcessor() {
        if (sched_getaffinity(0, sizeof(before_), &before_)) abort();
        cpu_set_t one;
        CPU_ZERO(&one);
        for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++)
            if (CPU_ISSET(i, &before_)) CPU_SET(i, &one);
        if (sched_setaffinity(0, sizeof(one), &one)) abort();
    }
    OneProcessor(const OneProcessor&) = delete;
    OneProcessor& operator=(const OneProcessor&) = delete;
    ~OneProcessor() { sched_setaffinity(0, sizeof(before_), &before_); }

  private:
    cpu_set_t before_;
};

inline int64_t own_cpu_nanoseconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// ---- Programs

struct Argument {
    int64_t bits = 0;
    Argument(std::nullptr_t) {}
    Argument(int value) : bits(value) {}
    Argument(int64_t value) : bits(value) {}
    Argument(float value) { memcpy(&bits, &value, sizeof(value)); }
    Argument(const void* address) : bits((int64_t)(intptr_t)address) {}
    Argument(const Rows& rows) : Argument((const void*)&rows.rows) {}
    Argument(const Matrix& matrix) : Argument((const void*)&matrix.matrix) {}
    template <class T>
    Argument(const Array<T>& array) : Argument((const void*)(T*)array) {}
};

struct Written {
    std::string name;
    bool floats;
    std::vector<uint32_t> words;
};

// One pass over all operations.
class Pass {
  public:
    std::vector<Written> written;
    Random random{0};
    bool sound = true;  // nothing differed that must be the same

    explicit Pass(int threads) : threads_(threads) {}
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
    ~Pass() { upwell_pool_free(pool_); }
    int threads() const { return threads_; }
    // Of all threads in the programs of this pool.
    int64_t cpu_nanoseconds() const { return upwell_pool_cpu(pool_); }
    // A pool that has to wait on a busy machine leaves the work to a single thread; the first three programs of a new
    // one are run by all.
    void renew_pool() {
        if (pool_) upwell_pool_free(pool_);
        if (!(pool_ = upwell_pool_new(threads_))) abort();
    }
    // Begin a case, with a new pool. Its random numbers depend on its name alone.
    void begin(std::string name) {
        renew_pool();
        name_ = std::move(name);
        program_.clear();
        random.state = 0;
        for (char c : name_) random.state += (uint64_t)c, random.next();
    }
    void add(int op, std::initializer_list<Argument> arguments, int flags = 0) {
        upwell_instr instr = {op, flags, {0}};
        int i = 0;
        for (const Argument& argument : arguments) instr.a[i++] = argument.bits;
        program_.push_back(instr);
    }
    void run(const upwell_batch& batch) {
        if (upwell_run(pool_, program_.data(), (int64_t)program_.size(), &batch)) fail("was refused");
        program_.clear();
    }
    void run(int64_t tokens) {
        upwell_batch batch = {};
        batch.num_tokens = batch.num_rows = tokens;
        run(batch);
    }
    template <class T>
    void keep(const char* what, const Array<T>& array) {
        written.push_back({name_ + ": " + what, std::is_same_v<T, float>, {}});
        written.back().words.resize((array.bytes() + 3) / 4);
        if (array.bytes()) memcpy(written.back().words.data(), (T*)array, array.bytes());
    }
    // Two ways of computing the same.
    void same(const char* what, const Array<float>& one, const Array<float>& other) {
        if (one.count() == other.count() && !memcmp(one, other, one.bytes())) return;
        fail((std::string(what) + " DIFFERS between two ways of computing it").c_str());
    }
    void fail(const char* why) {
        printf("%s: %s\n", name_.c_str(), why);
        sound = false;
    }
    void keep(const Rows& rows) {
        keep("x", rows.x);
        keep("q", rows.q);
        keep("tokens", rows.tokens);
    }

  private:
    int threads_;
    upwell_pool* pool_ = nullptr;
    std::string name_;
    std::vector<upwell_instr> program_;
};
