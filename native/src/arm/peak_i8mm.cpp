// Peak of the matrix instructions on bytes and bfloat16; float32 is NEON's.
#include "arm/simd_neon.h"
#include "peak_burn.h"
#include "peak_kernels.h"

namespace ga {
namespace {

constexpr int kSums = 24;  // eight of 32 registers are left for operands

void burn_bytes(int64_t rounds) {
    const uint8x16_t weights = vdupq_n_u8(3);
    const int8x16_t x = vdupq_n_s8(3);
    burn<int32x4_t, kSums>(
        rounds, [](int i) { return vdupq_n_s32(i); },
        [&](int32x4_t sum) { return vusmmlaq_s32(sum, weights, x); });
}

void burn_bfloat16(int64_t rounds) {
    const bfloat16x8_t half = vreinterpretq_bf16_u16(vdupq_n_u16(0x3F01));
    burn<float32x4_t, kSums>(
        rounds, [](int i) { return vdupq_n_f32(static_cast<float>(i)); },
        [&](float32x4_t sum) { return vbfmmlaq_f32(sum, half, half); });
}

}  // namespace

const PeakKernels peak_i8mm = {{0, kSums * 32, kSums * 64, kSums * 64},
                               {nullptr, burn_bfloat16, burn_bytes, burn_bytes}};

}  // namespace ga
