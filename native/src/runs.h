// Shares the pieces of a matrix out so that each thread reads one long run of memory.
#pragma once
#include <stdint.h>

#include <atomic>

#include "pool.h"

namespace ga {

// Calls f(piece) for all pieces. Each thread has a run of neighbouring pieces and goes through it in order, so that what
// it fetches ahead at the end of a piece is what it reads next; who is done helps others with what is left of theirs.
template <class F>
void parallel_runs(int64_t pieces, const F& f) {
    struct alignas(64) Run {
        std::atomic<int64_t> next;
        int64_t end;
    };
    Run runs[kMaxThreads];
    const int64_t count = threads();
    for (int64_t i = 0; i < count; ++i) {
        runs[i].next.store(pieces * i / count, std::memory_order_relaxed);
        runs[i].end = pieces * (i + 1) / count;
    }
    parallel(count, [&](int64_t own, int) {
        for (int64_t i = 0; i < count; ++i) {
            Run& run = runs[(own + i) % count];
            for (int64_t piece; (piece = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end;) f(piece);
        }
    });
}

}  // namespace ga
