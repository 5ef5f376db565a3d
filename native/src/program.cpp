// Runs a recorded program: what would be a call from outside per op is one for the whole step.
#include "gallium/program.h"

#include "gallium/attention.h"
#include "gallium/linear.h"
#include "gallium/norm.h"
#include "gallium/rope.h"
#include "gallium/route.h"
#include "pool.h"

namespace {

template <class Args>
const Args* as(const ga_call& call) {
    return static_cast<const Args*>(call.args);
}

int32_t done() { return 0; }

int32_t run_call(const ga_call& call) {
    switch (call.op) {
        case GA_EMBED: return ga_embed(as<ga_embed_args>(call));
        case GA_LINEAR: return ga_linear(as<ga_linear_args>(call));
        case GA_GATED_MLP: return ga_gated_mlp(as<ga_mlp_args>(call));
        case GA_EXPERTS: return ga_experts(as<ga_experts_args>(call));
        case GA_RMS_NORM: return ga_rms_norm(as<ga_norm_args>(call)), done();
        case GA_ADD: return ga_add(as<ga_add_args>(call)), done();
        case GA_SWIGLU: return ga_swiglu(as<ga_swiglu_args>(call)), done();
        case GA_ROPE: return ga_rope(as<ga_rope_args>(call)), done();
        case GA_ROUTE: return ga_route(as<ga_route_args>(call)), done();
        case GA_KV_WRITE: return ga_kv_write(as<ga_kv_write_args>(call)), done();
        case GA_QKV_PREPARE: return ga_qkv_prepare(as<ga_qkv_args>(call)), done();
        case GA_ATTEND: return ga_attend(as<ga_attend_args>(call));
        case GA_INDEX_TOPK: return ga_index_topk(as<ga_index_args>(call));
        case GA_KV_CODES: return ga_kv_codes(as<ga_columns_args>(call)), done();
        case GA_SCALE_COLUMNS: return ga_scale_columns(as<ga_columns_args>(call)), done();
        default: return -1;
    }
}

}  // namespace

int32_t ga_run(ga_program* program) {
    const ga::StayAwake awake;
    for (int64_t i = 0; i < program->count; ++i) {
        const int32_t status = run_call(program->calls[i]);
        if (status) {
            program->failed = i;
            return status;
        }
    }
    return 0;
}
