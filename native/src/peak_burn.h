// Runs one instruction, or a short chain of them, on independent sums: what peaks are measured with.
#pragma once
#include <stdint.h>

#include <utility>

namespace ga {

// Indices that are constants keep the sums in registers: in a loop they would live in memory.
template <class V, class Start, class Step, int... I>
static void burn(int64_t rounds, Start start, Step step, std::integer_sequence<int, I...>) {
    V sums[sizeof...(I)] = {start(I)...};
    const auto once = [&](V& sum) {
        sum = step(sum);
#if defined(GA_EMULATE_LEVELS)
        asm volatile("" : "+m"(sum));
#elif defined(__aarch64__)
        asm volatile("" : "+w"(sum));
#else
        asm volatile("" : "+v"(sum));  // each step is done, one by one
#endif
    };
    for (int64_t n = 0; n < rounds; ++n) (once(sums[I]), ...);
}

// `count` independent sums, from start(0), start(1), … on.
template <class V, int count, class Start, class Step>
static void burn(int64_t rounds, Start start, Step step) {
    burn<V>(rounds, start, step, std::make_integer_sequence<int, count>());
}

}  // namespace ga
