// Integer sums with a checkpoint's own integers for AVX2.
#include "x86/linear_avx2.h"

namespace ga {
namespace {

// R rows of x times one panel, over the columns of a group. `x` and `out` belong to the first row, `excess` are the sums
// of x.
struct Sums {
    const char* panel;
    const int8_t* x;
    const int32_t* excess;
    int32_t* out;
    int64_t x_stride, excess_stride, out_stride, col_begin, col_end;

    template <int lines>
    [[gnu::always_inline]] static inline void prefetch(const char* units) {
        for (int line = 0; line < lines; ++line) Avx2::prefetch(units + kAhead + line * kUnit);
    }
    // Weights are stored as w + `added`.
    [[gnu::always_inline]] inline void put(int r, int half, I sum, int32_t added) const {
        const I stored = _mm256_set1_epi32(added * excess[r * excess_stride]);
        _mm256_storeu_si256(reinterpret_cast<I*>(out + r * out_stride + half * 8), _mm256_sub_epi32(sum, stored));
    }
};

// Dynamic activations never are -128, so that the signs of Int8Kind are exact.
struct SignedSums {
    static constexpr int kRows = 4;
    template <int R>
    static inline void tile(const Sums& s) {
        I dots[R][2];
        for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
        for (int64_t k = s.col_begin; k < s.col_end; k += kGroup) {
            Sums::prefetch<Int8Kind::kLines>(Int8Kind::units(s.panel, k / kGroup));
            Int8Kind::dot(s.panel, k / kGroup, s.x + k, s.x_stride, dots);
        }
        for (int r = 0; r < R; ++r)
            for (int h = 0; h < 2; ++h) s.put(r, h, dots[r][h], 0);
    }
};

// Static ones may be. Bytes widened to 16 bits multiply exactly whatever they are; a register of products holds four rows
// of w, each in two halves.
struct WidenedSums {
    static constexpr int kRows = 2;
    template <int R>
    static inline void tile(const Sums& s) {
        I dots[R][4];
        for (int r = 0; r < R; ++r)
            for (int q = 0; q < 4; ++q) dots[r][q] = _mm256_setzero_si256();
        for (int64_t k = s.col_begin; k < s.col_end; k += kGroup) {
            const char* units = int8_units(s.panel, k / kGroup);
            Sums::prefetch<8>(units);
            for (int j = 0; j < 8; ++j) {
                I value[R];
                for (int r = 0; r < R; ++r) {
                    int32_t four;
                    memcpy(&four, s.x + r * s.x_stride + k + 4 * j, 4);
                    value[r] = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
                }
                for (int q = 0; q < 4; ++q) {
                    const auto* bytes = reinterpret_cast<const __m128i*>(units + j * kUnit + q * 16);
                    const I weights = _mm256_cvtepu8_epi16(_mm_load_si128(bytes));
                    for (int r = 0; r < R; ++r)
                        dots[r][q] = _mm256_add_epi32(dots[r][q], _mm256_madd_epi16(weights, value[r]));
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int h = 0; h < 2; ++h) {
                const I pairs = _mm256_hadd_epi32(dots[r][2 * h], dots[r][2 * h + 1]);
                s.put(r, h, _mm256_permute4x64_epi64(pairs, 0xD8), 128);
            }
    }
};

struct NibbleSums {
    static constexpr int kRows = 4;
    template <int R>
    static inline void tile(const Sums& s) {
        const I ones = _mm256_set1_epi16(1);
        I sums[R][2];
        for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
        for (int64_t k = s.col_begin; k < s.col_end; k += kGroup) {
            Sums::prefetch<Int4Kind::kLines>(Int4Kind::units(s.panel, k / kGroup));
            I dots[R][2];
            for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
            Int4Kind::dot(s.panel, k / kGroup, s.x + k, s.x_stride, dots);  // at most 16 * 15 * 128: it fits 16 bits
            for (int r = 0; r < R; ++r)
                for (int h = 0; h < 2; ++h)
                    sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(dots[r][h], ones));
        }
        for (int r = 0; r < R; ++r)
            for (int h = 0; h < 2; ++h) s.put(r, h, sums[r][h], 8);
    }
};

template <class K, int R = K::kRows>
inline void sums_of_rows(int rows, const Sums& s) {
    if constexpr (R == 1) {
        K::template tile<1>(s);
    } else {
        if (rows == R)
            K::template tile<R>(s);
        else
            sums_of_rows<K, R - 1>(rows, s);
    }
}

template <class K>
void integer_sums(const ga_matrix& w, const Activations& a, const SumBlock& b) {
    for (int64_t p = 0; p < b.panels; ++p)
        for (int64_t row = b.row_begin; row < b.row_end; row += K::kRows) {
            const int64_t left = b.row_end - row, out_stride = b.panels * kPanelRows;
            const Sums s = {panel_at(w, b.panel + p), a.quants + row * a.padded, a.sums + row * a.groups + b.group,
                            b.sums + (row - b.row_begin) * out_stride + p * kPanelRows,
                            a.padded, a.groups, out_stride, b.col_begin, b.col_end};
            sums_of_rows<K>(left < K::kRows ? static_cast<int>(left) : K::kRows, s);
        }
}

}  // namespace

void sums_int8_avx2(const ga_matrix& w, const Activations& a, const SumBlock& b) {
    if (w.integers->is_static)
        integer_sums<WidenedSums>(w, a, b);
    else
        integer_sums<SignedSums>(w, a, b);
}

void sums_int4_avx2(const ga_matrix& w, const Activations& a, const SumBlock& b) { integer_sums<NibbleSums>(w, a, b); }

}  // namespace ga
