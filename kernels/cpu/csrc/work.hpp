// How the threads of a step share the work of one operation.
#pragma once
#include <atomic>
#include <cstdint>

struct Range {
    int64_t first, last;
    __attribute__((always_inline)) bool more() const { return first < last; }
};

struct Work {
    std::atomic<int64_t>* taken;  // items handed out so far, over all threads
    int threads;
    uint8_t* scratch;  // this thread's

    // The next items of `count` for this thread. Big ranges first, small ones at the end, so that a thread that was
    // held up by another process is not waited for long. Which thread computes an item changes nothing in it.
    __attribute__((always_inline)) Range next(int64_t count) const {
        int64_t first = taken->load(std::memory_order_relaxed), size;
        do {
            if (first >= count) return {0, 0};
            size = (count - first + 2 * threads - 1) / (2 * threads);
        } while (!taken->compare_exchange_weak(first, first + size, std::memory_order_relaxed));
        return {first, first + size};
    }
};

constexpr int64_t kScratchBytes = 1 << 20;  // of each thread
