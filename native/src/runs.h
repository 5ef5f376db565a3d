// Shares the pieces of a matrix out so that each thread reads one long run of memory.
#pragma once
#include <stdint.h>

#include <atomic>

#include "pool.h"

namespace ga {

// Calls f(begin, end) for pieces of [0, count), of `most` each. Every thread has a run of neighbouring pieces and goes
// through it in order, so that what it fetches ahead at the end of a piece is what it reads next; who is done helps
// others with what is left of theirs. A run ends in smaller pieces, since nobody goes on before the last one is done.
template <class F>
void parallel_runs(int64_t count, int64_t most, const F& f) {
    struct alignas(64) Run {
        std::atomic<int64_t> next;
        int64_t end;
    };
    Run runs[kMaxThreads];
    const int64_t pieces = (count + most - 1) / most, members = pieces < threads() ? pieces : threads();
    for (int64_t i = 0; i < members; ++i) {
        runs[i].next.store(pieces * i / members * most, std::memory_order_relaxed);
        runs[i].end = i + 1 < members ? pieces * (i + 1) / members * most : count;
    }
    parallel(members, [&](int64_t own, int) {
        for (int64_t i = 0; i < members; ++i) {
            Run& run = runs[(own + i) % members];
            int64_t begin = run.next.load(std::memory_order_relaxed);
            while (begin < run.end) {
                const int64_t left = run.end - begin, size = left >= 2 * most ? most : (left + 2) / 3;
                if (!run.next.compare_exchange_weak(begin, begin + size, std::memory_order_relaxed)) continue;
                f(begin, begin + size);
                begin = run.next.load(std::memory_order_relaxed);
            }
        }
    });
}

}  // namespace ga
