// The scans over a whole vocabulary that sampling needs, for one instruction-set level.
#pragma once
#include <stdint.h>

namespace ga {

constexpr int kScan = 64;  // tokens per step of a scan: 16 quads of noise

struct SampleKernels {
    const char* level;
    // The largest of n values; minus infinity if there is none above it.
    float (*maximum)(const float* x, int64_t n);
    // Bit i is set where x[i] > limit, for kScan values.
    uint64_t (*above)(const float* x, float limit);
    // Sum of exp((x - highest) / temperature) in float64.
    double (*sum_exp)(const float* x, int64_t n, float highest, double temperature);
    // The random words of tokens 4 * quad .. 4 * quad + kScan - 1.
    void (*words)(uint64_t seed, int32_t position, uint32_t quad, uint32_t* out);
    // Bit i is set unless token i surely loses: its Gumbel noise is at most -ln(1 - u), so it loses if 1 - u is larger
    // than exp((x - highest) * inverse + lead), with lead = highest / temperature - the best score so far.
    uint64_t (*contenders)(const float* x, const uint32_t* words, float highest, float inverse, float lead);
};

extern const SampleKernels sample_portable;
extern const SampleKernels sample_avx2;    // x86 only
extern const SampleKernels sample_avx512;  // x86 only
extern const SampleKernels sample_neon;    // arm64 only

// The table of the level in use.
const SampleKernels& sample_kernels();

}  // namespace ga
