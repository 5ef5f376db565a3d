// The layout of a packed matrix (see gallium/linear.h), as functions of its shape and kind.
#pragma once
#include <stdint.h>

#include "gallium/linear.h"

namespace ga {

enum Kind : int64_t { kFloat32, kBfloat16, kInt8, kInt4 };

constexpr int64_t kPanelRows = 16;
constexpr int64_t kGroup = 32;              // columns that share a scale: weights in int8 and int4, and activations
constexpr int64_t kInt4GroupBytes = 320;    // 4 units of 64 bytes, 16 d, 16 m
constexpr int64_t kInt8PairBytes = 1088;    // two groups: 16 units of 64 bytes, 2 x 16 d
constexpr int64_t kUnit = 64;               // bytes that belong to 16 rows x 2 or 4 columns

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Columns as stored and as activations are padded.
inline int64_t padded_cols(int64_t cols, int64_t kind) {
    return kind == kFloat32 ? cols : kind == kInt8 ? round_up(cols, 64) : round_up(cols, 32);
}

inline int64_t panel_bytes(int64_t cols, int64_t kind) {
    const int64_t padded = padded_cols(cols, kind);
    switch (kind) {
        case kFloat32: return padded * kPanelRows * 4;
        case kBfloat16: return padded * kPanelRows * 2;
        case kInt8: return padded / (2 * kGroup) * kInt8PairBytes;
        default: return padded / kGroup * kInt4GroupBytes;
    }
}

inline int64_t panels_of(const ga_matrix& w) { return (w.rows + kPanelRows - 1) / kPanelRows; }

inline char* panel_at(const ga_matrix& w, int64_t panel) {
    return static_cast<char*>(w.data) + panel * panel_bytes(w.cols, w.kind);
}

// Rows of a panel that exist.
inline int panel_width(const ga_matrix& w, int64_t panel) {
    const int64_t left = w.rows - panel * kPanelRows;
    return left < kPanelRows ? static_cast<int>(left) : static_cast<int>(kPanelRows);
}

// The units and the scales of one group of 32 columns in an int8 panel.
inline const char* int8_units(const char* panel, int64_t group) {
    return panel + group / 2 * kInt8PairBytes + group % 2 * 8 * kUnit;
}
inline const char* int8_scales(const char* panel, int64_t group) {
    return panel + group / 2 * kInt8PairBytes + 16 * kUnit + group % 2 * 32;
}

}  // namespace ga
