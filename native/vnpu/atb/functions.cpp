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

// The order of the columns of wdqkv, the pairs that are rotated and the scales per token are documented nowhere that may be
// read, so this one is there to be found and to say so.
GA_EXPORT Status AtbMLAPreprocessGetWorkspaceSize() {
    refuse("atb.MLAPreprocess (npu_mla_preprocess) is not emulated by the virtual NPU: the layout of its fused weights is not "
           "documented. Supported: its parts, such as npu_rms_norm, npu_quant_matmul and npu_scatter_pa_kv_cache");
}
GA_EXPORT Status AtbMLAPreprocess() { refuse("atb.MLAPreprocess is not emulated by the virtual NPU"); }

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
