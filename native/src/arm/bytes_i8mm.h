// Products of bytes with the matrix instructions of i8mm (Neoverse V1 and N2, Apple M2): blocks of 2 rows x 8 columns.
//
// Zipped, the registers of two units [4 rows of w][4 columns] are two blocks [2 rows][8 columns]; a block of x is two
// rows side by side. One instruction gives 2 x 2 sums, which two more put back into rows of w. One row of x alone takes
// dot products, as there is nothing to pair it with. int8 needs no sign: USMMLA and USDOT take w + 128 as it is stored.
// Limit: 64 operations per instruction, one zip for two of them with four rows of x; with one row, reading the weights.
#pragma once
#include "arm/linear_tiles.h"

namespace ga {
namespace {

inline uint8x16_t unsigned16(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }

// Sixteen bytes of x, eight of each of two rows.
inline int8x16_t two_rows(const int8_t* x, int64_t stride) { return vcombine_s8(vld1_s8(x), vld1_s8(x + stride)); }

// Two blocks of w, from one quarter of two units.
struct Blocks {
    uint8x16_t first, second;
};
inline Blocks zipped(uint8x16_t unit, uint8x16_t next) {
    const uint32x4_t left = vreinterpretq_u32_u8(unit), right = vreinterpretq_u32_u8(next);
    return {vreinterpretq_u8_u32(vzip1q_u32(left, right)), vreinterpretq_u8_u32(vzip2q_u32(left, right))};
}

// Sums of 2 rows of w x 2 rows of x: [row of w][row of x], for the four rows of w of two quarters and up to R rows of x.
template <int R>
struct Squares {
    static constexpr int kPairs = (R + 1) / 2;
    int32x4_t sums[kPairs][2][2];

    inline Squares() {
        for (auto& pair : sums)
            for (auto& quarter : pair) quarter[0] = quarter[1] = vdupq_n_s32(0);
    }
    // An odd last row is its own partner; what comes of that is not used.
    static inline int64_t partner(int pair, int64_t stride) { return 2 * pair + 1 < R ? stride : 0; }

    [[gnu::always_inline]] inline void add(int q, const Blocks& w, const int8x16_t (&x)[kPairs]) {
        for (int pair = 0; pair < kPairs; ++pair) {
            sums[pair][q][0] = vusmmlaq_s32(sums[pair][q][0], w.first, x[pair]);
            sums[pair][q][1] = vusmmlaq_s32(sums[pair][q][1], w.second, x[pair]);
        }
    }
    inline void add_to(int32x4_t (&dots)[R][2]) const {
        for (int r = 0; r < R; ++r)
            for (int q = 0; q < 2; ++q) {
                const int32x4_t(&of)[2] = sums[r / 2][q];
                dots[r][q] = vaddq_s32(dots[r][q], r % 2 ? vuzp2q_s32(of[0], of[1]) : vuzp1q_s32(of[0], of[1]));
            }
    }
};

struct MatrixInt8 : Int8Groups {
    static constexpr int32_t kOffset = 128;
    template <int R>
    [[gnu::always_inline]] static inline void dot(const char* units, int quarter, const int8_t* x, int64_t stride,
                                                  int32x4_t (&dots)[R][2]) {
        if constexpr (R == 1) {
            for (int half = 0; half < 2; ++half, units += 4 * kUnit) {
                const int8x16_t values = bytes16(x + half * 16);
                each_lane([&](auto lane) __attribute__((always_inline)) {
                    for (int q = 0; q < 2; ++q)
                        dots[0][q] = vusdotq_laneq_s32(
                            dots[0][q], unsigned16(units + lane() * kUnit + (quarter + q) * 16), values, lane());
                });
            }
        } else {
            Squares<R> squares;
            for (int j = 0; j < 8; j += 2) {
                int8x16_t values[Squares<R>::kPairs];
                for (int pair = 0; pair < Squares<R>::kPairs; ++pair)
                    values[pair] = two_rows(x + 2 * pair * stride + 4 * j, Squares<R>::partner(pair, stride));
                for (int q = 0; q < 2; ++q) {
                    const char* from = units + j * kUnit + (quarter + q) * 16;
                    squares.add(q, zipped(unsigned16(from), unsigned16(from + kUnit)), values);
                }
            }
            squares.add_to(dots);
        }
    }
};

struct MatrixInt4 : Int4Groups {
    static constexpr int32_t kOffset = 0;
    template <int R>
    [[gnu::always_inline]] static inline void dot(const char* units, int quarter, const int8_t* x, int64_t stride,
                                                  int32x4_t (&dots)[R][2]) {
        const uint8x16_t nibble = vdupq_n_u8(15);
        if constexpr (R == 1) {
            const int8x16_t first = bytes16(x), second = bytes16(x + 16);
            each_lane([&](auto lane) __attribute__((always_inline)) {
                for (int q = 0; q < 2; ++q) {
                    const uint8x16_t both = unsigned16(units + lane() * kUnit + (quarter + q) * 16);
                    dots[0][q] = vusdotq_laneq_s32(dots[0][q], vandq_u8(both, nibble), first, lane());
                    dots[0][q] = vusdotq_laneq_s32(dots[0][q], vshrq_n_u8(both, 4), second, lane());
                }
            });
        } else {
            Squares<R> squares;
            for (int j = 0; j < 4; j += 2) {
                int8x16_t first[Squares<R>::kPairs], second[Squares<R>::kPairs];
                for (int pair = 0; pair < Squares<R>::kPairs; ++pair) {
                    const int8_t* from = x + 2 * pair * stride + 4 * j;
                    first[pair] = two_rows(from, Squares<R>::partner(pair, stride));
                    second[pair] = two_rows(from + 16, Squares<R>::partner(pair, stride));
                }
                for (int q = 0; q < 2; ++q) {
                    const char* from = units + j * kUnit + (quarter + q) * 16;
                    const Blocks both = zipped(unsigned16(from), unsigned16(from + kUnit));
                    squares.add(q, {vandq_u8(both.first, nibble), vandq_u8(both.second, nibble)}, first);
                    squares.add(q, {vshrq_n_u8(both.first, 4), vshrq_n_u8(both.second, 4)}, second);
                }
            }
            squares.add_to(dots);
        }
    }
};

}  // namespace
}  // namespace ga
