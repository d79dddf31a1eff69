// Runs programs: the threads of a pool go through the instructions together, sharing out the items of each.
//
// Threads wait for each other by spinning for a moment and then giving way; between programs they spin for a moment and
// then sleep. So a step pays for no more than a wake-up and a look at its clocks, and an idle server uses no processor.
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>
#include <cstring>

#include "check.hpp"
#include "isa.hpp"
#include "layout.hpp"

namespace {

constexpr int64_t kRest = 50000000;  // nanoseconds that the caller works alone
constexpr int kSpins = 4000;  // of about 40 ns: how long a thread waits before it gives way

const Isa* isa = nullptr;

// Best first.
const Isa* const kIsas[] = {
#if defined(UPWELL_AVX512)
    &kAvx512,
#endif
#if defined(UPWELL_AVXVNNI)
    &kAvxVnni,
#endif
#if defined(UPWELL_AVX2)
    &kAvx2,
#endif
#if defined(UPWELL_NEON)
    &kNeon,
#endif
    &kScalar,
};

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void futex(std::atomic<int32_t>* word, int op, int32_t value) {
    syscall(SYS_futex, (int32_t*)word, op | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

int64_t now(clockid_t clock = CLOCK_MONOTONIC) {
    timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

}  // namespace

struct upwell_pool {
    int threads;  // the caller included
    pid_t process;  // that made it: a fork of it has none of the threads
    std::atomic<bool> busy;  // with a call, whose program and counters lie below
    pthread_t ids[kMaxThreads];
    uint8_t* scratch[kMaxThreads];
    std::atomic<int64_t>* taken;  // one counter a thread and instruction
    const upwell_instr* program;
    int64_t count;
    const upwell_batch* batch;
    int64_t* nanoseconds;
    int strikes;  // programs in a row that waited too long
    int64_t rest_until;  // what the caller runs alone before this moment
    int64_t rested;  // programs that it has run alone so
    alignas(64) std::atomic<int32_t> generation;  // of the programs that all threads run; -1 ends them
    alignas(64) std::atomic<int64_t> arrived;  // at barriers, over all threads and the whole program
    alignas(64) std::atomic<int32_t> left;  // threads that are done with the program
    alignas(64) std::atomic<int64_t> cpu;  // nanoseconds of all threads in programs
};

namespace {

// Returns the nanoseconds after the spinning: near 0 unless another thread does not get to run.
template <class Done, class Meanwhile>
int64_t wait_until(const Done& done, const Meanwhile& meanwhile) {
    int64_t gave_way = 0;
    for (int spins = 0; !done(); spins++) {
        if (spins < kSpins) {
            if (!meanwhile()) relax();
        } else {
            if (!gave_way) gave_way = now();
            sched_yield();
        }
    }
    return gave_way ? now() - gave_way : 0;
}

// What a thread will read of the next weights, if that is worth fetching while it waits: few rows wait for memory.
class Ahead {
  public:
    Ahead(const upwell_pool* pool, int64_t next, int index, int threads) {
        if (pool->batch->num_tokens > kFewRows) return;
        for (int64_t i = next; i < pool->count && i < next + kLookAhead; i++) {
            const upwell_instr& instr = pool->program[i];
            if (instr.op != UPWELL_LINEAR && instr.op != UPWELL_SILU_LINEAR) continue;
            const upwell_matrix& m = *(const upwell_matrix*)(intptr_t)instr.a[1];
            int64_t panel = upwell_packed_bytes(m.format, kPanelRows, m.k),
                    panels = (m.n + kPanelRows - 1) / kPanelRows;
            bool gated = instr.op == UPWELL_SILU_LINEAR;
            Share share(gated ? panels / 2 : panels, index, threads);
            parts_ = gated ? 2 : 1;
            for (int part = 0; part < parts_; part++)
                at_[part] = m.panels + (share.first + part * (panels / 2)) * panel;
            left_ = (share.last - share.first) * panel;
            if (left_ > kFetch / parts_) left_ = kFetch / parts_;
            return;
        }
    }
    // Fetches a little more; false if there is nothing left.
    bool fetch() {
        if (left_ <= 0) return false;
        for (int part = 0; part < parts_; part++) {
            for (int line = 0; line < kLines; line++) __builtin_prefetch(at_[part] + 64 * line, 0, 2);
            at_[part] += 64 * kLines;
        }
        left_ -= 64 * kLines;
        return true;
    }

  private:
    static constexpr int64_t kFewRows = 4, kLookAhead = 8, kFetch = 256 << 10;
    static constexpr int kLines = 4;
    const uint8_t* at_[2];
    int parts_ = 0;
    int64_t left_ = 0;
};

// Returns the nanoseconds this thread waited for the others, as above.
int64_t go_through(upwell_pool* pool, int index, int threads) {
    int64_t barriers = 0, waited = 0;
    for (int64_t i = 0; i < pool->count; i++) {
        const upwell_instr& instr = pool->program[i];
        int64_t began = pool->nanoseconds && index == 0 ? now() : 0;
        isa->run({pool->taken + i, index, threads, pool->scratch[index]}, instr, *pool->batch);
        if (!(instr.flags & UPWELL_NO_BARRIER) && threads > 1) {
            int64_t all = ++barriers * threads;
            pool->arrived.fetch_add(1, std::memory_order_acq_rel);
            Ahead ahead(pool, i + 1, index, threads);
            waited += wait_until([&] { return pool->arrived.load(std::memory_order_acquire) >= all; },
                                 [&] { return ahead.fetch(); });
        }
        if (pool->nanoseconds && index == 0) pool->nanoseconds[i] += now() - began;
    }
    return waited;
}

// How many threads the next program gets: all, or the caller alone. Where other processes take the processors, a thread
// that waits for one that does not run loses more than it gains; results do not depend on the number. So after three
// programs in a row that spent a third of their time so, the caller works alone for a moment, and then they try again.
int threads_for_next(const upwell_pool* pool) { return now() < pool->rest_until ? 1 : pool->threads; }

void note_waiting(upwell_pool* pool, int64_t waited, int64_t total) {
    pool->strikes = 3 * waited > total ? pool->strikes + 1 : 0;
    if (pool->strikes < 3) return;
    pool->strikes = 0;
    pool->rest_until = now() + kRest;
}

struct Start {
    upwell_pool* pool;
    int index;
};

void* serve(void* argument) {
    Start start = *(Start*)argument;
    free(argument);
    upwell_pool* pool = start.pool;
    int32_t seen = 0;
    for (;;) {
        for (int spins = 0; pool->generation.load(std::memory_order_acquire) == seen; spins++) {
            if (spins < kSpins) relax();
            else futex(&pool->generation, FUTEX_WAIT, seen);
        }
        seen = pool->generation.load(std::memory_order_acquire);
        if (seen < 0) return nullptr;
        int64_t began = now(CLOCK_THREAD_CPUTIME_ID);
        go_through(pool, start.index, pool->threads);
        pool->cpu.fetch_add(now(CLOCK_THREAD_CPUTIME_ID) - began, std::memory_order_relaxed);
        pool->left.fetch_add(1, std::memory_order_acq_rel);
    }
}

}  // namespace

extern "C" int upwell_abi(void) { return UPWELL_ABI; }

extern "C" const upwell_constant* upwell_constants(void) {
    static const upwell_constant constants[] = {
        {"BLOCK_BYTES", UPWELL_BLOCK_BYTES},
        {"TOKEN_HEADER_BYTES", UPWELL_TOKEN_HEADER_BYTES},
        {"PANEL_ROWS", kPanelRows},
        {"MAX_HEAD_DIM", kMaxHead},
        {"MAX_GROUP", kQueryRows},
        {"MAX_EXPERTS", kMaxExperts},
        {"MAX_COLUMNS", kMaxParts * kPartBlocks * 32},
        {"MAX_PROGRAM", kMaxProgram},
        {"MAX_THREADS", kMaxThreads},
        {"bytes of Matrix", sizeof(upwell_matrix)},
        {"bytes of Rows", sizeof(upwell_rows)},
        {"bytes of Cache", sizeof(upwell_cache)},
        {"bytes of Experts", sizeof(upwell_experts)},
        {"bytes of Batch", sizeof(upwell_batch)},
        {"bytes of INSTRUCTION", sizeof(upwell_instr)},
        {nullptr, 0},
    };
    return constants;
}

extern "C" const char* upwell_isas(void) {
    static char names[128];
    names[0] = 0;
    for (const Isa* each : kIsas)
        if (each->works()) {
            if (names[0]) strcat(names, " ");
            strcat(names, each->name);
        }
    return names;
}

extern "C" int upwell_use(const char* name) {
    if (!name) return 0;
    for (const Isa* each : kIsas)
        if (!strcmp(each->name, name) && each->works()) {
            isa = each;
            return 1;
        }
    return 0;
}

extern "C" upwell_pool* upwell_pool_new(int threads) {
    if (threads < 1 || threads > kMaxThreads) return nullptr;
    upwell_pool* pool = (upwell_pool*)aligned_alloc(64, (sizeof(upwell_pool) + 63) / 64 * 64);
    if (!pool) return nullptr;
    memset((void*)pool, 0, sizeof(*pool));
    pool->process = getpid();
    pool->taken = (std::atomic<int64_t>*)calloc((size_t)(threads * kMaxProgram), sizeof(int64_t));
    bool sound = pool->taken != nullptr;
    for (int i = 0; i < threads && sound; i++)
        sound = (pool->scratch[i] = (uint8_t*)aligned_alloc(64, (size_t)kScratchBytes)) != nullptr;
    for (pool->threads = 1; pool->threads < threads && sound; pool->threads++) {
        Start* start = (Start*)malloc(sizeof(Start));
        if (start) *start = {pool, pool->threads};
        if (start && pthread_create(&pool->ids[pool->threads], nullptr, serve, start) == 0) continue;
        free(start);
        sound = false;
        break;
    }
    if (sound) return pool;
    upwell_pool_free(pool);
    return nullptr;
}

extern "C" void upwell_pool_free(upwell_pool* pool) {
    if (!pool) return;
    if (pool->process == getpid()) {
        pool->generation.store(-1, std::memory_order_release);
        futex(&pool->generation, FUTEX_WAKE, INT_MAX);
        for (int i = 1; i < pool->threads; i++) pthread_join(pool->ids[i], nullptr);
    }
    for (uint8_t* scratch : pool->scratch) free(scratch);
    free((void*)pool->taken);
    free(pool);
}

extern "C" int upwell_profile(upwell_pool* pool, const upwell_instr* program, int64_t count, const upwell_batch* batch,
                              int64_t* nanoseconds) {
    if (!isa) return UPWELL_NO_ISA;
    if (!pool) return UPWELL_BAD_POOL;
    if (pool->process != getpid()) return UPWELL_FORKED_POOL;
    if (int status = check(program, count, batch)) return status;
    if (pool->busy.exchange(true, std::memory_order_acquire)) return UPWELL_BUSY_POOL;
    pool->program = program;
    pool->count = count;
    pool->batch = batch;
    pool->nanoseconds = nanoseconds;
    for (int64_t of = 0; of < pool->threads; of++)
        for (int64_t i = 0; i < count; i++) pool->taken[of * kMaxProgram + i].store(0, std::memory_order_relaxed);
    pool->arrived.store(0, std::memory_order_relaxed);
    pool->left.store(0, std::memory_order_relaxed);
    int threads = threads_for_next(pool);
    int64_t began = now(), cpu_before = now(CLOCK_THREAD_CPUTIME_ID);
    if (threads > 1) {
        int32_t next = (pool->generation.load(std::memory_order_relaxed) + 1) & INT_MAX;
        pool->generation.store(next, std::memory_order_release);
        futex(&pool->generation, FUTEX_WAKE, INT_MAX);
    }
    int64_t waited = go_through(pool, 0, threads);
    waited +=
        wait_until([&] { return pool->left.load(std::memory_order_acquire) == threads - 1; }, [] { return false; });
    if (threads > 1) note_waiting(pool, waited, now() - began);
    else if (pool->threads > 1) pool->rested++;
    pool->cpu.fetch_add(now(CLOCK_THREAD_CPUTIME_ID) - cpu_before, std::memory_order_relaxed);
    pool->busy.store(false, std::memory_order_release);
    return UPWELL_OK;
}

extern "C" int upwell_run(upwell_pool* pool, const upwell_instr* program, int64_t count, const upwell_batch* batch) {
    return upwell_profile(pool, program, count, batch, nullptr);
}

extern "C" int64_t upwell_pool_cpu(const upwell_pool* pool) {
    return pool ? pool->cpu.load(std::memory_order_relaxed) : -1;
}

extern "C" int64_t upwell_pool_rested(const upwell_pool* pool) { return pool ? pool->rested : -1; }

extern "C" int64_t upwell_cache_head_bytes(int kind, int64_t block_size, int64_t head_dim) {
    if (kind < UPWELL_KV_F32 || kind > UPWELL_KV_I8 || block_size < 1 || head_dim < 1) return -1;
    return cache_head_bytes(kind, block_size, head_dim);
}

extern "C" int64_t upwell_partial_bytes(int threads, int64_t seqs, int64_t context, int64_t window, int64_t kv_heads,
                                        int64_t heads, int64_t head_dim) {
    int64_t most = (kPiecesOfThread * threads - 1) / kv_heads, segments = (context + kSegment - 1) / kSegment;
    if (seqs < most) most = seqs;
    if (window && window / kSegment + 2 < segments) segments = window / kSegment + 2;
    int64_t slots = threads > 1 && segments > 1 ? most * kv_heads * segments : 0;
    return 8 * kMaxPieces + 4 * slots * partial_floats(heads / kv_heads, head_dim);
}

extern "C" int upwell_cache_read(const upwell_cache* cache, int64_t num_blocks, int is_value, float* out) {
    if (!isa) return UPWELL_NO_ISA;
    if (!cache || !out) return UPWELL_BAD_ADDRESS;
    if (num_blocks < 0 || num_blocks > cache->num_blocks) return UPWELL_BAD_COUNT;
    isa->read_cache(*cache, num_blocks, is_value != 0, out);
    return UPWELL_OK;
}
