// Reads memory and does nothing with it: the loop that the limit of read bandwidth is measured with.
#pragma once
#include <stdint.h>

namespace ga {

// As wide as a register of the level that this is compiled for, or two of them.
typedef uint64_t Wide __attribute__((vector_size(32), aligned(32), may_alias));

// The exclusive or of all words. `streams` places are read at once, each going forward by one line of 64 bytes, which
// the hardware prefetches: how many keep memory busiest differs from machine to machine, and hints of our own only cost
// (measured on Zen 3). `bytes` is a multiple of streams * 64.
template <int streams>
static uint64_t read_streams(const char* memory, int64_t bytes) {
    const int64_t each = bytes / streams;
    Wide low[streams] = {}, high[streams] = {};
    for (int64_t i = 0; i < each; i += 64) {
#pragma GCC unroll 8
        for (int s = 0; s < streams; ++s) {
            const char* p = memory + s * each + i;
            low[s] ^= reinterpret_cast<const Wide*>(p)[0];
            high[s] ^= reinterpret_cast<const Wide*>(p)[1];
        }
    }
    uint64_t total = 0;
    for (int s = 0; s < streams; ++s)
        for (int word = 0; word < 4; ++word) total ^= low[s][word] ^ high[s][word];
    return total;
}

}  // namespace ga
