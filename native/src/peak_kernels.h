// The innermost instruction of each kind of product, over and over: what a level can do when nothing else is in the way.
#pragma once
#include <stdint.h>

namespace ga {

struct PeakKernels {
    int64_t operations[4];              // of one round, by kind of matrix: multiplications and additions
    void (*burn[4])(int64_t rounds);    // what this kind's products use; null: the level below's
};

constexpr int kReaders = 4;

// Ways to read memory with the level's loads, from 1, 2, 4 and 8 places at once (read_streams.h); the best one counts.
struct ReadKernels {
    uint64_t (*read[kReaders])(const char* memory, int64_t bytes);
};

extern const PeakKernels peak_portable;
extern const PeakKernels peak_avx2;    // x86 only
extern const PeakKernels peak_avx512;  // x86 only
extern const PeakKernels peak_amx;     // x86 only
extern const PeakKernels peak_neon;    // arm64 only
extern const PeakKernels peak_dotprod; // arm64 only
extern const PeakKernels peak_i8mm;    // arm64 only

extern const ReadKernels read_portable;
extern const ReadKernels read_avx2;    // x86 only
extern const ReadKernels read_avx512;  // x86 only, AMX's too

}  // namespace ga
