// Products of bytes with SDOT (Kunpeng 920, Neoverse N1, Apple M1): a register of [4 rows][4 columns] of w times four
// bytes of x, which are a lane of a register that holds sixteen.
//
// Limit: 32 operations per SDOT; with one row of x, reading the weights.
#pragma once
#include "arm/linear_tiles.h"

namespace ga {
namespace {

struct DotprodInt8 : Int8Groups {
    static constexpr int32_t kOffset = 0;
    template <int R>
    [[gnu::always_inline]] static inline void dot(const char* units, int quarter, const int8_t* x, int64_t stride,
                                                  int32x4_t (&dots)[R][2]) {
        for (int half = 0; half < 2; ++half, units += 4 * kUnit) {
            int8x16_t values[R];
            for (int r = 0; r < R; ++r) values[r] = bytes16(x + r * stride + half * 16);
            const auto step = [&](auto lane) __attribute__((always_inline)) {
                for (int q = 0; q < 2; ++q) {
                    const int8x16_t weights = signed16(units + lane() * kUnit + (quarter + q) * 16);
                    for (int r = 0; r < R; ++r) dots[r][q] = vdotq_laneq_s32(dots[r][q], weights, values[r], lane());
                }
            };
            each_lane(step);
        }
    }
};

struct DotprodInt4 : Int4Groups {
    static constexpr int32_t kOffset = 0;
    template <int R>
    [[gnu::always_inline]] static inline void dot(const char* units, int quarter, const int8_t* x, int64_t stride,
                                                  int32x4_t (&dots)[R][2]) {
        int8x16_t first[R], second[R];
        for (int r = 0; r < R; ++r) {
            first[r] = bytes16(x + r * stride);
            second[r] = bytes16(x + r * stride + 16);
        }
        const auto step = [&](auto lane) __attribute__((always_inline)) {
            for (int q = 0; q < 2; ++q) {
                const uint8x16_t both = vreinterpretq_u8_s8(bytes16(units + lane() * kUnit + (quarter + q) * 16));
                const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
                for (int r = 0; r < R; ++r) {
                    dots[r][q] = vdotq_laneq_s32(dots[r][q], low, first[r], lane());
                    dots[r][q] = vdotq_laneq_s32(dots[r][q], high, second[r], lane());
                }
            }
        };
        each_lane(step);
    }
};

}  // namespace
}  // namespace ga
