// Products with packed matrices in plain C++, and the choice of the table for the level in use.
#include <math.h>

#include "half.h"
#include "level.h"
#include "linear_kernels.h"
#include "magnitude.h"

namespace ga {
namespace {

constexpr int kLanes = 16;
constexpr int kRows = 4;  // rows of x that share one pass over a panel

struct Sums {
    float v[kRows][kLanes];
};

// y = sums + bias, for the columns that exist.
void store(const ga_matrix& w, const Block& b, int64_t row, int rows, int64_t panel, const Sums& sums) {
    const int width = panel_width(w, panel);
    for (int r = 0; r < rows; ++r) {
        float* y = b.y + (row + r) * b.y_stride + panel * kPanelRows;
        for (int i = 0; i < width; ++i)
            y[i] = w.bias ? sums.v[r][i] + w.bias[panel * kPanelRows + i] : sums.v[r][i];
    }
}

// Calls body(row, rows, panel) for all tiles; panels outside, so that a panel's weights stay in the cache.
template <class Body>
void for_tiles(const Block& b, Body&& body) {
    for (int64_t panel = b.panel_begin; panel < b.panel_end; ++panel)
        for (int64_t row = b.row_begin; row < b.row_end; row += kRows)
            body(row, static_cast<int>(b.row_end - row < kRows ? b.row_end - row : kRows), panel);
}

void product_float32(const ga_matrix& w, const Activations& a, const Block& b) {
    for_tiles(b, [&](int64_t row, int rows, int64_t panel) {
        Sums sums = {};
        const float* weights = reinterpret_cast<const float*>(panel_at(w, panel));
        for (int64_t k = 0; k < a.cols; ++k, weights += kLanes)
            for (int r = 0; r < rows; ++r) {
                const float x = a.plain[(row + r) * a.stride + k];
                for (int i = 0; i < kLanes; ++i) sums.v[r][i] += x * weights[i];
            }
        store(w, b, row, rows, panel, sums);
    });
}

void product_bfloat16(const ga_matrix& w, const Activations& a, const Block& b) {
    for_tiles(b, [&](int64_t row, int rows, int64_t panel) {
        Sums sums = {};
        const uint16_t* weights = reinterpret_cast<const uint16_t*>(panel_at(w, panel));
        for (int64_t k = 0; k < a.padded; k += 2, weights += 2 * kLanes) {
            float even[kLanes], odd[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                even[i] = bf16_to_float(weights[2 * i]);
                odd[i] = bf16_to_float(weights[2 * i + 1]);
            }
            for (int r = 0; r < rows; ++r) {
                const uint16_t* x = a.bfloat16 + (row + r) * a.padded + k;
                const float x0 = bf16_to_float(x[0]), x1 = bf16_to_float(x[1]);
                for (int i = 0; i < kLanes; ++i) sums.v[r][i] += x0 * even[i] + x1 * odd[i];
            }
        }
        store(w, b, row, rows, panel, sums);
    });
}

void read_halves(const void* from, float* to) {
    uint16_t half[kLanes];
    memcpy(half, from, sizeof half);
    for (int i = 0; i < kLanes; ++i) to[i] = half_to_float(half[i]);
}

// Four columns of sixteen rows times four activations, added to integers.
inline void dot4(const uint8_t* unit, const int8_t* x, int32_t* sums) {
    for (int i = 0; i < kLanes; ++i)
        sums[i] += unit[4 * i] * x[0] + unit[4 * i + 1] * x[1] + unit[4 * i + 2] * x[2] + unit[4 * i + 3] * x[3];
}

void product_int8(const ga_matrix& w, const Activations& a, const Block& b) {
    for_tiles(b, [&](int64_t row, int rows, int64_t panel) {
        Sums sums = {};
        for (int64_t g = 0; g < a.groups; ++g) {
            const auto* units = reinterpret_cast<const uint8_t*>(int8_units(panel_at(w, panel), g));
            float d[kLanes];
            read_halves(int8_scales(panel_at(w, panel), g), d);
            for (int r = 0; r < rows; ++r) {
                const int64_t at = (row + r) * a.groups + g;
                int32_t dots[kLanes];
                for (int i = 0; i < kLanes; ++i) dots[i] = -128 * a.sums[at];  // weights are stored as w + 128
                for (int j = 0; j < 8; ++j)
                    dot4(units + j * kUnit, a.quants + (row + r) * a.padded + g * kGroup + 4 * j, dots);
                for (int i = 0; i < kLanes; ++i) sums.v[r][i] += static_cast<float>(dots[i]) * a.scales[at] * d[i];
            }
        }
        store(w, b, row, rows, panel, sums);
    });
}

void product_int4(const ga_matrix& w, const Activations& a, const Block& b) {
    for_tiles(b, [&](int64_t row, int rows, int64_t panel) {
        Sums sums = {};
        const uint8_t* units = reinterpret_cast<const uint8_t*>(panel_at(w, panel));
        for (int64_t g = 0; g < a.groups; ++g, units += kInt4GroupBytes) {
            uint8_t quants[8 * kUnit];
            for (int i = 0; i < 4 * kUnit; ++i) {
                quants[i] = units[i] & 15;
                quants[4 * kUnit + i] = units[i] >> 4;
            }
            float d[kLanes], m[kLanes];
            read_halves(units + 256, d);
            read_halves(units + 288, m);
            for (int r = 0; r < rows; ++r) {
                const int64_t at = (row + r) * a.groups + g;
                int32_t dots[kLanes] = {};
                for (int j = 0; j < 8; ++j)
                    dot4(quants + j * kUnit, a.quants + (row + r) * a.padded + g * kGroup + 4 * j, dots);
                const float scale = a.scales[at], offset = a.offsets[at];
                for (int i = 0; i < kLanes; ++i)
                    sums.v[r][i] = sums.v[r][i] + static_cast<float>(dots[i]) * scale * d[i] + offset * m[i];
            }
        }
        store(w, b, row, rows, panel, sums);
    });
}

void sums_int8(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    int32_t* dots = s.sums;
    for (int64_t row = s.row_begin; row < s.row_end; ++row)
        for (int64_t p = 0; p < s.panels; ++p, dots += kLanes) {
            for (int i = 0; i < kLanes; ++i) dots[i] = 0;
            for (int64_t k = s.col_begin; k < s.col_end; k += kGroup) {
                const auto* units = reinterpret_cast<const uint8_t*>(int8_units(panel_at(w, s.panel + p), k / kGroup));
                int32_t group[kLanes] = {};
                int32_t sum = 0;
                const int8_t* x = a.quants + row * a.padded + k;
                for (int j = 0; j < 8; ++j) dot4(units + j * kUnit, x + 4 * j, group);
                for (int i = 0; i < kGroup; ++i) sum += x[i];
                for (int i = 0; i < kLanes; ++i) dots[i] += group[i] - 128 * sum;  // weights are stored as w + 128
            }
        }
}

void sums_int4(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    int32_t* dots = s.sums;
    for (int64_t row = s.row_begin; row < s.row_end; ++row)
        for (int64_t p = 0; p < s.panels; ++p, dots += kLanes) {
            for (int i = 0; i < kLanes; ++i) dots[i] = -8 * a.sums[row * a.groups + s.group];  // stored as w + 8
            for (int64_t k = s.col_begin; k < s.col_end; k += kGroup) {
                const auto* units = reinterpret_cast<const uint8_t*>(panel_at(w, s.panel + p));
                units += k / kGroup * kInt4GroupBytes;
                const int8_t* x = a.quants + row * a.padded + k;
                uint8_t low[4 * kUnit], high[4 * kUnit];
                for (int i = 0; i < 4 * kUnit; ++i) {
                    low[i] = units[i] & 15;
                    high[i] = units[i] >> 4;
                }
                for (int j = 0; j < 4; ++j) {
                    dot4(low + j * kUnit, x + 4 * j, dots);
                    dot4(high + j * kUnit, x + 16 + 4 * j, dots);
                }
            }
        }
}

void to_bfloat16(const float* x, int64_t cols, int64_t padded, uint16_t* out) {
    for (int64_t k = 0; k < cols; ++k) out[k] = float_to_bf16(x[k]);
    for (int64_t k = cols; k < padded; ++k) out[k] = 0;
}

void quantise(const float* x, int64_t cols, int64_t padded, int8_t* quants, float* scales, int32_t* sums,
              float* offsets) {
    for (int64_t begin = 0; begin < padded; begin += kGroup, ++scales, ++sums, ++offsets) {
        const int64_t end = begin + kGroup, last = end < cols ? end : cols;
        const float largest = largest_magnitude(x + begin, last > begin ? last - begin : 0);
        const bool usable = largest > kTiny && largest <= kLargest;  // NaN and infinity go on through the scale
        const float inverse = usable ? 127.0f / largest : 0.0f;
        *scales = largest > kTiny || largest != largest ? largest / 127.0f : 0.0f;
        int32_t sum = 0;
        for (int64_t k = begin; k < end; ++k) {
            quants[k] = usable && k < cols ? static_cast<int8_t>(rintf(x[k] * inverse)) : static_cast<int8_t>(0);
            sum += quants[k];
        }
        *sums = sum;
        *offsets = *scales * static_cast<float>(sum);
    }
}

}  // namespace

const LinearKernels linear_portable = {
    "generic",
    {product_float32, product_bfloat16, product_int8, product_int4},
    {Form::kFloat32, Form::kBfloat16, Form::kBytes, Form::kBytes},
    to_bfloat16,
    quantise,
    {sums_int8, sums_int4}};

const LinearKernels& linear_kernels() {
#if defined(GA_X86)
    switch (level()) {
        case Level::amx_emulated: return linear_amx_emulated;
        case Level::amx: return linear_amx;
        case Level::avx512: return linear_avx512;
        case Level::avx2: return linear_avx2;
        case Level::generic: break;
    }
#elif defined(GA_ARM)
    switch (level()) {
        case Level::i8mm: return linear_i8mm;
        case Level::dotprod: return linear_dotprod;
        case Level::neon: return linear_neon;
        case Level::generic: break;
    }
#endif
    return linear_portable;
}

}  // namespace ga
