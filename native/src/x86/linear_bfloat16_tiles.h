// Products in bfloat16 on tiles, over a class T of tiles and a class Weights that gives the B tiles: bfloat16 panels as
// they are, int8 and int4 panels made bfloat16 as they are read. One row goes the same way as many.
//
//   A tiles: 16 rows of x x 32 columns; B tiles: 16 units of a panel, [16 pairs of columns][16 rows of w][2].
//   Two tiles of A times two of B: four loads of 1 KB for four products of 16 cycles, which is all that the first-level
//   cache gives and more than the second does. So 512 columns of two panels (32 KB) stay in the first while 512 rows of
//   x pass by, and those columns of x (512 KB) stay in the second while a task's panels do. Between chunks of columns
//   the float sums wait in memory; they come back bit for bit.
//
// Expected, in cycles for 32 rows, 2 panels and 512 columns: 64 products of 16 = 1024, and at most 4 loads of 8 and 4
// stores of 16 for the sums: 90 % of the peak if A arrives from the second-level cache at 32 bytes a cycle. Making a B
// tile of int8 or int4 costs 90 to 96 cycles once per 512 rows of x, whose products take 512: 77 % of the peak.
// With up to 32 rows it is the weights' way that counts: per B tile, beside 16 cycles of products for each 16 rows, from
// memory at 14 GB/s and 3 GHz, 220 cycles for bfloat16, 117 for int8 and 69 for int4, which the 90 to 96 of its making
// bind to 10 GB/s. Tiles are made one step ahead, so that products need not wait for them. docs/kernels.md has more.
#pragma once
#include "x86/bfloat16_units.h"
#include "x86/linear_tiles.h"

namespace ga {

constexpr int64_t kFloatColumns = 512, kFloatRows = 512, kFloatPairs = 4;
constexpr int64_t kTileColumns = 32, kTileBytes = 1024;

struct DotBfloat16 {
    template <class T, int C, int A, int B>
    static void run() {
        T::template dot_bfloat16<C, A, B>();
    }
};

// Panels that are read for few rows come from memory: asks for what will be wanted a little later, in each of two
// streams. A panel's stream goes on with the panel after the next.
class Ahead {
public:
    Ahead(const ga_matrix& w, int64_t panel_end)
        : bytes_(panel_bytes(w.cols, w.kind)), step_(bytes_ / (padded_cols(w.cols, w.kind) / kTileColumns)), end_(panel_end) {}

    void ask(const char* panel_data, int64_t panel, int64_t k) const {
        int64_t at = k / kTileColumns * step_ + kDistance;
        if (at >= bytes_) {
            if (panel + 2 >= end_) return;
            at += bytes_;
        }
        for (int64_t line = 0; line < step_; line += kUnit) Avx512::prefetch(panel_data + at + line);
    }

private:
    static constexpr int64_t kDistance = 4096;
    int64_t bytes_, step_, end_;
};

// B tiles that a bfloat16 panel holds as they are.
class StoredTiles {
public:
    explicit StoredTiles(bool) {}
    void open(const char* const* panels, int count, int64_t, int64_t) {
        for (int p = 0; p < count; ++p) panels_[p] = panels[p];
    }
    void advance(int64_t) {}
    const char* at(int p, int64_t k) const { return panels_[p] + k / kTileColumns * kTileBytes; }

private:
    const char* panels_[2] = {};
};

// B tiles made by Units: all of a chunk before many rows pass by, or, for few, each while the one before is multiplied.
template <class Units>
class MadeTiles {
public:
    explicit MadeTiles(bool few) : few_(few), place_((few ? 2 * kTileColumns : kFloatColumns) - 1) {}
    void open(const char* const* panels, int count, int64_t begin, int64_t end) {
        for (int p = 0; p < count; ++p) panels_[p] = panels[p];
        count_ = count;
        made_ = begin;
        end_ = end;
        make_until(few_ ? begin + kTileColumns : end);
    }
    void advance(int64_t k) {
        if (few_) make_until(k + 2 * kTileColumns < end_ ? k + 2 * kTileColumns : end_);
    }
    const char* at(int p, int64_t k) const { return tiles_[p] + (k & place_) / kTileColumns * kTileBytes; }

private:
    void make_until(int64_t end) {
        for (; made_ < end; made_ += kTileColumns)
            for (int p = 0; p < count_; ++p) Units::make(panels_[p], made_, const_cast<char*>(at(p, made_)));
    }

