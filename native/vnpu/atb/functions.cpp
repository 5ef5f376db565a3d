// The six operators that op-plugin finds by name in libatb.so, as C functions with two phases. They are not called as the
// aclnn functions are: the first phase returns an operation, or is given the one of an earlier call to use again, and gets a
// context where those get nothing; the stream lies in the context, and the caller destroys the operation.
// Parameters and their types: the calls in Ascend/op-plugin 517f2e7, op_plugin/ops/atb/*.cpp.
#include "operation.h"

namespace ga::vnpu::atb_call {
namespace {

struct In {
    const void* handle;
    const char* name;
    Place place = Place::device;
};

void add(Arguments& arguments, const In& in) { arguments.handle(in.handle, in.place, in.name); }
void add(Arguments& arguments, const Argument& value) { arguments.add(value); }

template <class... Parts>
Status prepare(const char* name, uint64_t* workspace, ::atb::Operation** operation, const ::atb::Context* context,
               const Parts&... parts) {
    *workspace = 0;
    if (*operation == nullptr) *operation = new FunctionOperation(name);
    Arguments& arguments = static_cast<FunctionOperation*>(*operation)->arguments(context);
    (add(arguments, parts), ...);
    return kOk;
}

}  // namespace
}  // namespace ga::vnpu::atb_call

using namespace ga::vnpu::atb_call;
using ga::vnpu::Status;
using Handle = const void*;

