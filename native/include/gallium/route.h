/* The router: which experts a token uses, and with which weights. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Scores = sigmoid or softmax of the logits. Experts are chosen by score + bias: first `top_groups` of `groups` by the
 * sum of their two best, then top_k; ties to the lower index. Weights are the scores without bias, divided by
 * (their sum + 1e-20) if renormalize, times scale. */
typedef struct {
    const float* logits; /* [tokens][experts] */
    const float* bias;   /* [experts] */
    float* weights;      /* [tokens][top_k] */
    int32_t* ids;        /* [tokens][top_k] */
    int64_t tokens, experts, top_k, groups, top_groups, softmax, renormalize, stride;
    double scale;
} ga_route_args;
GA_EXPORT void ga_route(const ga_route_args* args);

#ifdef __cplusplus
}
#endif
