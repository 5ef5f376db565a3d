// What products on tile registers share, written once over a class T of tiles (the hardware's, or their emulation in
// tests): blocks of 32 rows and 2 panels, and four tiles of sums; and sums in integers.
#pragma once
#include "x86/linear_avx512.h"
#include "x86/simd_avx512.h"
#include "x86/tiles_hardware.h"

namespace ga {

constexpr int kTileRows = 16;

// Up to 32 rows of x (two tiles of A) times two panels: four tiles of sums.
struct TileBlock {
    int64_t row, panel;
    int rows[2];   // of the two tiles of A; the second may be 0
    int panels;    // 1 or 2
};

// `x_bytes`: what one step reads of a row of x, a unit of weights for each four of them.
inline TileShapes shapes_for(const TileBlock& t, int x_bytes) {
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = kTileRows;
    }
    shapes.row_bytes[4] = shapes.row_bytes[5] = static_cast<uint16_t>(x_bytes);
    shapes.rows[6] = shapes.rows[7] = static_cast<uint8_t>(x_bytes / 4);
    const int first = t.rows[0], second = t.rows[1] ? t.rows[1] : kTileRows;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = static_cast<uint8_t>(first);
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<uint8_t>(second);
    return shapes;
}

template <class T>
inline void zero_sums() {
    T::template zero<0>();
    T::template zero<1>();
    T::template zero<2>();
    T::template zero<3>();
}

// One 64-byte column block of both A tiles and both panels. Dot is a member template of T, wrapped.
template <class T, class Dot>
inline void multiply_block(const TileBlock& t, const char* x, int64_t x_bytes, const char* const* units) {
    T::template load<4>(x, x_bytes);
    T::template load<6>(units[0], kUnit);
    Dot::template run<T, 0, 4, 6>();
    if (t.panels == 2) {
        T::template load<7>(units[1], kUnit);
        Dot::template run<T, 1, 4, 7>();
    }
    if (t.rows[1] == 0) return;
    T::template load<5>(x + kTileRows * x_bytes, x_bytes);
    Dot::template run<T, 2, 5, 6>();
    if (t.panels == 2) Dot::template run<T, 3, 5, 7>();
}

// The four tiles of sums as [32 rows][2 panels][16].
template <class T>
inline void load_sums(const TileBlock& t, const void* from) {
    const char* at = static_cast<const char*>(from);
    T::template load<0>(at, 128);
    if (t.panels == 2) T::template load<1>(at + 64, 128);
    if (t.rows[1] == 0) return;
    T::template load<2>(at + kTileRows * 128, 128);
    if (t.panels == 2) T::template load<3>(at + kTileRows * 128 + 64, 128);
}

template <class T>
inline void store_sums(const TileBlock& t, void* out) {
    char* to = static_cast<char*>(out);
    T::template store<0>(to, 128);
    if (t.panels == 2) T::template store<1>(to + 64, 128);
    if (t.rows[1] == 0) return;
    T::template store<2>(to + kTileRows * 128, 128);
    if (t.panels == 2) T::template store<3>(to + kTileRows * 128 + 64, 128);
}

struct DotInt8 {
    template <class T, int C, int A, int B>
    static void run() {
        T::template dot_int8<C, A, B>();
    }
};

// y = sums + bias.
inline void write_block(const ga_matrix& w, const Block& b, const TileBlock& t, const float* sums) {
    for (int p = 0; p < t.panels; ++p) {
        const int64_t panel = t.panel + p;
        const __mmask16 columns = Avx512::mask(panel_width(w, panel));
        const __m512 bias = w.bias ? _mm512_maskz_loadu_ps(columns, w.bias + panel * kPanelRows) : _mm512_setzero_ps();
        for (int r = 0; r < t.rows[0] + t.rows[1]; ++r)
            _mm512_mask_storeu_ps(b.y + (t.row + r) * b.y_stride + panel * kPanelRows, columns,
                                  _mm512_add_ps(_mm512_load_ps(sums + r * 32 + p * 16), bias));
    }
}

// Integer sums for `integers`: the tiles keep them over all columns of the group.
template <class T>
void sums_int8_tiles(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    alignas(64) int32_t dots[32 * 32];
    const int64_t rows = s.row_end - s.row_begin;
    TileBlock t;
    t.row = s.row_begin;
    t.panel = s.panel;
    t.panels = static_cast<int>(s.panels);
    t.rows[0] = static_cast<int>(rows < kTileRows ? rows : kTileRows);
    t.rows[1] = static_cast<int>(rows - t.rows[0]);
    // Two groups of an int8 panel lie side by side: a whole tile, if this group of columns begins and ends with a pair.
    const int64_t step = s.col_begin % (2 * kGroup) || s.col_end % (2 * kGroup) ? kGroup : 2 * kGroup;
    T::configure(shapes_for(t, static_cast<int>(step)));
    zero_sums<T>();
    const char* panels[2] = {panel_at(w, t.panel), panel_at(w, t.panel + t.panels - 1)};
    for (int64_t k = s.col_begin; k < s.col_end; k += step) {
        const char* units[2] = {int8_units(panels[0], k / kGroup), int8_units(panels[1], k / kGroup)};
        multiply_block<T, DotInt8>(t, reinterpret_cast<const char*>(a.quants) + t.row * a.padded + k, a.padded, units);
    }
    store_sums<T>(t, dots);
    T::release();
    for (int64_t r = 0; r < rows; ++r) {  // weights are stored as w + 128
        const __m512i excess = _mm512_set1_epi32(128 * a.sums[(t.row + r) * a.groups + s.group]);
        for (int64_t p = 0; p < s.panels; ++p)
            _mm512_storeu_si512(s.sums + (r * s.panels + p) * kPanelRows,
                                _mm512_sub_epi32(_mm512_load_si512(dots + r * 32 + p * 16), excess));
    }
}

// All blocks of up to 32 rows and 2 panels. The tiles are configured anew only when the number of rows changes.
template <class T, class Body>
inline void for_tile_blocks(const Block& b, int x_bytes, Body&& body) {
    int configured[2] = {-1, -1};
    for (int64_t panel = b.panel_begin; panel < b.panel_end; panel += 2)
        for (int64_t row = b.row_begin; row < b.row_end; row += 2 * kTileRows) {
            const int64_t left = b.row_end - row;
            TileBlock t;
            t.row = row;
            t.panel = panel;
            t.panels = b.panel_end - panel >= 2 ? 2 : 1;
            t.rows[0] = static_cast<int>(left < kTileRows ? left : kTileRows);
            t.rows[1] = static_cast<int>(left >= 2 * kTileRows ? kTileRows : left > kTileRows ? left - kTileRows : 0);
            if (configured[0] != t.rows[0] || configured[1] != t.rows[1]) {
                T::configure(shapes_for(t, x_bytes));
                configured[0] = t.rows[0];
                configured[1] = t.rows[1];
            }
            body(t);
        }
    T::release();
}

}  // namespace ga
