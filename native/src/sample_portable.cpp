// The scans of sampling in plain C++, and the choice of the table for the level in use.
#include <math.h>

#include "level.h"
#include "philox.h"
#include "sample_kernels.h"
#include "simd_portable.h"

namespace ga {
namespace {

float maximum(const float* x, int64_t n) {
    float lanes[16];
    for (float& lane : lanes) lane = -INFINITY;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    float best = -INFINITY;
    for (const float lane : lanes) best = lane > best ? lane : best;
    for (; i < n; ++i) best = x[i] > best ? x[i] : best;
    return best;
}

uint64_t above(const float* x, float limit) {
    uint64_t bits = 0;
    for (int i = 0; i < kScan; ++i) bits |= static_cast<uint64_t>(x[i] > limit) << i;
    return bits;
}

double sum_exp(const float* x, int64_t n, float highest, double temperature) {
    const double top = static_cast<double>(highest) / temperature;
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += exp(static_cast<double>(x[i]) / temperature - top);
    return sum;
}

void words(uint64_t seed, int32_t position, uint32_t quad, uint32_t* out) {
    for (uint32_t q = 0; q < kScan / 4; ++q) {
        const Words four = token_words(seed, position, quad + q);
        for (int lane = 0; lane < 4; ++lane) out[4 * q + lane] = four.w[lane];
    }
}

uint64_t contenders(const float* x, const uint32_t* noise, float highest, float inverse, float lead) {
    uint64_t bits = 0;
    for (int i = 0; i < kScan; ++i) {
        const float rest = static_cast<float>(~noise[i]) * 0x1p-32f * 0.999f;  // below 1 - u
        const float limit = Portable::exp1((x[i] - highest) * inverse + lead);
        bits |= static_cast<uint64_t>(!(rest > limit)) << i;  // NaN stays in
    }
    return bits;
}

}  // namespace

const SampleKernels sample_portable = {"generic", maximum, above, sum_exp, words, contenders};

const SampleKernels& sample_kernels() {
#if defined(GA_X86)
    if (level() >= Level::avx512) return sample_avx512;
    if (level() == Level::avx2) return sample_avx2;
#elif defined(GA_ARM)
    if (level() >= Level::neon) return sample_neon;
#endif
    return sample_portable;
}

}  // namespace ga
