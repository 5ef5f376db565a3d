// Peak of the dot product instruction on bytes; floats are NEON's.
#include "arm/simd_neon.h"
#include "peak_burn.h"
#include "peak_kernels.h"

namespace ga {
namespace {

constexpr int kSums = 24;  // eight of 32 registers are left for operands

void burn_bytes(int64_t rounds) {
    const int8x16_t weights = vdupq_n_s8(3);
    burn<int32x4_t, kSums>(
        rounds, [](int i) { return vdupq_n_s32(i); },
        [&](int32x4_t sum) { return vdotq_laneq_s32(sum, weights, weights, 0); });
}

}  // namespace

const PeakKernels peak_dotprod = {{0, 0, kSums * 32, kSums * 32}, {nullptr, nullptr, burn_bytes, burn_bytes}};

}  // namespace ga
