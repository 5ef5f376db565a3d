/* Rotary embedding, and the fused step between the QKV projection and attention. Strides count floats. */
#pragma once
#include "gallium/abi.h"
#include "gallium/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* table[t] = the rotation of position positions[t], [2][dim]: for each element the cosine of positions[t] times its
 * frequency, and the sine with the sign that its partner gets; angles in float64, rounded once. Element pairs stand side
 * by side if interleaved, else half of dim apart. */
typedef struct {
    const int32_t* positions;
    const double* frequencies; /* [dim / 2] */
    float* table;              /* [tokens][2][dim] */
    int64_t tokens, dim, interleaved;
} ga_rope_table_args;
GA_EXPORT void ga_rope_table(const ga_rope_table_args* args);

/* Rotates the first `dim` of each of `heads` vectors of `width` per token. `table` is [tokens][2][dim]: for each element
 * the cosine, and the sine with the sign that its partner gets. y is contiguous and may not overlap x. */
typedef struct {
    const float* x;
    float* y;
    const float* table;
    int64_t tokens, heads, width, x_stride, dim, interleaved;
} ga_rope_args;
GA_EXPORT void ga_rope(const ga_rope_args* args);

/* In place on qkv [tokens][heads * head_dim | kv_heads * head_dim | kv_heads * v_dim]: norm each query and key head (if
 * gains are given), rotate them, and store keys and values in the cache. */
typedef struct {
    float* qkv;
    const float* q_gain; /* or null: no norm */
    const float* k_gain;
    const float* table;
    const int32_t* slots; /* [tokens] */
    int64_t tokens, heads, stride, dim, interleaved;
    double eps;
    ga_cache cache;
} ga_qkv_args;
GA_EXPORT void ga_qkv_prepare(const ga_qkv_args* args);

#ifdef __cplusplus
}
#endif
