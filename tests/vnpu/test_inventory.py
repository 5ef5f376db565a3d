"""The functions that programs are known to need are emulated: a stock GLM's, fused inference's, and 600 in all."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from gallium.vnpu.inventory import operator_rows

# What forward, backward, AdamW, clipping and sampling of Hugging Face's Glm and Glm4Moe call.
STOCK_GLM = """
    BitwiseNot Cos InplaceCopy InplaceDiv InplaceMul Max Neg Reciprocal Rsqrt Sigmoid Silu Sin Sqrt
    BitwiseAndTensor BitwiseOrTensor Div Embedding EqTensor LtTensor Mul NeTensor SigmoidBackward SiluBackward
    Divs EqScalar FloorDivides GtScalar LeScalar LtScalar Muls PowTensorScalar Adds Clamp Rsubs Subs
    BatchMatMul Matmul Mm InplaceAdd InplaceLerps InplaceMaskedFillScalar Add InplaceFillScalar InplaceMuls InplaceOne
    InplaceZero InplaceAdds InplaceAddcdiv InplaceAddcmul Addmm Arange LogSoftmax Softmax Triu LogSoftmaxBackward
    All Any Mean ReduceSum LinalgVectorNorm Cumsum Cat Stack ConstantPadNd Index IndexPutImpl Gather Scatter
    InplaceScatterValue ScatterAdd RepeatInterleaveIntWithDim EmbeddingDenseBackward Sort TopkV2 Histc Multinomial
    InplaceNormal NLLLoss NLLLossBackward ForeachSqrt ForeachAddScalarV2 ForeachMulScalarV2 ForeachNorm
    ForeachAddListV2 ForeachLerpScalar ForeachAddcmulScalarV2 ForeachDivScalarList FlashAttentionScore
    FlashAttentionScoreGrad
"""

# What the fused operators of torch_npu choose among, by operator.
FUSED_INFERENCE = {
    "npu_rms_norm": "RmsNorm",
    "npu_add_rms_norm": "AddRmsNorm InplaceAddRmsNorm",
    "npu_rotary_mul": "RotaryPositionEmbedding RotaryPositionEmbeddingV2",
    "npu_apply_rotary_pos_emb": "ApplyRotaryPosEmb ApplyRotaryPosEmbV2",
    "npu_interleave_rope": "InterleaveRope",
    "npu_swiglu": "SwiGlu",
    "npu_dequant_swiglu_quant": "DequantSwigluQuant DequantSwigluQuantV2",
    "npu_fusion_attention": "FlashAttentionScore FlashAttentionScoreV3 FlashAttentionScoreV4 FlashAttentionVarLenScore "
    "FlashAttentionVarLenScoreV4 FlashAttentionVarLenScoreV5 FlashAttentionScoreGrad",
    "npu_fused_infer_attention_score": "FusedInferAttentionScoreV2 FusedInferAttentionScoreV3 "
    "FusedInferAttentionScoreV4 FusedInferAttentionScoreV5",
    "npu_scatter_pa_kv_cache": "ScatterPaKvCache",
    "npu_kv_rmsnorm_rope_cache": "KvRmsNormRopeCache KvRmsNormRopeCacheV2",
    "npu_grouped_matmul": "GroupedMatmulV4 GroupedMatmulV5 GroupedMatmulWeightNz",
    "npu_moe_gating_top_k": "MoeGatingTopK MoeGatingTopKV2",
    "npu_moe_init_routing_v2": "MoeInitRoutingV2 MoeInitRoutingV3",
    "npu_moe_finalize_routing": "MoeFinalizeRouting MoeFinalizeRoutingV2 MoeFinalizeRoutingV4",
    "npu_moe_token_permute": "MoeTokenPermute MoeTokenUnpermute",
    "npu_moe_distribute_dispatch_v2": "MoeDistributeDispatchV2 MoeDistributeDispatchV3 MoeDistributeDispatchV4",
    "npu_moe_distribute_combine_v2": "MoeDistributeCombineV2 MoeDistributeCombineV3 MoeDistributeCombineV4",
    "npu_quant_matmul": "QuantMatmulV5 QuantMatmulWeightNz",
    "npu_weight_quant_batchmatmul": "WeightQuantBatchMatmulV2 WeightQuantBatchMatmulV3 WeightQuantBatchMatmulNz "
    "TransQuantParamV2",
    "npu_dynamic_quant": "DynamicQuant DynamicQuantV2 DynamicQuantV3 DynamicQuantV4",
    "npu_mm_all_reduce_base": "MatmulAllReduce MatmulAllReduceV2 MatmulAllReduceV3 QuantMatmulAllReduce "
    "QuantMatmulAllReduceV2 QuantMatmulAllReduceV3 WeightQuantMatmulAllReduce WeightQuantMatmulAllReduceV2",
    "npu_mla_prolog_v3": "MlaPrologV3WeightNz",
    "npu_lightning_indexer": "LightningIndexer",
    "npu_sparse_flash_attention": "SparseFlashAttention SparseFlashAttentionV2",
    "npu_top_k_top_p": "ApplyTopKTopP",
    "npu_top_k_top_p_sample": "TopKTopPSample TopKTopPSampleV2",
    "npu_transpose_batchmatmul": "TransposeBatchMatMul TransposeBatchMatMulWeightNz",
    "npu_format_cast": "NpuFormatCast",
}


def status() -> dict[str, str]:
    """Of every function that torch_npu looks up: emulated, missing, or of an unknown signature."""
    return {row["name"]: row["status"] for row in operator_rows()}


def not_emulated(names: Iterable[str]) -> list[str]:
    found = status()
    return [f"{name}: {found.get(name, 'not exported')}" for name in names if found.get(name) != "emulated"]


def test_a_stock_glm_has_all_its_functions() -> None:
    names = STOCK_GLM.split()
    assert len(names) == len(set(names)) == 89
    assert not_emulated(names) == []


@pytest.mark.parametrize("operator", FUSED_INFERENCE)
def test_fused_inference_has_its_functions(operator: str) -> None:
    assert not_emulated(FUSED_INFERENCE[operator].split()) == []


def test_at_least_600_functions_are_emulated() -> None:
    assert sum(state == "emulated" for state in status().values()) >= 600
