/* The paged cache, its writers, and attention over it. Strides count floats. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GA_KV_FLOAT32 = 0, GA_KV_BFLOAT16 = 1, GA_KV_INT8 = 2 };

/* One layer's cache. `element` says which type keys and values have. GA_KV_INT8 is for layout 0 only: of each token and
 * head, codes = round(x / step) with step = max |x| / 127, and before the codes of a panel (as bfloat16: [key_dim / 2]
 * [16][2], [8][value_dim][2]) stand the steps of its 16 keys, float32.
 *   layout 0, panels: keys [blocks][kv_heads][block_size / 16] panels of [key_dim / 2][16][2] (float32: [.][2][16]);
 *                     values likewise panels of [8][value_dim][2] (float32: [16][value_dim]).
 *                     block_size % 16 == 0, key_dim even, value_dim % 16 == 0 (padded by the caller).
 *   layout 1, rows:   keys [blocks][kv_heads][block_size][key_dim], values likewise with value_dim.
 *   layout 2, latent: keys [blocks][block_size][key_dim] with key_dim = latent + rope key; value_dim = latent: the
 *                     value is the start of the key; `values` is not used; kv_heads = 1. */
typedef struct {
    void* keys;
    void* values;
    int64_t blocks, block_size, kv_heads;
    int64_t key_dim, value_dim;           /* as stored */
    int64_t key_used, value_used;         /* as in k and v; the rest is padding and stays zero */
    int64_t element, layout;
} ga_cache;

/* The sequences of a step, as in gallium.ops.handles.Step. */
typedef struct {
    const int32_t* query_start;  /* [seqs + 1] */
    const int32_t* context_lens; /* [seqs] */
    const int32_t* block_tables; /* [seqs][max_blocks] */
    int64_t seqs, max_blocks;
} ga_batch;

/* Checks a step against a cache of `blocks` blocks and fills slots [tokens] with block * block_size + offset.
 * 0: good; 1: query_start does not partition the tokens; 2: positions do not end at the context; 3: a block that is
 * needed is missing or out of range. */
typedef struct {
    const int32_t* positions; /* [tokens] */
    int32_t* slots;
    int64_t tokens, block_size, blocks;
    ga_batch batch;
} ga_slots_args;
GA_EXPORT int32_t ga_plan_slots(const ga_slots_args* args);

/* Stores rows of k [tokens][kv_heads][key_used] and v [tokens][kv_heads][value_used] at `slots` (layouts 0 and 1), or
 * k [tokens][value_dim] (latent) and v [tokens][key_dim - value_dim] (rope key) (layout 2; v null: index keys). */
typedef struct {
    const float* k;
    const float* v;
    const int32_t* slots;
    int64_t tokens, k_stride, v_stride;
    ga_cache cache;
} ga_kv_write_args;
GA_EXPORT void ga_kv_write(const ga_kv_write_args* args);

/* For a cache on a calibrated grid of 8 bits, with constants per column [width]; y [rows][width] may be x.
 * ga_kv_codes: y = c - offset with c = round(x * scale + offset), half to even, held to -128 .. 127.
 * ga_scale_columns: y = x * scale; offset is not used. */
typedef struct {
    const float* x;
    const float* scale;
    const float* offset; /* or null */
    float* y;
    int64_t rows, width, x_stride;
} ga_columns_args;
GA_EXPORT void ga_kv_codes(const ga_columns_args* args);
GA_EXPORT void ga_scale_columns(const ga_columns_args* args);

/* out[t][h] = softmax over the positions that token t sees of (q . k * scale), times v. Head h reads KV head
 * h * kv_heads / heads. Latent (layout 2): the score is q . latent + q_rope . rope key, the value the latent, and if
 * `selected` [tokens][selected_width] is given only those positions count (-1 = none). out is contiguous. */
typedef struct {
    const float* q;
    const float* q_rope; /* layout 2 only, else null */
    const int32_t* selected; /* layout 2 only, or null */
    float* out;
    int64_t heads, q_dim, q_rope_dim, out_dim, q_stride, q_rope_stride, selected_width;
    double scale;
    ga_cache cache;
    ga_batch batch;
} ga_attend_args;
GA_EXPORT int32_t ga_attend(const ga_attend_args* args); /* 0, or 1: out of memory */

/* positions[t] = the k positions <= own with the largest sum over heads of relu(q[h] . key) * weights[h], best first,
 * ties to the lower position; -1 after the last. The cache is layout 2 with value_dim = key_dim. */
typedef struct {
    const float* q;       /* [tokens][heads][key_dim] */
    const float* weights; /* [tokens][heads] */
    int32_t* positions;   /* [tokens][k] */
    int64_t heads, q_stride, weights_stride, k;
    ga_cache cache;
    ga_batch batch;
} ga_index_args;
GA_EXPORT int32_t ga_index_topk(const ga_index_args* args); /* 0, or 1: out of memory */

#ifdef __cplusplus
}
#endif
