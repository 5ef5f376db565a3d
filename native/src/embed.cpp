// Reading single rows of a packed matrix.
#include "half.h"
#include "matrix.h"
#include "rows.h"

namespace ga {
namespace {

void read_row(const ga_matrix& w, int64_t row, float* y) {
    const char* panel = panel_at(w, row / kPanelRows);
    const int64_t lane = row % kPanelRows;
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(panel);
    if (w.kind == kFloat32) {
        const float* from = reinterpret_cast<const float*>(panel) + lane;
        for (int64_t k = 0; k < w.cols; ++k) y[k] = from[k * kPanelRows];
    } else if (w.kind == kBfloat16) {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(panel) + lane * 2;
        for (int64_t k = 0; k < w.cols; ++k) y[k] = bf16_to_float(from[k / 2 * 32 + k % 2]);
    } else if (w.kind == kInt8) {
        for (int64_t k = 0; k < w.cols; ++k) {
            const int64_t i = k % kGroup;
            const auto* unit = reinterpret_cast<const uint8_t*>(int8_units(panel, k / kGroup)) + i / 4 * kUnit;
            uint16_t d;
            memcpy(&d, int8_scales(panel, k / kGroup) + lane * 2, 2);
            y[k] = half_to_float(d) * static_cast<float>(unit[lane * 4 + i % 4] - 128);
        }
    } else {
        for (int64_t k = 0; k < w.cols; ++k) {
            const uint8_t* group = bytes + k / kGroup * kInt4GroupBytes;
            const int64_t i = k % kGroup, j = i % 16;
            const uint8_t pair = group[j / 4 * kUnit + lane * 4 + j % 4];
            uint16_t d, m;
            memcpy(&d, group + 256 + lane * 2, 2);
            memcpy(&m, group + 288 + lane * 2, 2);
            y[k] = half_to_float(d) * static_cast<float>(i < 16 ? pair & 15 : pair >> 4) + half_to_float(m);
        }
    }
    if (w.integers) {
        const int64_t group = w.cols / w.integers->groups, stride = round_up(w.rows, kPanelRows);
        for (int64_t k = 0; k < w.cols; ++k) y[k] *= w.integers->scale[k / group * stride + row];
    }
}

}  // namespace
}  // namespace ga

int32_t ga_embed(const ga_embed_args* args) {
    const ga_embed_args a = *args;
    for (int64_t t = 0; t < a.tokens; ++t)
        if (a.ids[t] < 0 || a.ids[t] >= a.matrix.rows) return 1;
    ga::for_rows(a.tokens, a.matrix.cols * 4, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) ga::read_row(a.matrix, a.ids[t], a.y + t * a.matrix.cols);
    });
    return 0;
}
