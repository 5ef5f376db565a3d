// Peak of NEON: independent sums of the FMA instruction, and of the widening steps that stand for a product of bytes.
#include "arm/simd_neon.h"
#include "peak_burn.h"
#include "peak_kernels.h"

namespace ga {
namespace {

constexpr int kSums = 24;  // eight of 32 registers are left for operands

// bfloat16 products are this too, after a shift of the weights that many rows share.
void burn_float32(int64_t rounds) {
    const float32x4_t factor = vdupq_n_f32(0.5f);
    burn<float32x4_t, kSums>(
        rounds, [](int i) { return vdupq_n_f32(static_cast<float>(i)); },
        [&](float32x4_t sum) { return vfmaq_f32(sum, factor, factor); });
}

// Two registers of eight products each, added into 32 bits.
void burn_int8(int64_t rounds) {
    const int8x8_t weights = vdup_n_s8(3);
    burn<int32x4_t, kSums>(
        rounds, [](int i) { return vdupq_n_s32(i); },
        [&](int32x4_t sum) {
            int8x8_t x = weights;
            asm volatile("" : "+w"(x));  // a new value in each step
            return vpadalq_s16(sum, vmlal_s8(vmull_s8(weights, x), weights, x));
        });
}

void burn_int4(int64_t rounds) {
    const int8x8_t weights = vdup_n_s8(3);
    burn<int16x8_t, kSums>(
        rounds, [](int i) { return vdupq_n_s16(static_cast<int16_t>(i)); },
        [&](int16x8_t sum) { return vmlal_s8(sum, weights, weights); });
}

}  // namespace

const PeakKernels peak_neon = {{kSums * 8, kSums * 8, kSums * 32, kSums * 16},
                               {burn_float32, burn_float32, burn_int8, burn_int4}};

}  // namespace ga
