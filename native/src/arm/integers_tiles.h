// Integer sums with a checkpoint's own integers for arm64, over the same innermost steps as linear_tiles.h.
#pragma once
#include "arm/linear_tiles.h"

namespace ga {
namespace {

// R rows of x from `row` on times panel `p` of the block.
template <class Kind, int R>
inline void sums_tile(const ga_matrix& w, const Activations& a, const SumBlock& s, int64_t row, int64_t p) {
    const char* panel = panel_at(w, s.panel + p);
    // int4 is stored as w + 8, and no kind's `dot` knows of it.
    constexpr int32_t stored = Kind::kKind == kInt4 ? 8 : Kind::kOffset;
    for (int quarter = 0; quarter < kQuarters; quarter += 2) {
        int32x4_t dots[R][2];
        for (int r = 0; r < R; ++r)
            dots[r][0] = dots[r][1] = vdupq_n_s32(-stored * a.sums[(row + r) * a.groups + s.group]);
        for (int64_t k = s.col_begin; k < s.col_end; k += kGroup)
            Kind::template dot<R>(Kind::units(panel, k / kGroup), quarter, a.quants + row * a.padded + k, a.padded, dots);
        for (int r = 0; r < R; ++r) {
            int32_t* out = s.sums + ((row + r - s.row_begin) * s.panels + p) * kPanelRows + 4 * quarter;
            vst1q_s32(out, dots[r][0]);
            vst1q_s32(out + 4, dots[r][1]);
        }
    }
}

template <class Kind, int R>
inline void sums_rows(int rows, const ga_matrix& w, const Activations& a, const SumBlock& s, int64_t row, int64_t p) {
    if constexpr (R == 1) {
        sums_tile<Kind, 1>(w, a, s, row, p);
    } else {
        if (rows == R)
            sums_tile<Kind, R>(w, a, s, row, p);
        else
            sums_rows<Kind, R - 1>(rows, w, a, s, row, p);
    }
}

template <class Kind>
void integer_sums(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    constexpr int kRows = 4;
    for (int64_t p = 0; p < s.panels; ++p)
        for (int64_t row = s.row_begin; row < s.row_end; row += kRows) {
            const int64_t left = s.row_end - row;
            sums_rows<Kind, kRows>(static_cast<int>(left < kRows ? left : kRows), w, a, s, row, p);
        }
}

}  // namespace
}  // namespace ga
