// Products with bfloat16 matrices on tiles, over a class T of tiles. One row goes the same way as many.
//
//   A tiles: 16 rows of x x 32 columns; B tiles: 16 units of a panel, [16 pairs of columns][16 rows of w][2], as stored.
//   Two tiles of A times two of B: four loads of 1 KB for four products of 16 cycles, which is all that the first-level
//   cache gives and more than the second does. So 512 columns of two panels (32 KB) stay in the first while 512 rows of
//   x pass by, and those columns of x (512 KB) stay in the second while a task's panels do. Between chunks of columns
//   the float sums wait in memory; they come back bit for bit.
//
// Expected, in cycles for 32 rows, 2 panels and 512 columns: 64 products of 16 = 1024, and at most 4 loads of 8 and 4
// stores of 16 for the sums: 90 % of the peak if A arrives from the second-level cache at 32 bytes a cycle. With one
// row it is the weights' way from memory that counts: a B tile's 1 KB take some 200 cycles of it, and 16 here.
#pragma once
#include "x86/linear_tiles.h"

namespace ga {

constexpr int64_t kFloatColumns = 512, kFloatRows = 512, kFloatPairs = 4;

struct DotBfloat16 {
    template <class T, int C, int A, int B>
    static void run() {
        T::template dot_bfloat16<C, A, B>();
    }
};

// One chunk of columns for up to 32 rows and 2 panels. `from_memory`: weights are read for few rows, so ask for them early.
template <class T>
inline void bfloat16_chunk(const ga_matrix& w, const Activations& a, const TileBlock& t, int64_t begin, int64_t end,
                           bool from_memory) {
    constexpr int64_t kAhead = 4096;  // bytes, in each of two streams
    const char* x = reinterpret_cast<const char*>(a.bfloat16 + t.row * a.padded);
    const char* panels[2] = {panel_at(w, t.panel), panel_at(w, t.panel + t.panels - 1)};
    for (int64_t k = begin; k < end; k += 32) {
        const char* units[2] = {panels[0] + k / 2 * kUnit, panels[1] + k / 2 * kUnit};
        if (from_memory)
            for (int p = 0; p < t.panels; ++p)
                for (int64_t line = 0; line < 1024; line += 64) Avx512::prefetch(units[p] + kAhead + line);
        multiply_block<T, DotBfloat16>(t, x + k * 2, a.padded * 2, units);
    }
}

// Up to kFloatRows rows times up to 2 * kFloatPairs panels, `b`.
template <class T>
inline void bfloat16_rows(const ga_matrix& w, const Activations& a, const Block& b) {
    alignas(64) float sums[kFloatPairs][kFloatRows][2 * kPanelRows];
    const bool from_memory = b.row_end - b.row_begin <= 2 * kTileRows;
    for (int64_t k = 0; k < a.padded; k += kFloatColumns) {
        const int64_t end = a.padded - k < kFloatColumns ? a.padded : k + kFloatColumns;
        for_tile_blocks<T>(b, 64, [&](const TileBlock& t) {
            float* at = sums[(t.panel - b.panel_begin) / 2][t.row - b.row_begin];
            if (k) load_sums<T>(t, at);
            else zero_sums<T>();
            bfloat16_chunk<T>(w, a, t, k, end, from_memory);
            store_sums<T>(t, at);
            if (end == a.padded) write_block(w, b, t, at);
        });
    }
}

template <class T>
void product_bfloat16_tiles(const ga_matrix& w, const Activations& a, const Block& b) {
    Block part = b;
    for (part.row_begin = b.row_begin; part.row_begin < b.row_end; part.row_begin = part.row_end) {
        part.row_end = b.row_end - part.row_begin < kFloatRows ? b.row_end : part.row_begin + kFloatRows;
        for (part.panel_begin = b.panel_begin; part.panel_begin < b.panel_end; part.panel_begin = part.panel_end) {
            const int64_t left = b.panel_end - part.panel_begin;
            part.panel_end = part.panel_begin + (left < 2 * kFloatPairs ? left : 2 * kFloatPairs);
            bfloat16_rows<T>(w, a, part);
        }
    }
}

template <class T>
constexpr LinearKernels tile_table() {
    return {T::kName,
            {product_float32_avx512, product_bfloat16_tiles<T>, product_int8_tiles<T>, product_int4_avx512},
            to_bfloat16_avx512,
            quantise_avx512,
            {sums_int8_tiles<T>, sums_int4_avx512}};
}

}  // namespace ga
