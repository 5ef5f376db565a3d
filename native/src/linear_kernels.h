// What one instruction-set level offers to products with packed matrices.
#pragma once
#include <stdint.h>

#include "matrix.h"

namespace ga {

// What a product wants rows of x to be.
enum class Form : uint8_t {
    kFloat32,   // as they are
    kBfloat16,
    kRounded,   // to bfloat16, but kept as float32: for a level that multiplies bfloat16 as float32
    kBytes,     // 8 bits and a scale per group of columns; for a matrix with `integers`, one per row
};

// Rows of x, prepared in one form. Bytes for a matrix with `integers` have as many sums as the matrix has groups.
struct Activations {
    int64_t rows = 0, cols = 0, padded = 0, groups = 0;
    const float* plain = nullptr;       // float32: [rows], `stride` floats apart
    int64_t stride = 0;
    const uint16_t* bfloat16 = nullptr; // [rows][padded]
    const float* rounded = nullptr;     // [rows][padded]
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
    Form form[4];        // what these want of x; a matrix with `integers` wants bytes
    // One row in each form, or null if no kind of the level wants it. `padded` columns are written.
    void (*to_bfloat16)(const float* x, int64_t cols, int64_t padded, uint16_t* out);
    void (*quantise)(const float* x, int64_t cols, int64_t padded, int8_t* quants, float* scales, int32_t* sums,
                     float* offsets);
    IntegerSums integer_sums[2];  // int8, int4
    void (*round_to_bfloat16)(const float* x, int64_t cols, int64_t padded, float* out) = nullptr;
    // What a task of an MLP takes at once: rows of x that pass by the same panels, and columns of gate and of up.
    int64_t rows_at_once = 64, cols_at_once = 64;
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

inline Form form_for(const ga_matrix& w) { return w.integers ? Form::kBytes : linear_kernels().form[w.kind]; }

inline Product product_for(const ga_matrix& w) { return w.integers ? product_integers : linear_kernels().product[w.kind]; }

}  // namespace ga