// The first phase keeps the arguments; the handles in them live until the second one has run.
#define GA_SECOND_PHASE(name)                                                                         \
    GA_EXPORT Status name(void*, uint64_t, atb::Operation* operation, atb::Context*) {                \
        if (operation == nullptr) refuse(#name " was run without its first phase");                   \
        static_cast<const FunctionOperation*>(operation)->run();                                      \
        return ga::vnpu::kOk;                                                                         \
    }

GA_EXPORT Status AtbMLAGetWorkspaceSize(Handle q_nope, Handle q_rope, Handle ctkv, Handle k_rope, Handle block_tables,
                                        Handle context_lens, Handle mask, Handle q_seq_lens, Handle qk_descale,
                                        Handle pv_descale, int64_t head_num, float qk_scale, int64_t kv_head_num,
                                        int32_t mask_type, int32_t calc_type, int32_t cache_mode, Handle out, Handle lse,
                                        uint64_t* workspace, atb::Operation** operation, atb::Context* context) {
    return prepare("atb.MLA", workspace, operation, context, In{q_nope, "q_nope"}, In{q_rope, "q_rope"},
                   In{ctkv, "ctkv", Place::device_any_format}, In{k_rope, "k_rope", Place::device_any_format},
                   In{block_tables, "block_tables"}, In{context_lens, "context_lens", Place::lengths}, In{mask, "mask"},
                   In{q_seq_lens, "qseqlen", Place::lengths}, In{qk_descale, "qk_descale"}, In{pv_descale, "pv_descale"},
                   of(head_num), of(qk_scale), of(kv_head_num), of(mask_type), of(calc_type), of(cache_mode),
                   In{out, "output"}, In{lse, "lse"});
}
GA_SECOND_PHASE(AtbMLA)

GA_EXPORT Status AtbMLAPreprocessGetWorkspaceSize(
    Handle input, Handle gamma0, Handle beta0, Handle quant_scale0, Handle quant_offset0, Handle wdqkv, Handle descale0,
    Handle bias0, Handle gamma1, Handle beta1, Handle quant_scale1, Handle quant_offset1, Handle wuq, Handle descale1,
    Handle bias1, Handle gamma2, Handle cos, Handle sin, Handle wuk, Handle kv_cache, Handle kv_cache_rope, Handle slots,
    Handle ctkv_scale, Handle q_nope_scale, uint32_t wdq_dim, uint32_t q_rope_dim, uint32_t k_rope_dim, float epsilon,
    uint32_t q_rotary_coeff, uint32_t k_rotary_coeff, bool transpose_wdq, bool transpose_wuq, bool transpose_wuk,
    int32_t cache_mode, int32_t quant_mode, Handle q_out0, Handle kv_cache_out0, Handle q_out1, Handle kv_cache_out1,
    uint64_t* workspace, atb::Operation** operation, atb::Context* context) {
    constexpr Place any = Place::device_any_format;
    return prepare("atb.MLAPreprocess", workspace, operation, context, In{input, "input"}, In{gamma0, "gamma0"},
                   In{beta0, "beta0"}, In{quant_scale0, "quant_scale0"}, In{quant_offset0, "quant_offset0"},
                   In{wdqkv, "wdqkv", any}, In{descale0, "descale0"}, In{bias0, "bias0"}, In{gamma1, "gamma1"},
                   In{beta1, "beta1"}, In{quant_scale1, "quant_scale1"}, In{quant_offset1, "quant_offset1"},
                   In{wuq, "wuq", any}, In{descale1, "descale1"}, In{bias1, "bias1"}, In{gamma2, "gamma2"}, In{cos, "cos"},
                   In{sin, "sin"}, In{wuk, "wuk", any}, In{kv_cache, "kv_cache", any},
                   In{kv_cache_rope, "kv_cache_rope", any}, In{slots, "slotmapping"}, In{ctkv_scale, "ctkv_scale"},
                   In{q_nope_scale, "q_nope_scale"}, of(wdq_dim), of(q_rope_dim), of(k_rope_dim), of(epsilon),
                   of(q_rotary_coeff), of(k_rotary_coeff), of(transpose_wdq), of(transpose_wuq), of(transpose_wuk),
                   of(cache_mode), of(quant_mode), In{q_out0, "q_out0"}, In{kv_cache_out0, "kv_cache_out0", any},
                   In{q_out1, "q_out1"}, In{kv_cache_out1, "kv_cache_out1", any});
}
GA_SECOND_PHASE(AtbMLAPreprocess)

GA_EXPORT Status AtbRingMLAGetWorkspaceSize(Handle q_nope, Handle q_rope, Handle k_nope, Handle k_rope, Handle value,
                                            Handle mask, Handle seq_lens, Handle prev_out, Handle prev_lse,
                                            int64_t head_num, int64_t kv_head_num, float qk_scale, int32_t kernel_type,
                                            int32_t mask_type, int32_t input_layout, int32_t calc_type, Handle out,
                                            Handle softmax_lse, uint64_t* workspace, atb::Operation** operation,
                                            atb::Context* context) {
    return prepare("atb.RingMLA", workspace, operation, context, In{q_nope, "q_nope"}, In{q_rope, "q_rope"},
                   In{k_nope, "k_nope"}, In{k_rope, "k_rope"}, In{value, "value"}, In{mask, "mask"},
                   In{seq_lens, "seqlen", Place::lengths}, In{prev_out, "pre_out"}, In{prev_lse, "prev_lse"}, of(head_num),
                   of(kv_head_num), of(qk_scale), of(kernel_type), of(mask_type), of(input_layout), of(calc_type),
                   In{out, "output"}, In{softmax_lse, "softmax_lse"});
}
GA_SECOND_PHASE(AtbRingMLA)

GA_EXPORT Status AtbPagedCacheLoadGetWorkspaceSize(Handle key_cache, Handle value_cache, Handle block_tables,
                                                   Handle context_lens, Handle key, Handle value, Handle seq_starts,
                                                   int8_t kv_cache_cfg, bool cumulative, bool has_seq_starts,
                                                   uint64_t* workspace, atb::Operation** operation, atb::Context* context) {
    return prepare("atb.PagedCacheLoad", workspace, operation, context, In{key_cache, "key_cache", Place::device_any_format},
                   In{value_cache, "value_cache", Place::device_any_format}, In{block_tables, "block_table"},
                   In{context_lens, "context_lens"}, In{key, "key", Place::device_any_format},
                   In{value, "value", Place::device_any_format}, In{seq_starts, "seq_starts"}, of(kv_cache_cfg),
                   of(cumulative), of(has_seq_starts));
}
GA_SECOND_PHASE(AtbPagedCacheLoad)

GA_EXPORT Status AtbSelfAttentionPrefixEncoderGetWorkspaceSize(
    Handle query, Handle key, Handle value, Handle block_tables, Handle mask, Handle seq_lens, Handle kv_seq_lens,
    Handle slopes, int32_t mask_type, int64_t head_num, int64_t kv_head_num, float qk_scale, Handle out,
    uint64_t* workspace, atb::Operation** operation, atb::Context* context) {
    return prepare("atb.SelfAttentionPrefixEncoder", workspace, operation, context, In{query, "query"}, In{key, "key"},
                   In{value, "value"}, In{block_tables, "block_tables"}, In{mask, "mask"},
                   In{seq_lens, "seqlen", Place::lengths}, In{kv_seq_lens, "kv_seqlen", Place::lengths},
                   In{slopes, "slopes"}, of(mask_type), of(head_num), of(kv_head_num), of(qk_scale), In{out, "output"});
}
GA_SECOND_PHASE(AtbSelfAttentionPrefixEncoder)

GA_EXPORT Status AtbFusedAddTopkDivGetWorkspaceSize(Handle x, Handle add_num, Handle mapping_num, Handle mapping_table,
                                                    int64_t group_num, int64_t group_topk, int64_t n, int64_t k,
                                                    int32_t activation_type, bool is_norm, float scale,
                                                    bool enable_expert_mapping, Handle y, Handle indices,
                                                    uint64_t* workspace, atb::Operation** operation,
                                                    atb::Context* context) {
    return prepare("atb.FusedAddTopkDiv", workspace, operation, context, In{x, "x"}, In{add_num, "add_num"},
                   In{mapping_num, "mapping_num"}, In{mapping_table, "mapping_table"}, of(group_num), of(group_topk), of(n),
                   of(k), of(activation_type), of(is_norm), of(scale), of(enable_expert_mapping), In{y, "y"},
                   In{indices, "indices"});
}
GA_SECOND_PHASE(AtbFusedAddTopkDiv)
