// The innermost instruction of each kind of product, over and over: what a level can do when nothing else is in the way.
#pragma once
#include <stdint.h>

namespace ga {

struct PeakKernels {
    int64_t operations[4];              // of one round, by kind of matrix: multiplications and additions
    void (*burn[4])(int64_t rounds);    // null: this kind's products use the level below
};

extern const PeakKernels peak_portable;
extern const PeakKernels peak_avx2;    // x86 only
extern const PeakKernels peak_avx512;  // x86 only
extern const PeakKernels peak_amx;     // x86 only

}  // namespace ga
