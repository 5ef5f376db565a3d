/* A program: calls that were recorded once and are run again with one call, their arguments in place. */
#pragma once
#include "gallium/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a call does; its arguments are the struct of the function of that name. */
enum {
    GA_EMBED,
    GA_LINEAR,
    GA_GATED_MLP,
    GA_EXPERTS,
    GA_RMS_NORM,
    GA_ADD,
    GA_SWIGLU,
    GA_ROPE,
    GA_ROUTE,
    GA_KV_WRITE,
    GA_QKV_PREPARE,
    GA_ATTEND,
    GA_INDEX_TOPK,
    GA_KV_CODES,
    GA_SCALE_COLUMNS
};

typedef struct {
    int64_t op;
    const void* args;
} ga_call;

/* Runs calls [0, count) one after the other, the threads kept awake in between. Stops at the first call that fails and
 * writes its index to `failed`. 0, or that call's status; -1: an op that does not exist. */
typedef struct {
    const ga_call* calls;
    int64_t count;
    int64_t failed;
} ga_program;
GA_EXPORT int32_t ga_run(ga_program* program);

#ifdef __cplusplus
}
#endif
