/* Sampling: one token per row of logits, by the scheme gumbel-philox-v1. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As gallium.ops.handles.SamplerInputs; all arrays have one entry per row. */
typedef struct {
    const float* logits; /* [rows][stride], of which the first `vocab` may be drawn */
    int32_t* ids;        /* [rows] */
    const float* temperature;
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    const uint64_t* seed;
    const int32_t* position;
    const int32_t* adjust_start; /* [rows + 1] */
    const int32_t* adjust_ids;
    const float* adjust_scale;
    const float* adjust_bias;
    int64_t rows, stride, vocab;
} ga_sample_args;
GA_EXPORT int32_t ga_sample(const ga_sample_args* args); /* 0, or 1: out of memory */

/* Philox4x32-10: the four words for a counter and a key, for tests. */
GA_EXPORT void ga_philox(const uint32_t* counter, const uint32_t* key, uint32_t* words);

#ifdef __cplusplus
}
#endif
