// Products with a checkpoint's own integers. Only the integer sums depend on the level: what rounds is compiled once.
#include "integers.h"

#include "linear_kernels.h"
#include "magnitude.h"
#include "round_even.h"

namespace ga {
namespace {

constexpr int64_t kLanes = kPanelRows;

// As round_even, with the integer taken from the bits of the sum.
inline int8_t rounded(float x) {
    const float shifted = x + kNoFraction;
    return static_cast<int8_t>(float_to_bits(shifted) - 0x4B400000u);
}

float quantise_dynamic(const float* x, int64_t cols, int8_t* quants) {
    const float largest = largest_magnitude(x, cols);
    const float scale = largest > kTiny || largest != largest ? largest / 127.0f : 0.0f;
    if (!(largest > kTiny && largest <= kLargest)) {  // NaN and infinity go on through the scale
        for (int64_t k = 0; k < cols; ++k) quants[k] = 0;
        return scale;
    }
    for (int64_t k = 0; k < cols; ++k) quants[k] = rounded(x[k] / scale);
    return scale;
}

float quantise_static(const float* x, int64_t cols, const ga_integers& how, int8_t* quants) {
    const float factor = static_cast<float>(how.input_factor), offset = static_cast<float>(how.input_offset);
    for (int64_t k = 0; k < cols; ++k) {
        const float value = x[k] * factor + offset;
        const float low = value > -128.0f ? value : -128.0f;
        quants[k] = rounded(low < 127.0f ? low : 127.0f);
    }
    const float largest = largest_magnitude(x, cols);
    return largest != largest ? largest : 1.0f;
}

// Rows of y from `totals` [rows][panels][16], the sums times their scales.
void store(const ga_matrix& w, const Activations& a, const Block& b, const SumBlock& s, const float* totals) {
    for (int64_t r = s.row_begin; r < s.row_end; ++r) {
        const float scale = a.scales[r];
        for (int64_t p = 0; p < s.panels; ++p, totals += kLanes) {
            const int64_t at = (s.panel + p) * kLanes;
            const int width = panel_width(w, s.panel + p);
            float* y = b.y + r * b.y_stride + at;
            for (int i = 0; i < width; ++i) y[i] = w.bias ? totals[i] * scale + w.bias[at + i] : totals[i] * scale;
        }
    }
}

// totals += (sums + correction) * scale, or = for the first group.
void add_group(const ga_matrix& w, const SumBlock& s, float* totals) {
    const ga_integers& how = *w.integers;
    const int64_t stride = round_up(w.rows, kLanes);
    const int32_t* sums = s.sums;
    for (int64_t r = s.row_begin; r < s.row_end; ++r)
        for (int64_t p = 0; p < s.panels; ++p, sums += kLanes, totals += kLanes) {
            const int64_t at = (s.panel + p) * kLanes;
            const float* scale = how.scale + s.group * stride + at;
            float part[kLanes];
            if (how.correction)
                for (int64_t i = 0; i < kLanes; ++i)
                    part[i] = static_cast<float>(sums[i] + how.correction[at + i]) * scale[i];
            else
                for (int64_t i = 0; i < kLanes; ++i) part[i] = static_cast<float>(sums[i]) * scale[i];
            for (int64_t i = 0; i < kLanes; ++i) totals[i] = s.group ? totals[i] + part[i] : part[i];
        }
}

}  // namespace

float quantise_row(const float* x, int64_t cols, int64_t padded, const ga_integers& how, int8_t* quants,
                   int32_t* sums) {
    const float scale = how.is_static ? quantise_static(x, cols, how, quants) : quantise_dynamic(x, cols, quants);
    for (int64_t k = cols; k < padded; ++k) quants[k] = 0;
    const int64_t group = cols / how.groups;
    for (int64_t g = 0; g < how.groups; ++g) {
        int32_t sum = 0;
        for (int64_t k = 0; k < group; ++k) sum += quants[g * group + k];
        sums[g] = sum;
    }
    return scale;
}

void product_integers(const ga_matrix& w, const Activations& a, const Block& b) {
    const IntegerSums integer_sums = linear_kernels().integer_sums[w.kind == kInt4];
    const int64_t group = a.groups == 1 ? a.padded : a.cols / a.groups;
    alignas(64) int32_t sums[kSumRows * 2 * kLanes];
    alignas(64) float totals[kSumRows * 2 * kLanes];
    for (int64_t panel = b.panel_begin; panel < b.panel_end; panel += 2)
        for (int64_t row = b.row_begin; row < b.row_end; row += kSumRows) {
            SumBlock s;
            s.row_begin = row;
            s.row_end = b.row_end - row < kSumRows ? b.row_end : row + kSumRows;
            s.panel = panel;
            s.panels = b.panel_end - panel >= 2 ? 2 : 1;
            s.sums = sums;
            for (s.group = 0; s.group < a.groups; ++s.group) {
                s.col_begin = s.group * group;
                s.col_end = s.col_begin + group;
                integer_sums(w, a, s);
                add_group(w, s, totals);
            }
            store(w, a, b, s, totals);
        }
}

}  // namespace ga
