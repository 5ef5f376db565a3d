/* Packed matrices: their layout, packing them from stored rows, products with them, and reading single rows. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A matrix [rows][cols], cut into panels of 16 rows; rows past the end and padding columns are zero.
 *   kind 0, float32:  panel = [cols][16]
 *   kind 1, bfloat16: panel = [cols / 2][16][2], cols padded to 32
 *   kind 2, int8:     panel = [cols / 64] pairs of groups of 32 columns {[16][16][4] bytes w + 128, 2 x 16 float16 d},
 *                     cols padded to 64; value = d * w
 *   kind 3, int4:     panel = [cols / 32] groups of {4 x [16][4] bytes, 16 float16 d, 16 float16 m}, cols padded to 32;
 *                     byte j of row r has columns 4j .. 4j+3 (low) and 16+4j .. 16+4j+3 (high); value = d * q + m
 * Sixteen consecutive [16][4] or [16][2] units of 64 bytes are one B tile of AMX, and one unit is one vector of VNNI. */
/* What a checkpoint calibrated for an int8 or int4 matrix of its own integers, packed with d = 1 (int4: and m = -8). A row
 * of x is then quantised as a whole, and y = (sum + correction) * scale * s + bias with exact integer sums:
 *   dynamic: s = max |x| / 127, q = round(x / s);
 *   static:  s = 1, q = round(x * input_factor + input_offset), within -128 to 127; one group.
 * With several groups their sums, times their scales, are added in order; s comes last. Lanes past `rows` are zero. */
typedef struct {
    const float* scale;        /* [groups][rows rounded up to 16] */
    const int32_t* correction; /* [rows rounded up to 16], static only */
    int64_t groups;            /* of cols / groups columns; several: a multiple of 32 */
    int64_t is_static;
    double input_factor, input_offset; /* float32 values */
} ga_integers;

typedef struct {
    void* data;        /* ga_matrix_bytes(rows, cols, kind) bytes on a cache line, zeroed before packing */
    const float* bias; /* [rows], or null */
    int64_t rows, cols, kind;
    const ga_integers* integers; /* or null: as its kind says */
} ga_matrix;

GA_EXPORT int64_t ga_matrix_bytes(int64_t rows, int64_t cols, int64_t kind);

/* Bits of an activation in products with matrices of this kind at the level in use: 32, 16 (bfloat16) or 8. Those with
 * `integers` take 8 at every level. */
GA_EXPORT int32_t ga_activation_bits(int64_t kind);

/* How stored rows are coded: the formats of gallium.checkpoints, by this number. */
enum { GA_F32, GA_F16, GA_BF16, GA_Q8_0, GA_Q4_0, GA_Q4_1, GA_Q4_K, GA_Q5_K, GA_Q6_K, GA_I8, GA_I4 };

/* Packs `rows` stored rows as rows first_row, first_row + 1, … of the matrix. Codings with four bits and a line per
 * group (Q4_0, Q4_1, Q4_K) enter an int4 matrix as they are, and Q8_0 an int8 matrix. I8 and I4, one integer per byte, are
 * for matrices of that kind with `integers`. */
typedef struct {
    const uint8_t* source;
    int64_t rows, first_row, storage;
    ga_matrix matrix;
} ga_pack_args;
GA_EXPORT int32_t ga_pack(const ga_pack_args* args); /* 0, or 1: out of memory */

/* Stored rows to float32 [rows][cols]. */
typedef struct {
    const uint8_t* source;
    float* out;
    int64_t rows, cols, storage;
} ga_decode_args;
GA_EXPORT void ga_decode(const ga_decode_args* args);

/* y[h][t] = W[h] x[h][t] + bias[h] for `count` matrices of one shape and kind. Strides count floats. */
typedef struct {
    const float* x;
    float* y;
    const ga_matrix* matrices; /* [count] */
    int64_t tokens, count;
    int64_t x_stride, y_stride;           /* between tokens */
    int64_t x_matrix_stride, y_matrix_stride; /* between matrices */
} ga_linear_args;
GA_EXPORT int32_t ga_linear(const ga_linear_args* args); /* 0, or 1: out of memory */

/* y[t] = down(swiglu(gate_up(x[t]))): the rows of gate_up are the gate's, then the up projection's. y is contiguous. */
typedef struct {
    const float* x;
    float* y;
    ga_matrix gate_up, down;
    int64_t tokens, x_stride;
} ga_mlp_args;
GA_EXPORT int32_t ga_gated_mlp(const ga_mlp_args* args); /* 0, or 1: out of memory */

/* y[t] = row ids[t] of the matrix, not one of static `integers`; y is [tokens][cols]. */
typedef struct {
    const int32_t* ids;
    float* y;
    int64_t tokens;
    ga_matrix matrix;
} ga_embed_args;
GA_EXPORT int32_t ga_embed(const ga_embed_args* args); /* 0, or 1: an id is not in [0, rows) */

/* y[t] = sum over i of weights[t][i] * down[e](swiglu(gate_up[e](x[t]))) with e = ids[t][i], in the order of i; and, if
 * there is a shared expert, plus shared_down(swiglu(shared_gate_up(x[t]))). */
typedef struct {
    const float* x;
    const float* weights;      /* [tokens][top_k] */
    const int32_t* ids;        /* [tokens][top_k] */
    float* y;                  /* [tokens][hidden] */
    const ga_matrix* gate_up;  /* [experts], rows 2 * width */
    const ga_matrix* down;     /* [experts], cols width */
    const ga_matrix* shared_gate_up;  /* or null, as is then shared_down */
    const ga_matrix* shared_down;
    int64_t tokens, top_k, experts, x_stride;
} ga_experts_args;
GA_EXPORT int32_t ga_experts(const ga_experts_args* args); /* 0; 1: out of memory; 2: an id is not in [0, experts) */

#ifdef __cplusplus
}
#endif