    alignas(64) char tiles_[2][kFloatColumns / kTileColumns * kTileBytes];
    const char* panels_[2] = {};
    const bool few_;
    const int64_t place_;  // of column k among those that are kept: k & place_
    int count_ = 0;
    int64_t made_ = 0, end_ = 0;
};

// Up to kFloatRows rows times up to 2 * kFloatPairs panels, `b`. Few rows are one block, whose sums stay in the tiles.
template <class T, class Weights>
inline void bfloat16_rows(const ga_matrix& w, const Activations& a, const Block& b) {
    alignas(64) float sums[kFloatPairs][kFloatRows][2 * kPanelRows];
    const bool few = b.row_end - b.row_begin <= 2 * kTileRows;
    const int64_t columns = few ? a.padded : kFloatColumns;
    const Ahead ahead(w, b.panel_end);
    Weights weights(few);
    for (int64_t begin = 0; begin < a.padded; begin += columns) {
        const int64_t end = a.padded - begin < columns ? a.padded : begin + columns;
        for_tile_blocks<T>(b, 64, [&](const TileBlock& t) {
            const char* panels[2] = {panel_at(w, t.panel), panel_at(w, t.panel + t.panels - 1)};
            const char* x = reinterpret_cast<const char*>(a.bfloat16 + t.row * a.padded);
            float* at = sums[(t.panel - b.panel_begin) / 2][t.row - b.row_begin];
            if (t.row == b.row_begin) weights.open(panels, t.panels, begin, end);
            if (begin) load_sums<T>(t, at);
            else zero_sums<T>();
            for (int64_t k = begin; k < end; k += kTileColumns) {
                if (few)
                    for (int p = 0; p < t.panels; ++p) ahead.ask(panels[p], t.panel + p, k);
                weights.advance(k);
                const char* units[2] = {weights.at(0, k), weights.at(1, k)};
                multiply_block<T, DotBfloat16>(t, x + k * 2, a.padded * 2, units);
            }
            store_sums<T>(t, at);
            if (end == a.padded) write_block(w, b, t, at);
        });
    }
}

template <class T, class Weights>
void product_bfloat16_tiles(const ga_matrix& w, const Activations& a, const Block& b) {
    Block part = b;
    for (part.row_begin = b.row_begin; part.row_begin < b.row_end; part.row_begin = part.row_end) {
        part.row_end = b.row_end - part.row_begin < kFloatRows ? b.row_end : part.row_begin + kFloatRows;
        for (part.panel_begin = b.panel_begin; part.panel_begin < b.panel_end; part.panel_begin = part.panel_end) {
            const int64_t left = b.panel_end - part.panel_begin;
            part.panel_end = part.panel_begin + (left < 2 * kFloatPairs ? left : 2 * kFloatPairs);
            bfloat16_rows<T, Weights>(w, a, part);
        }
    }
}

template <class T>
constexpr LinearKernels tile_table() {
    return {T::kName,
            {product_float32_avx512, product_bfloat16_tiles<T, StoredTiles>,
             product_bfloat16_tiles<T, MadeTiles<Int8Units>>, product_bfloat16_tiles<T, MadeTiles<Int4Units>>},
            {Form::kFloat32, Form::kBfloat16, Form::kBfloat16, Form::kBfloat16},
            to_bfloat16_avx512,
            nullptr,
            {sums_int8_tiles<T>, sums_int4_avx512},
            nullptr,
            kFloatRows,
            2 * kFloatPairs * kPanelRows};
}

}  // namespace ga
