// Products of bytes for plain NEON (Cortex-A53, A72 and the like): widening multiplications into 16 bits.
//
// A register holds four rows of w and four columns; its halves are multiplied on their own (SMULL, SMULL2), pairs of
// products added into 32 bits (SADALP), and the two partial sums of each row added at the end of a group.
// Limit: 8 multiplications per SMULL, so at best a quarter of what SDOT does.
#pragma once
#include "arm/linear_tiles.h"

namespace ga {
namespace {

inline int8x16_t four_times(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

// Two products of at most 128 * 127 fit 16 bits. Static activations may be -128, and then only one does: `wide`.
template <bool wide>
struct NeonInt8 : Int8Groups {
    static constexpr int32_t kOffset = 0;
    template <int R>
    [[gnu::always_inline]] static inline void dot(const char* units, int quarter, const int8_t* x, int64_t stride,
                                                  int32x4_t (&dots)[R][2]) {
        for (int q = 0; q < 2; ++q) {
            int32x4_t low[R], high[R];
            for (int r = 0; r < R; ++r) low[r] = high[r] = vdupq_n_s32(0);
            for (int j = 0; j < 8; j += 2) {
                const char* from = units + j * kUnit + (quarter + q) * 16;
                const int8x16_t first = signed16(from), second = signed16(from + kUnit);
                for (int r = 0; r < R; ++r) {
                    const int8x16_t x0 = four_times(x + r * stride + 4 * j), x1 = four_times(x + r * stride + 4 * j + 4);
                    const int16x8_t low0 = vmull_s8(vget_low_s8(first), vget_low_s8(x0));
                    const int16x8_t high0 = vmull_high_s8(first, x0);
                    if constexpr (wide) {
                        low[r] = vpadalq_s16(vpadalq_s16(low[r], low0), vmull_s8(vget_low_s8(second), vget_low_s8(x1)));
                        high[r] = vpadalq_s16(vpadalq_s16(high[r], high0), vmull_high_s8(second, x1));
                    } else {
                        low[r] = vpadalq_s16(low[r], vmlal_s8(low0, vget_low_s8(second), vget_low_s8(x1)));
                        high[r] = vpadalq_s16(high[r], vmlal_high_s8(high0, second, x1));
                    }
                }
            }
            for (int r = 0; r < R; ++r) dots[r][q] = vaddq_s32(dots[r][q], vpaddq_s32(low[r], high[r]));
        }
    }
};

// Eight products of at most 15 * 128 fit 16 bits: one widening at the end of a group is enough.
struct NeonInt4 : Int4Groups {
    static constexpr int32_t kOffset = 0;
    template <int R>
    [[gnu::always_inline]] static inline void dot(const char* units, int quarter, const int8_t* x, int64_t stride,
                                                  int32x4_t (&dots)[R][2]) {
        for (int q = 0; q < 2; ++q) {
            int16x8_t low[R], high[R];
            for (int r = 0; r < R; ++r) low[r] = high[r] = vdupq_n_s16(0);
            for (int j = 0; j < 4; ++j) {
                const uint8x16_t both = vreinterpretq_u8_s8(bytes16(units + j * kUnit + (quarter + q) * 16));
                const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
                for (int r = 0; r < R; ++r) {
                    const int8x16_t x0 = four_times(x + r * stride + 4 * j);
                    const int8x16_t x1 = four_times(x + r * stride + 4 * j + 16);
                    low[r] = vmlal_s8(low[r], vget_low_s8(first), vget_low_s8(x0));
                    high[r] = vmlal_high_s8(high[r], first, x0);
                    low[r] = vmlal_s8(low[r], vget_low_s8(second), vget_low_s8(x1));
                    high[r] = vmlal_high_s8(high[r], second, x1);
                }
            }
            for (int r = 0; r < R; ++r)
                dots[r][q] = vaddq_s32(dots[r][q], vpaddq_s32(vpaddlq_s16(low[r]), vpaddlq_s16(high[r])));
        }
    }
};

}  // namespace
}  // namespace ga
