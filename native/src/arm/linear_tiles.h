// Products with packed matrices for arm64: the loops that its levels share. A level gives the innermost steps.
//
// A panel's unit of 64 bytes is four registers of [4 rows][4 bytes] (bfloat16: [4 rows][2]), which is what SDOT and BFDOT
// take as it is; zipped with the next unit, two registers become two of [2 rows][8 bytes] for SMMLA and BFMMLA. So one
// layout serves all levels, and a packed file all processors.
#pragma once
#include <string.h>

#include <type_traits>

#include "arm/simd_neon.h"
#include "linear_kernels.h"

namespace ga {
namespace {

constexpr int kQuarters = 4;       // registers of a unit, each of four rows of w
constexpr int64_t kAhead = 2560;   // bytes that a stream of weights is asked for ahead of its use

// y = sums + bias for a tile of R rows and P panels.
template <int R, int P>
inline void store(const ga_matrix& w, const Block& b, int64_t row, int64_t panel, const Neon::F (&sums)[P][R]) {
    for (int p = 0; p < P; ++p) {
        const int width = panel_width(w, panel + p);
        const int64_t at = (panel + p) * kPanelRows;
        const Neon::F bias = w.bias ? Neon::load_n(w.bias + at, width) : Neon::zero();
        for (int r = 0; r < R; ++r)
            Neon::store_n(b.y + (row + r) * b.y_stride + at, Neon::add(sums[p][r], bias), width);
    }
}

template <int R, int P>
inline void start(const ga_matrix& w, int64_t panel, const char* (&panels)[P], Neon::F (&sums)[P][R]) {
    for (int p = 0; p < P; ++p) {
        panels[p] = panel_at(w, panel + p);
        for (int r = 0; r < R; ++r) sums[p][r] = Neon::zero();
    }
}

// step(0) to step(3), as constants: an instruction's lane is a part of it.
template <class Step>
[[gnu::always_inline]] inline void each_lane(const Step& step) {
    step(std::integral_constant<int, 0>());
    step(std::integral_constant<int, 1>());
    step(std::integral_constant<int, 2>());
    step(std::integral_constant<int, 3>());
}

inline int8x16_t bytes16(const void* p) { return vld1q_s8(static_cast<const int8_t*>(p)); }
inline int8x16_t signed16(const void* p) { return veorq_s8(bytes16(p), vdupq_n_s8(-128)); }  // stored as w + 128
inline float32x4_t half4(const void* p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const uint8_t*>(p))));
}

// Where the groups of 32 columns lie, and how their integers become floats: the same operations at every level, so that
// levels whose integers agree agree in every bit.
struct Int8Groups {
    static constexpr int64_t kKind = kInt8;
    static constexpr int kLines = 9;
    static inline const char* units(const char* panel, int64_t g) { return int8_units(panel, g); }
    static inline float32x4_t add(const char* panel, int64_t g, int quarter, float32x4_t dot, float, float32x4_t sum) {
        return vfmaq_f32(sum, dot, half4(int8_scales(panel, g) + quarter * 8));
    }
};

struct Int4Groups {
    static constexpr int64_t kKind = kInt4;
    static constexpr int kLines = 5;
    static inline const char* units(const char* panel, int64_t g) { return panel + g * kInt4GroupBytes; }
    static inline float32x4_t add(const char* panel, int64_t g, int quarter, float32x4_t dot, float offset,
                                  float32x4_t sum) {
        const char* line = units(panel, g) + 4 * kUnit + quarter * 8;
        return vfmaq_n_f32(vfmaq_f32(sum, dot, half4(line)), half4(line + 32), offset);
    }
};

// Products of bytes, group by group. A kind's `dot<R>(units, quarter, x, stride, dots)` adds the integers of one group,
// of eight rows of w from 4 * quarter on, to `dots`; weights are stored as w + kOffset there.
template <class Kind>
struct Grouped {
    static constexpr int kRows = 4;  // 16 registers of sums, 8 of integers, 2 of weights and 4 of x: 30 of 32
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        Neon::F sums[P][R];
        const char* panels[P];
        start<R, P>(w, panel, panels, sums);
        const int8_t* x = a.quants + row * a.padded;
        const int64_t at = row * a.groups;
        for (int64_t g = 0; g < a.groups; ++g, x += kGroup)
            for (int p = 0; p < P; ++p) {
                const char* units = Kind::units(panels[p], g);
                for (int line = 0; line < Kind::kLines; ++line) Neon::prefetch(units + kAhead + line * kUnit);
                for (int quarter = 0; quarter < kQuarters; quarter += 2) {
                    int32x4_t dots[R][2];
                    for (int r = 0; r < R; ++r) {
                        const int32_t sum = Kind::kOffset ? a.sums[at + r * a.groups + g] : 0;
                        dots[r][0] = dots[r][1] = vdupq_n_s32(-Kind::kOffset * sum);
                    }
                    Kind::template dot<R>(units, quarter, x, a.padded, dots);
                    for (int r = 0; r < R; ++r)
                        for (int q = 0; q < 2; ++q) {
                            const int64_t of = at + r * a.groups + g;
                            const float32x4_t dot = vmulq_n_f32(vcvtq_f32_s32(dots[r][q]), a.scales[of]);
                            float32x4_t& sum = sums[p][r].v[quarter + q];
                            sum = Kind::add(panels[p], g, quarter + q, dot, a.offsets[of], sum);
                        }
                }
            }
        store<R, P>(w, b, row, panel, sums);
    }
};

// R rows, from the kind's most down to one.
template <class K, int P, int R>
inline void rows_of_tile(int rows, const ga_matrix& w, const Activations& a, const Block& b, int64_t row,
                         int64_t panel) {
    if constexpr (R == 1) {
        K::template tile<1, P>(w, a, b, row, panel);
    } else {
        if (rows == R)
            K::template tile<R, P>(w, a, b, row, panel);
        else
            rows_of_tile<K, P, R - 1>(rows, w, a, b, row, panel);
    }
}

// One row takes several panels at once, to have more sums in flight and more streams from memory.
template <class K>
void product(const ga_matrix& w, const Activations& a, const Block& b) {
    int64_t panel = b.panel_begin;
    if (b.row_end - b.row_begin == 1)
        for (; panel + 2 <= b.panel_end; panel += 2) K::template tile<1, 2>(w, a, b, b.row_begin, panel);
    for (; panel < b.panel_end; ++panel)
        for (int64_t row = b.row_begin; row < b.row_end; row += K::kRows) {
            const int64_t left = b.row_end - row;
            rows_of_tile<K, 1, K::kRows>(static_cast<int>(left < K::kRows ? left : K::kRows), w, a, b, row, panel);
        }
}

}  // namespace
}  // namespace ga
