// What one instruction-set level offers to products with packed matrices.
#pragma once
#include <stdint.h>

#include "matrix.h"

namespace ga {

// Rows of x, prepared for one kind of matrix: as they are, in bfloat16, or in 8 bits with a scale per group. For a matrix
// with `integers` a row has one scale, and as many sums as the matrix has groups.
struct Activations {
    int64_t rows = 0, cols = 0, padded = 0, groups = 0;
    const float* plain = nullptr;       // float32: [rows], `stride` floats apart
    int64_t stride = 0;
    const uint16_t* bfloat16 = nullptr; // [rows][padded]
    const float* rounded = nullptr;     // or this, for a level that multiplies bfloat16 as float32: [rows][padded]
    const int8_t* quants = nullptr;     // [rows][padded]
    const float* scales = nullptr;      // [rows][padded / kGroup]: value = scale * quant
    const int32_t* sums = nullptr;      // [rows][groups]: the sum of the quants
    const float* offsets = nullptr;     // [rows][groups]: scale * sum
};

// A range of rows of x times a range of panels of w; y holds row 0 of the activations and column 0 of the matrix.
struct Block {
    int64_t row_begin, row_end, panel_begin, panel_end;
    float* y;
    int64_t y_stride;
};

// Products. One output's arithmetic is a function of its row of x and its row of w alone, in the order of the columns:
// how many rows are computed together never changes a bit.
using Product = void (*)(const ga_matrix& w, const Activations& a, const Block& block);

// Up to kSumRows rows of x times one or two panels of a matrix with `integers`, over the columns of one of its groups.
struct SumBlock {
    int64_t row_begin, row_end, panel, panels, group, col_begin, col_end;  // columns in multiples of kGroup
    int32_t* sums;                                                         // [rows][panels][16]
};
constexpr int64_t kSumRows = 32;
using IntegerSums = void (*)(const ga_matrix& w, const Activations& a, const SumBlock& block);

struct LinearKernels {
    const char* level;
    Product product[4];  // by kind
    void (*to_bfloat16)(const float* x, int64_t cols, int64_t padded, uint16_t* out);
    // One row in groups of kGroup columns.
    void (*quantise)(const float* x, int64_t cols, int64_t padded, int8_t* quants, float* scales, int32_t* sums,
                     float* offsets);
    IntegerSums integer_sums[2];  // int8, int4
    // Instead of to_bfloat16, if it is there: rounds to bfloat16 and keeps float32, for Activations::rounded.
    void (*round_to_bfloat16)(const float* x, int64_t cols, int64_t padded, float* out) = nullptr;
};

extern const LinearKernels linear_portable;
extern const LinearKernels linear_avx2;          // x86 only
extern const LinearKernels linear_avx512;        // x86 only
extern const LinearKernels linear_amx;           // x86 only
extern const LinearKernels linear_amx_emulated;  // x86 only: AMX's tile instructions in software, for tests
extern const LinearKernels linear_neon;          // arm64 only
extern const LinearKernels linear_dotprod;       // arm64 only
extern const LinearKernels linear_i8mm;          // arm64 only

// The table of the level in use.
const LinearKernels& linear_kernels();

// Products with `integers`, on the level's integer_sums; all float arithmetic is here, once for all levels.
void product_integers(const ga_matrix& w, const Activations& a, const Block& block);

inline Product product_for(const ga_matrix& w) { return w.integers ? product_integers : linear_kernels().product[w.kind]; }

}  // namespace ga
