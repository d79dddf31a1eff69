// How the threads of a step share the work of one operation.
#pragma once
#include <atomic>
#include <cstdint>

struct Range {
    int64_t first, last;
    __attribute__((always_inline)) bool more() const { return first < last; }
};

constexpr int kMaxThreads = 256;
constexpr int64_t kMaxProgram = 1 << 14;

// Items [first, last) of `count` that a thread begins with.
struct Share : Range {
    Share(int64_t count, int index, int threads) : Range{count * index / threads, count * (index + 1) / threads} {}
};

struct Work {
    std::atomic<int64_t>* taken;  // items handed out of each thread's share, kMaxProgram from thread to thread
    int index, threads;
    uint8_t* scratch;  // this thread's

    // The next items of `count` for this thread: of its own share, which it knows beforehand and others leave alone,
    // and then what others have not come to. Big ranges first, small ones at the end, so that a thread that was held up
    // by another process is not waited for long. Which thread computes an item changes nothing in it.
    __attribute__((always_inline)) Range next(int64_t count) const {
        for (int i = 0; i < threads; i++) {
            int of = index + i < threads ? index + i : index + i - threads;
            Share share(count, of, threads);
            std::atomic<int64_t>& handed_out = taken[of * kMaxProgram];
            int64_t first = handed_out.load(std::memory_order_relaxed), left, size;
            do {
                left = share.last - share.first - first;
                size = (left + 1) / 2;
            } while (left > 0 && !handed_out.compare_exchange_weak(first, first + size, std::memory_order_relaxed));
            if (left > 0) return {share.first + first, share.first + first + size};
        }
        return {0, 0};
    }
};

constexpr int64_t kScratchBytes = 1 << 20;  // of each thread
