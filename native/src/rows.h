// Splits independent rows over the thread pool, when there is enough to do.
#pragma once
#include <stdint.h>

#include "pool.h"

namespace ga {

// f(begin, end) over [0, rows). A row never depends on where it is cut, so the grain is free to choose.
template <class F>
void for_rows(int64_t rows, int64_t floats_per_row, F&& f) {
    constexpr int64_t grain = 16384;  // floats that are worth waking a thread for
    const int64_t step = floats_per_row >= grain ? 1 : grain / (floats_per_row > 0 ? floats_per_row : 1);
    const int64_t tasks = (rows + step - 1) / step;
    if (tasks <= 1) {
        if (rows > 0) f(static_cast<int64_t>(0), rows);
        return;
    }
    parallel(static_cast<int>(tasks), [&](int task, int) {
        const int64_t begin = task * step;
        f(begin, begin + step < rows ? begin + step : rows);
    });
}

}  // namespace ga
