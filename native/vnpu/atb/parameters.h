// The parameter structures of the operators that torch_npu makes through ATB: names of the structures and layouts are ABI
// (facts from Ascend/op-plugin 517f2e7, op_plugin/third_party/atb/inc/infer_op_params.h, BSD-3-Clause). Enumerations are
// plain integers here: what the values mean is said where they are honoured, in gallium/vnpu/ops/atb_*.py.
#pragma once
#include <stdint.h>

namespace atb {
namespace infer __attribute__((visibility("default"))) {

struct LinearParam {
    bool transpose_a, transpose_b, has_bias;
    int32_t out_data_type;
    bool accumulate;
    uint8_t reserved[23];
};
static_assert(sizeof(LinearParam) == 32);

struct ElewiseParam {
    int32_t type;
    struct {
        float scale;
        bool asymmetric;
        int32_t offset;
        uint8_t reserved[20];
    } quant;
    struct {
        float factor;
        uint8_t reserved[12];
    } muls;
    int32_t out_data_type;
    uint8_t reserved[8];
};
static_assert(sizeof(ElewiseParam) == 64);

struct RmsNormParam {
    struct Residual {  // of the forms before and after the addition
        int32_t quant_type;
        float epsilon;
        bool has_bias;
        uint8_t reserved[23];
    };
    int32_t layer_type;
    struct {
        int32_t quant_type;
        float epsilon;
        double layer_norm_epsilon;
        bool rstd;
        int32_t precision_mode, model_type, dynamic_quant_type;
        uint8_t reserved[32];
    } norm;
    Residual pre_norm, post_norm;
    uint8_t reserved[8];
};
static_assert(sizeof(RmsNormParam) == 144);

struct GroupTopkParam {
    int32_t group_num, k;
    uint16_t group_multi_flag, n;
    uint8_t reserved[12];
};
static_assert(sizeof(GroupTopkParam) == 24);

struct RopeParam {
    int32_t rotary_coeff, cos_format;
    uint8_t reserved[8];
};
static_assert(sizeof(RopeParam) == 16);

struct ReshapeAndCacheParam {
    int32_t compress_type, kv_cache_cfg;
    uint8_t reserved[16];
};
static_assert(sizeof(ReshapeAndCacheParam) == 24);

struct PagedAttentionParam {
    int32_t head_num;
    float qk_scale;
    int32_t kv_head_num, mask_type;
    bool batch_run_status;
    int32_t quant_type, out_data_type;
    bool has_quant_offset;
    int32_t compress_type, calc_type, scale_type, input_layout;
    uint32_t mla_v_head_size;
    uint8_t reserved[68];
};
static_assert(sizeof(PagedAttentionParam) == 120);

struct SelfAttentionParam {
    int32_t quant_type, out_data_type, head_num, kv_head_num;
    float q_scale, qk_scale;
    bool batch_run_status;
    uint32_t is_triu_mask;
    int32_t calc_type, kernel_type, clamp_type;
    float clamp_min, clamp_max;
    int32_t mask_type, kv_cache_cfg, scale_type, input_layout;
    uint32_t mla_v_head_size;
    int8_t cache_type;
    uint32_t window_size;
    uint8_t reserved[64];
};
static_assert(sizeof(SelfAttentionParam) == 144);

}  // namespace infer
}  // namespace atb
