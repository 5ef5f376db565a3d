// The operators that are made from a parameter structure. Which tensors go with which parameters is read from the call
// sites in Ascend/op-plugin 517f2e7, op_plugin/ops/atb; values have names here where they decide about an input.
#include "operators.h"

namespace ga::vnpu::atb_call {
namespace {

constexpr int32_t kKeyOnly = 1;                                           // kv_cache_cfg
constexpr int32_t kNoMask = 0, kMaskFree = 4, kAlibiFirst = 4, kAlibiLast = 6;  // mask_type
constexpr int32_t kSpeculative = 1, kPrefixEncoder = 4;                   // calc_type
constexpr int32_t kNotQuantised = 0;                                      // quant_type
constexpr int32_t kUnaryLast = 7, kPerChannelFirst = 17, kPerChannelLast = 18;  // elewise type

}  // namespace

Description describe(const ::atb::infer::LinearParam& p) {
    return {"atb.Linear",
            {{"x"}, {"weight"}, {"bias", Place::device, p.has_bias}, {"accumulator", Place::device, p.accumulate}},
            {{"transpose_a", of(p.transpose_a)},
             {"transpose_b", of(p.transpose_b)},
             {"has_bias", of(p.has_bias)},
             {"out_data_type", of(p.out_data_type)},
             {"accumulate", of(p.accumulate)}}};
}

Description describe(const ::atb::infer::ElewiseParam& p) {
    const bool per_channel = p.type >= kPerChannelFirst && p.type <= kPerChannelLast;
    return {"atb.Elewise",
            {{"x"}, {"other", Place::device, p.type > kUnaryLast}, {"offset", Place::device, per_channel}},
            {{"elewise_type", of(p.type)},
             {"input_scale", of(p.quant.scale)},
             {"asymmetric", of(p.quant.asymmetric)},
             {"input_offset", of(p.quant.offset)},
             {"var_attr", of(p.muls.factor)},
             {"out_data_type", of(p.out_data_type)}}};
}

// The forms before and after an addition have structures of their own, which mean nothing for the plain one.
Description describe(const ::atb::infer::RmsNormParam& p) {
    const bool quantised = p.norm.quant_type != kNotQuantised;
    return {"atb.RmsNorm",
            {{"x"},
             {"gamma"},
             {"beta", Place::device, quantised},
             {"scale", Place::device, quantised},
             {"offset", Place::device, quantised}},
            {{"layer_type", of(p.layer_type)},
             {"quant_type", of(p.norm.quant_type)},
             {"epsilon", of(p.norm.epsilon)},
             {"layer_norm_epsilon", of(p.norm.layer_norm_epsilon)},
             {"rstd", of(p.norm.rstd)},
             {"precision_mode", of(p.norm.precision_mode)},
             {"model_type", of(p.norm.model_type)},
             {"dynamic_quant_type", of(p.norm.dynamic_quant_type)}}};
}

Description describe(const ::atb::infer::GroupTopkParam& p) {
    return {"atb.GroupTopk",
            {{"scores"}, {"positions"}},
            {{"group_num", of(p.group_num)},
             {"k", of(p.k)},
             {"group_multi_flag", of(p.group_multi_flag)},
             {"n", of(p.n)}}};
}

Description describe(const ::atb::infer::RopeParam& p) {
    return {"atb.Rope",
            {{"query"}, {"key"}, {"cos"}, {"sin"}, {"seq_len", Place::lengths}},
            {{"rotary_coeff", of(p.rotary_coeff)}, {"cos_format", of(p.cos_format)}},
            2};
}

Description describe(const ::atb::infer::ReshapeAndCacheParam& p) {
    const bool both = p.kv_cache_cfg != kKeyOnly;
    return {"atb.ReshapeAndCache",
            {{"key"},
             {"value", Place::device, both},
             {"key_cache", Place::device_any_format},
             {"value_cache", Place::device_any_format, both},
             {"slots"}},
            {{"compress_type", of(p.compress_type)}, {"kv_cache_cfg", of(p.kv_cache_cfg)}},
            both ? size_t{2} : size_t{1}};
}

Description describe(const ::atb::infer::PagedAttentionParam& p) {
    const bool masked = p.mask_type != kNoMask && p.mask_type != kMaskFree;
    const bool quantised = p.quant_type != kNotQuantised;
    return {"atb.PagedAttention",
            {{"query"},
             {"key_cache", Place::device_any_format},
             {"value_cache", Place::device_any_format, p.mla_v_head_size == 0},
             {"block_tables"},
             {"context_lens", Place::lengths},
             {"mask", Place::device_any_format, masked},
             {"q_seq_lens", Place::lengths, p.calc_type == kSpeculative},
             {"k_descale", Place::device, quantised},
             {"v_descale", Place::device, quantised}},
            {{"head_num", of(p.head_num)},
             {"qk_scale", of(p.qk_scale)},
             {"kv_head_num", of(p.kv_head_num)},
             {"mask_type", of(p.mask_type)},
             {"batch_run_status", of(p.batch_run_status)},
             {"quant_type", of(p.quant_type)},
             {"out_data_type", of(p.out_data_type)},
             {"has_quant_offset", of(p.has_quant_offset)},
             {"compress_type", of(p.compress_type)},
             {"calc_type", of(p.calc_type)},
             {"scale_type", of(p.scale_type)},
             {"input_layout", of(p.input_layout)},
             {"mla_v_head_size", of(p.mla_v_head_size)}}};
}

Description describe(const ::atb::infer::SelfAttentionParam& p) {
    const bool paged = p.calc_type == kPrefixEncoder;
    const bool slopes = p.mask_type >= kAlibiFirst && p.mask_type <= kAlibiLast;
    return {"atb.SelfAttention",
            {{"query"},
             {"key", Place::device_any_format},
             {"value", Place::device_any_format},
             {"block_tables", Place::device, paged},
             {"mask", Place::device_any_format, p.mask_type != kNoMask},
             {"seq_lens", Place::lengths},
             {"kv_seq_lens", Place::lengths, paged},
             {"slopes", Place::device, slopes}},
            {{"quant_type", of(p.quant_type)},
             {"out_data_type", of(p.out_data_type)},
             {"head_num", of(p.head_num)},
             {"kv_head_num", of(p.kv_head_num)},
             {"q_scale", of(p.q_scale)},
             {"qk_scale", of(p.qk_scale)},
             {"batch_run_status", of(p.batch_run_status)},
             {"is_triu_mask", of(p.is_triu_mask)},
             {"calc_type", of(p.calc_type)},
             {"kernel_type", of(p.kernel_type)},
             {"clamp_type", of(p.clamp_type)},
             {"clamp_min", of(p.clamp_min)},
             {"clamp_max", of(p.clamp_max)},
             {"mask_type", of(p.mask_type)},
             {"kv_cache_cfg", of(p.kv_cache_cfg)},
             {"scale_type", of(p.scale_type)},
             {"input_layout", of(p.input_layout)},
             {"mla_v_head_size", of(p.mla_v_head_size)},
             {"cache_type", of(p.cache_type)},
             {"window_size", of(p.window_size)}}};
}

}  // namespace ga::vnpu::atb_call
